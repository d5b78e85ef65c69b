"""Read a table of images, texts and labels into compact columns. Every error names the row and the line."""

from __future__ import annotations

import logging
import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import ATTRIBUTES, DataError, eye_name, modality_name
from data_pipelines.sources.columns import Stored, Strings, StringWriter
from data_pipelines.sources.header import Getter, Header
from data_pipelines.sources.labels import GAP, NOT_LABELLED, Classes, check_label, class_names, finding, unlabelled
from data_pipelines.sources.tables import is_empty, read_rows, where
from data_pipelines.sources.visits import day, looks_paired, patient_of

_log = logging.getLogger(__name__)

TEXTS = ("image", "text", "patient", "mask", "fov")
CODES = ("label", "modality", "eye")
NAMES = (*TEXTS, *CODES, "day", "points", "value")  # our names of columns
ON_REQUEST = ("mask", "fov", "points", "value")  # read only if `columns` names them; fov also together with a mask
REQUIRED = ("image", "text", "label", "patient", "day")  # an empty cell in one of these columns is an error
FILES = ("image", "mask", "fov")
KEPT = (*ATTRIBUTES, "split")  # read if the file has a column of this name

Columns = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class CsvSchema:
    """Which columns of a file to read and how; `sources.csv.csv_source` explains the fields."""

    path: Path
    sep: str = ","
    columns: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    only: tuple[tuple[str, str], ...] = ()
    require: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    modality: str = "CFP"
    empty: str = "error"
    encoding: str = ""
    keep: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in [name for name, _ in self.columns] + list(self.require):
            if name not in NAMES:
                raise DataError(f"columns: {name!r} is not one of our names {', '.join(NAMES)}")
        if self.empty not in ("error", "drop", "keep"):
            raise DataError(f"empty must be error, drop or keep, not {self.empty!r}")
        if self.classes is not None:
            Classes(self.classes)


@dataclass
class Table:
    """The columns of a file: strings, codes (indices into `names`), numbers f32 [rows n].

    `places` u32 [rows 2] holds the number of each data row, from 1, and its line in the file. `kept` are the columns that
    are not ours: attributes, and `split`.
    """

    places: Stored
    texts: dict[str, Strings]
    codes: dict[str, Stored]
    names: dict[str, tuple[str, ...]]
    numbers: dict[str, Stored]
    kept: dict[str, Strings]

    def __len__(self) -> int:
        return len(self.places.array)


