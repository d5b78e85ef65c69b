"""Read a table of images, texts and labels into compact columns. Every error names the row and the line."""

from __future__ import annotations

import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError, eye_name, modality_name
from data_pipelines.sources.cells import (
    MAPPED_GAP,
    Days,
    any_empty,
    as_file,
    as_number,
    from_name,
    lacks_label,
    mapped,
    without_empty,
    without_point,
)
from data_pipelines.sources.columns import Stored, Strings, StringWriter
from data_pipelines.sources.csv_schema import (
    CODES,
    FILES,
    KEPT,
    NAMES,
    ON_REQUEST,
    REQUIRED,
    REQUIRED_OF_VISITS,
    TEXTS,
    CsvSchema,
    Table,
)
from data_pipelines.sources.dicom_folder import dicom_rows
from data_pipelines.sources.header import Getter, Header
from data_pipelines.sources.labels import GAP, NOT_LABELLED, Classes, check_label, class_names, finding, unlabelled
from data_pipelines.sources.tables import is_empty, read_rows, where
from data_pipelines.sources.visit_columns import VisitColumns, long_columns, wide_columns
from data_pipelines.sources.visits import looks_paired, patient_of

_log = logging.getLogger(__name__)

Row = tuple[int, int, list[str]]  # its number, its line and its cells
_CHUNK = 2048  # rows that are added together


def read_table(schema: CsvSchema) -> Table:
    """Read the whole file in one pass. Raises DataError naming the file and its row, line or columns."""
    folder = schema.visits and schema.path.is_dir()
    rows = dicom_rows(schema.path, asked_tags(schema)) if folder else None
    rows = rows or read_rows(schema.path, schema.sep, schema.encoding)
    builder = _Builder(schema, Header(schema.path, tuple(next(rows)[2])))
    for chunk in _chunks(rows):
        if not builder.add_columns(chunk):
            for row, line, cells in chunk:
                try:
                    if builder.add(cells):
                        builder.places.extend((row, line))
                except DataError as error:
                    raise DataError(f"{where(schema.path, row, line)}: {error}") from error
    return builder.finish()


def asked_tags(schema: CsvSchema) -> tuple[str, ...]:
    """Tags that a schema reads from DICOM files in addition to the usual ones."""
    columns = [theirs for _, theirs in schema.columns if isinstance(theirs, str) and theirs]
    return (*columns, *schema.keep, *(column for column, _ in schema.only))


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    try:
        for one in rows:
            chunk.append(one)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except DataError:
        yield chunk  # so that errors in earlier rows are reported first
        raise
    yield chunk