def read_table(schema: CsvSchema) -> Table:
    """Read the whole file in one pass. Raises DataError naming the file and its row, line or columns."""
    rows = read_rows(schema.path, schema.sep, schema.encoding)
    builder = _Builder(schema, Header(schema.path, tuple(next(rows)[2])))
    for row, line, cells in rows:
        try:
            if builder.add(cells):
                builder.places.extend((row, line))
        except DataError as error:
            raise DataError(f"{where(schema.path, row, line)}: {error}") from error
    return builder.finish()


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
        requested = dict(self.schema.columns)
        for name in NAMES:
            automatic = name not in ON_REQUEST or (name == "fov" and bool(requested.get("mask")))
            theirs = requested.get(name, name if name in self.header.names and automatic else "")
            if theirs:
                self._bind(name, theirs)
            elif name == "image" or name in self.schema.require:
                raise self.header.missing(name, name)
        self.kept = {name: StringWriter() for name in (*KEPT, *self.schema.keep) if self._keeps(name)}
        self.filters = [(column, self.header.getter("only", column), value) for column, value in self.schema.only]
        self.seen: dict[str, set[str]] = {column: set() for column, _ in self.schema.only}
        self.classes = None if self.schema.classes is None else Classes(self.schema.classes)
        self.values = dict(self.schema.values)
        self.places = array("I")
        self.texts = {name: StringWriter() for name in TEXTS if name in self.getters}
        self.codes = {name: array("i") for name in CODES if name in self.getters}
        self.found: dict[str, dict[str, int]] = {name: {} for name in self.codes}  # value -> code, as they come
        self.numbers = {name: array("f") for name in self.groups}
        self.days = array("q")
        self.dated: bool | None = None
        self.parsed_days: dict[str, tuple[int, bool]] = {}

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
        if name == "patient" and isinstance(theirs, str) and theirs not in self.header.names and _from_name(theirs):
            image, pattern = self.getters["image"], theirs[5:]
            self.getters[name], self.read[name] = lambda cells: patient_of(_file(image(cells)), pattern), ()
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
            self._add_day(row["day"])
        for name, values in numbers.items():
            self.numbers[name].extend(values)
        for name, writer in self.texts.items():
            text = "" if name in ("mask", "fov") and is_empty(row[name]) else row[name]
            writer.append(_file(text) if name in FILES else _without_point(text) if name == "patient" else text)
        for name, writer in self.kept.items():
            value = row[f"keep {name}"]
            writer.append("" if is_empty(value) else value)
        return True

    def _gap(self, row: dict[str, str]) -> str:
        """The required column that is empty in a row to drop; "" if there is none. Raises DataError if it is an error."""
        if "label" in row:
            row["label"] = self._mapped(row["label"])
        for name in REQUIRED:
            empty = self._lacks_label(row[name]) if name == "label" and name in row else is_empty(row.get(name, name))
            if empty and not (name == "label" and self.schema.empty == "keep"):
                if self.schema.empty != "drop":
                    hint = "; if it is a class, name the classes with classes=" * bool(name == "label" and row[name])
                    fill = "fill it in, or leave such rows out with empty=drop"
                    raise DataError(f"{name} is empty ({row[name]!r}); {fill}{hint}")
                return name
        return ""

    def _lacks_label(self, label: str) -> bool:
        """Whether a label is a word for a missing value. "none" is not: it is a usual name of a grade."""
        named = self.classes is not None and label in self.classes
        return is_empty(label) and label.lower() != "none" and not named

    def _mapped(self, label: str) -> str:
        """A label after the option `values`; _GAP for a value that is mapped to a gap."""
        if not self.values:
            return label
        meaning = self.values.get(label, self.values.get(_without_point(label), label))
        return _GAP if meaning == GAP and label != GAP else meaning

    def _gap_of_labels(self, cells: list[str], labels: Sequence[float]) -> str:
        """ "label" if one of several labels is empty, which is an error unless such rows are dropped; else ""."""
        for (column, get), label in zip(self.groups["label"] if len(labels) else (), labels, strict=True):
            value = get(cells)
            if math.isnan(label) and self.schema.empty != "keep" and self._mapped(value) != _GAP:
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
                    value = self._mapped(value)
                    numbers.append(math.nan if value == _GAP else finding(value))
                else:
                    numbers.append(_number(value))
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
            return self.schema.modality if is_empty(value) else modality_name(value)
        if name == "eye":
            return "" if is_empty(value) else eye_name(value)
        if value == _GAP or unlabelled(value) or self._lacks_label(value):
            return NOT_LABELLED
        if self.classes is not None:
            return self.classes.index(value)
        check_label(value)
        return 0

    def _add_day(self, value: str) -> None:
        """Append a day. Raises DataError if dates and numbers of days are mixed."""
        if (found := self.parsed_days.get(value)) is None:
            found = self.parsed_days[value] = day(value)
        number, dated = found
        if self.dated not in (None, dated):
            kinds = ("numbers of days", "dates")
            raise DataError(f"day: {value!r} is among {kinds[not dated]}; a column has one of both")
        self.dated = dated
        self.days.append(number)

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
        for name in self.found:
            index, names[name] = self._labels() if name == "label" else self._indices(name)
            kind = np.int8 if len(names[name]) < 128 else np.int32
            codes[name] = Stored(np.asarray(index, kind)[np.frombuffer(self.codes[name], np.int32)])
        if "label" in self.groups:
            columns = tuple(column for column, _ in self.groups["label"])
            names["label"] = self.schema.classes or columns
            if len(names["label"]) != len(columns):
                raise DataError(f"{path}: {len(names['label'])} classes for {len(columns)} label columns")
        if "day" in self.getters:
            codes["day"] = Stored(np.frombuffer(self.days, np.int64))
        texts = {name: writer.finish() for name, writer in self.texts.items()}
        self._describe(texts)
        return Table(
            Stored(np.frombuffer(self.places, np.uint32).reshape(rows, 2)),
            texts,
            codes,
            names,
            {name: Stored(np.frombuffer(n, np.float32).reshape(rows, -1)) for name, n in self.numbers.items()},
            {name: writer.finish() for name, writer in self.kept.items()},
        )

    def _labels(self) -> tuple[list[int], tuple[str, ...]]:
        """(index of the class for each value, class names); logs how many rows are not labelled."""
        found, codes = self.found["label"], np.frombuffer(self.codes["label"], np.int32)
        counts = dict(zip(found, np.bincount(codes, minlength=len(found)).tolist(), strict=True))
        without = {value: n for value, n in counts.items() if self._meaning("label", value) == NOT_LABELLED}
        if without:
            shown = ", ".join(sorted(repr(value) for value in without if value != _GAP)[:5]) or GAP
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
        gaps = any(map(is_empty, self.found.get("modality", ())))
        assumed = [] if "modality" in self.read else [f"modality {self.schema.modality}"]
        assumed += [f"modality {self.schema.modality} where none is given"] if gaps else []
        assumed += [] if "patient" in self.read else ["that each image is its own patient"]
        assumed += ["that both eyes of a patient are one"] if "day" in self.read and "eye" not in self.read else []
        self.header.describe(self.read, assumed)
        first = (texts["image"][row] for row in range(min(len(texts["image"]), 20_000)))
        if "patient" not in self.read and (pair := looks_paired(first)):
            hint = "patient=name takes the patient from the name"
            warn_line(_log, "%s: %s and %s look like eyes of one patient; %s", self.schema.path, *pair, hint)
        if self.dated is False and min(self.days) >= 1900 and max(self.days) <= 2100:
            line = "%s: day holds %d to %d, read as numbers of days; if they are years, write dates"
            warn_line(_log, line, self.schema.path, min(self.days), max(self.days))

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


_GAP = "\0gap"  # no cell of a table is equal to it


def _from_name(theirs: str) -> bool:
    """Whether an option takes the patient from the image's name: "name", or "name:" and a regular expression."""
    if theirs.startswith("name:"):
        try:
            re.compile(theirs[5:])
        except re.error as error:
            raise DataError(f"patient={theirs}: is not a regular expression ({error})") from None
    return theirs == "name" or theirs.startswith("name:")


def _without_point(number: str) -> str:
    """ "7" for "7.0", as pandas writes whole numbers beside gaps."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", number) if "." in number else number


def _file(path: str) -> str:
    """A path as Windows writes it, with this system's separators."""
    return path.replace("\\", "/")


def _number(value: str) -> float:
    """A number, NaN if empty. Raises DataError for anything else, also for infinity."""
    if is_empty(value):
        return math.nan
    try:
        number = math.nan if "_" in value else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{value!r}, not a number" + (" (a decimal comma?)" if "," in value else ""))
    return number