@dataclass
class _Builder:
    """The columns of a table while the file is read."""

    schema: CsvSchema
    header: Header
    getters: dict[str, Getter] = field(default_factory=dict)
    groups: dict[str, list[tuple[str, Getter]]] = field(default_factory=dict)  # label, points, value: (column, getter)
    read: dict[str, Sequence[str]] = field(default_factory=dict)  # our name -> the columns it reads
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        requested, names = dict(self.schema.columns), self.header.names
        wide = self.schema.visits and not requested.get("image") and "image" not in names
        self.visits = self._visit_columns(requested, wide) if self.schema.visits else VisitColumns()
        for name in NAMES:
            if wide and name in ("image", "text", "modality"):
                continue
            automatic = name not in ON_REQUEST or (name == "fov" and bool(requested.get("mask")))
            usual = next((own for own in (name, *self._also(name)) if own in names), "") if automatic else ""
            if theirs := requested.get(name, usual):
                self._bind(name, theirs)
            elif name == "image" or name in self.schema.require:
                raise self.header.missing(name, name)
        self.required = REQUIRED_OF_VISITS if self.schema.visits else REQUIRED
        for name, theirs in (*self.visits.notes.items(), *self.visits.labels.items()):
            self._bind(name, theirs)
        self.kept = {name: StringWriter() for name in (*KEPT, *self.schema.keep) if self._keeps(name)}
        self.notes = {name: StringWriter() for name in self.visits.notes}
        self.filters = [(column, self.header.getter("only", column), value) for column, value in self.schema.only]
        self.seen: dict[str, set[str]] = {column: set() for column, _ in self.schema.only}
        self.classes = None if self.schema.classes is None else Classes(self.schema.classes)
        self.values = dict(self.schema.values)
        self.places = array("I")
        self.texts = {name: StringWriter() for name in TEXTS if name in self.getters}
        # an empty cell among several masks means that the image lacks the class
        self.needs_mask = self.schema.empty == "drop" and len(self.read.get("mask", ())) == 1
        self.labels = (*["label"] * ("label" in self.getters), *self.visits.labels)
        self.codes = {name: array("i") for name in (*CODES, *self.visits.labels) if name in self.getters}
        shared: dict[str, int] = {}  # value -> code, as they come; all labels have the same classes
        self.found: dict[str, dict[str, int]] = {name: shared if name in self.labels else {} for name in self.codes}
        self.numbers = {name: array("f") for name in self.groups}
        self.days = Days()

    def _visit_columns(self, requested: Mapping[str, Any], wide: bool) -> VisitColumns:
        if not wide:
            return long_columns(self.header.names, requested)
        found = wide_columns(self.header.names, requested, self.schema.declare)
        if not found.slots:
            raise DataError(
                f"{self.schema.path}: has no column image, and no column of a view such as cfp_left or oct_right; it has "
                f"{', '.join(filter(None, self.header.names))}; map them with {self.schema.path.name},visits=true,cfp_left=THEIRS"
            )
        return found

    def _also(self, name: str) -> tuple[str, ...]:
        return ("date",) if name == "day" and self.schema.visits else ()

    def _keeps(self, name: str) -> bool:
        if name not in self.header.names:
            if name in self.schema.keep:
                raise self.header.missing("keep", name)
            return False
        self.getters[f"keep {name}"] = self.header.getter("keep", name)
        self.read[name] = (name,)
        return True

    def _bind(self, name: str, theirs: str | tuple[str, ...]) -> None:
        several = (theirs,) if isinstance(theirs, str) else theirs
        if name == "patient" and isinstance(theirs, str) and theirs not in self.header.names and from_name(theirs):
            image, pattern = self.getters["image"], theirs[5:]
            self.getters[name], self.read[name] = lambda cells: patient_of(as_file(image(cells)), pattern), ()
            return
        self.read[name] = several
        if isinstance(theirs, str) and name not in ("points", "value"):
            self.getters[name] = self.header.getter(name, theirs)
            return
        getters = [(column, self.header.getter(name, column)) for column in several]
        if name == "mask":
            self.getters[name] = lambda cells: "\n".join(get(cells) for _, get in getters)
            return
        if name not in ("label", "points", "value"):
            raise DataError(f"columns: {name} is one column, not {len(several)}")
        if name == "points" and len(several) % 2:
            raise DataError(f"columns: points needs x and y of each point, {len(several)} columns are not pairs")
        self.groups[name] = getters

    def add(self, cells: list[str]) -> bool:
        """Append one row; False if it is filtered out or dropped. Raises DataError."""
        for column, get, wanted in self.filters:
            self.seen[column].add(get(cells))
            if get(cells) != wanted:
                return False
        row = {name: get(cells) for name, get in self.getters.items()}
        gap = self._gap(row)
        numbers = {} if gap else {name: self._numbers(name, cells) for name in self.groups}
        if gap := gap or self._gap_of_labels(cells, numbers.get("label", ())):
            self.dropped[gap] += 1
            return False
        for name in self.codes:
            self.codes[name].append(self._code(name, row[name]))
        if "day" in row:
            self.days.found.append(self.days.number(row["day"]))
        for name, values in numbers.items():
            self.numbers[name].extend(values)
        for name, writer in self.texts.items():
            text = "" if name in ("mask", "fov") and is_empty(row[name]) else row[name]
            writer.append(as_file(text) if name in FILES else without_point(text) if name == "patient" else text)
        for name, writer in (*self.notes.items(), *((f"keep {name}", kept) for name, kept in self.kept.items())):
            writer.append("" if is_empty(row[name]) else row[name])
        return True

    def add_columns(self, rows: list[Row]) -> bool:
        """Append rows column by column, which is faster; False, and nothing appended, if a cell of them is unusual."""
        if not rows or self.filters or self.groups or self.values:
            return not rows
        columns: dict[str, Sequence[str]] = {}
        try:
            for name, get in self.getters.items():
                columns[name] = list(map(get, (cells for _, _, cells in rows)))
            notes = {name: without_empty(columns[name]) for name in self.notes}
            views = [notes[slot.name] for slot in self.visits.slots]
            if any(any_empty(columns.get(name, ())) for name in (*self.required, *["mask"] * self.needs_mask)):
                return False
            if views and not all(map(any, zip(*views, strict=True))):
                return False
            days = [self.days.number(value) for value in columns.get("day", ())]
            for name in self.codes:
                for value in dict.fromkeys(columns[name]):
                    self._code(name, value)
        except DataError:
            return False  # the row that is wrong is found by `add`
        for name, codes in self.codes.items():
            codes.extend(map(self.found[name].__getitem__, columns[name]))
        self.days.found.extend(days)
        for name, writer in self.texts.items():
            cells = without_empty(columns[name]) if name in ("mask", "fov") else columns[name]
            tidy = as_file if name in FILES else without_point if name == "patient" else None
            writer.extend(list(map(tidy, cells)) if tidy else cells)
        for name, writer in self.notes.items():
            writer.extend(notes[name])
        for name, writer in self.kept.items():
            writer.extend(without_empty(columns[f"keep {name}"]))
        self.places.extend(number for row, line, _ in rows for number in (row, line))
        return True

    def _gap(self, row: dict[str, str]) -> str:
        """The required column that is empty in a row to drop; "" if there is none. Raises DataError if it is an error."""
        for name in self.labels:
            row[name] = mapped(row[name], self.values)
        if self.visits.slots and all(is_empty(row[slot.name]) for slot in self.visits.slots):
            if self.schema.empty != "drop":
                raise DataError("the row has no image; fill one in, or leave such rows out with empty=drop")
            return "image"
        for name in self.required:
            empty = (
                lacks_label(row[name], self.classes)
                if name == "label" and name in row
                else is_empty(row.get(name, name))
            )
            if empty and not (name == "label" and self.schema.empty == "keep"):
                if self.schema.empty != "drop":
                    hint = "; if it is a class, name the classes with classes=" * bool(name == "label" and row[name])
                    fill = "fill it in, or leave such rows out with empty=drop"
                    raise DataError(f"{name} is empty ({row[name]!r}); {fill}{hint}")
                return name
        return "mask" if self.needs_mask and is_empty(row["mask"]) else ""

    def _gap_of_labels(self, cells: list[str], labels: Sequence[float]) -> str:
        """ "label" if one of several labels is empty, which is an error unless such rows are dropped; else ""."""
        for (column, get), label in zip(self.groups["label"] if len(labels) else (), labels, strict=True):
            value = get(cells)
            if math.isnan(label) and self.schema.empty != "keep" and mapped(value, self.values) != MAPPED_GAP:
                if self.schema.empty == "drop":
                    return "label"
                hint = "empty=drop leaves out such rows, empty=keep keeps gaps"
                raise DataError(f"label is empty ({value!r}) in {column}; {hint}")
        return ""

    def _numbers(self, name: str, cells: list[str]) -> list[float]:
        """The cells of a group as numbers; NaN where empty. Raises DataError naming the column."""
        numbers = []
        for column, get in self.groups[name]:
            value = get(cells)
            try:
                if name == "label":
                    value = mapped(value, self.values)
                    numbers.append(math.nan if value == MAPPED_GAP else finding(value))
                else:
                    numbers.append(as_number(value))
            except DataError as error:
                raise DataError(f"{name}: {column} is {error}") from None
        return numbers

    def _code(self, name: str, value: str) -> int:
        codes = self.found[name]
        if value not in codes:
            self._meaning(name, value)  # raises for an unknown value, while the row is known
            codes[value] = len(codes)
        return codes[value]

    def _meaning(self, name: str, value: str) -> str | int:
        """The modality or eye that a value means, or the index of a class; 0 for a class whose name is not given."""
        if name == "modality":
            return self.schema.modality if is_empty(value) else modality_name(value, self.schema.declare)
        if name == "eye":
            return "" if is_empty(value) else eye_name(value)
        if value == MAPPED_GAP or unlabelled(value) or lacks_label(value, self.classes):
            return NOT_LABELLED
        if self.classes is not None:
            return self.classes.index(value)
        check_label(value)
        return 0

    def finish(self) -> Table:
        """The finished table. Raises DataError if it has no rows."""
        path, rows = self.schema.path, len(self.places) // 2
        if self.dropped:
            reasons = ", ".join(f"{name} {count}" for name, count in self.dropped.items())
            total = rows + self.dropped.total()
            warn_line(_log, "%s: left out %d of %d rows with empty fields (%s)", path, total - rows, total, reasons)
        if not rows:
            raise self._no_rows()
        codes: dict[str, Stored] = {}
        names: dict[str, tuple[str, ...]] = {}
        labels = self._labels() if self.labels else ([], ())
        for name in self.found:
            index, names[name] = labels if name in self.labels else self._indices(name)
            kind = np.int8 if len(names[name]) < 128 else np.int32
            codes[name] = Stored(np.asarray(index, kind)[np.frombuffer(self.codes[name], np.int32)])
        if "label" in self.groups:
            columns = tuple(column for column, _ in self.groups["label"])
            names["label"] = self.schema.classes or columns
            if len(names["label"]) != len(columns):
                raise DataError(f"{path}: {len(names['label'])} classes for {len(columns)} label columns")
        if "day" in self.getters:
            codes["day"] = Stored(np.frombuffer(self.days.found, np.int64))
        texts = {name: writer.finish() for name, writer in self.texts.items()}
        self._describe(texts)
        return Table(
            Stored(np.frombuffer(self.places, np.uint32).reshape(rows, 2)),
            texts,
            codes,
            names,
            {name: Stored(np.frombuffer(n, np.float32).reshape(rows, -1)) for name, n in self.numbers.items()},
            {name: writer.finish() for name, writer in self.kept.items()},
            {name: writer.finish() for name, writer in self.notes.items()},
            self.visits.slots,
        )

    def _labels(self) -> tuple[list[int], tuple[str, ...]]:
        """(index of the class for each value, class names); logs how many rows are not labelled."""
        found = self.found[self.labels[0]]
        codes = np.concatenate([np.frombuffer(self.codes[name], np.int32) for name in self.labels])
        counts = dict(zip(found, np.bincount(codes, minlength=len(found)).tolist(), strict=True))
        without = {value: n for value, n in counts.items() if self._meaning("label", value) == NOT_LABELLED}
        if without and not self.schema.visits:
            shown = ", ".join(sorted(repr(value) for value in without if value != MAPPED_GAP)[:5]) or GAP
            line = "%s: %d of %d rows are not labelled (%s)"
            warn_line(_log, line, self.schema.path, sum(without.values()), len(codes), shown)
        labelled = {value: n for value, n in counts.items() if value not in without}
        if self.classes is None and (nones := [repr(value) for value in labelled if value.lower() == "none"]):
            line = "%s: the label %s is a class; if it means missing, add values=%s:%s"
            warn_line(_log, line, self.schema.path, nones[0], nones[0][1:-1], GAP)
        classes = self.classes or Classes(class_names(labelled, str(self.schema.path)))
        return [NOT_LABELLED if value in without else classes.index(value) for value in found], classes.names

    def _indices(self, name: str) -> tuple[list[int], tuple[str, ...]]:
        """(index into the names for each value, names in order of appearance): modalities or eyes."""
        meanings = [str(self._meaning(name, value)) for value in self.found[name]]
        names = tuple(dict.fromkeys(meanings))
        return [names.index(meaning) for meaning in meanings], names

    def _describe(self, texts: Mapping[str, Strings]) -> None:
        """Log what is read, ignored and assumed, and what such a table is easily mistaken in."""
        gaps, wide = any(map(is_empty, self.found.get("modality", ()))), bool(self.visits.slots)
        assumed = [] if "modality" in self.read or wide else [f"modality {self.schema.modality}"]
        assumed += [f"modality {self.schema.modality} where none is given"] if gaps else []
        unit = "row" if wide else "image"
        assumed += [] if "patient" in self.read else [f"that each {unit} is its own patient"]
        if self.schema.visits and not wide:
            assumed += [] if "day" in self.read else ["that all images of a patient are one visit"]
        elif "day" in self.read and "eye" not in self.read and not wide:
            assumed += ["that both eyes of a patient are one"]
        self.header.describe(self.read, assumed)
        first = [texts["image"][row] for row in range(min(len(texts["image"]), 20_000))] if "image" in texts else []
        if "patient" not in self.read and (pair := looks_paired(first)):
            hint = "patient=name takes the patient from the name"
            warn_line(_log, "%s: %s and %s look like eyes of one patient; %s", self.schema.path, *pair, hint)
        if self.days.dated is False and min(self.days.found) >= 1900 and max(self.days.found) <= 2100:
            line = "%s: day holds %d to %d, read as numbers of days; if they are years, write dates"
            warn_line(_log, line, self.schema.path, min(self.days.found), max(self.days.found))

    def _no_rows(self) -> DataError:
        for column, _, wanted in self.filters:
            if self.seen[column] and wanted not in self.seen[column]:
                values = ", ".join(sorted(self.seen[column])[:20])
                return DataError(f"{self.schema.path}: no row has {column} = {wanted!r}, it has {values}")
        left = " left" if self.dropped or self.filters else ""
        return DataError(
            f"{self.schema.path}: has no rows{left}"
            + (f", {self.dropped.total()} have empty fields" * bool(self.dropped))
        )
