"""Read a CSV file of images, texts and labels into compact columns. Every error names the row and the line."""

from __future__ import annotations

import csv
import datetime
import difflib
import logging
import math
import re
import string
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, eye_name, modality_name
from data_pipelines.sources.columns import Stored, Strings, StringWriter

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a report can be longer than csv's default of 128 KiB

TEXTS = ("image", "text", "patient", "mask", "fov")
CODES = ("label", "modality", "eye")
NAMES = (*TEXTS, *CODES, "day", "points", "value")  # our names of columns
ON_REQUEST = ("mask", "fov", "points", "value")  # read only if `columns` names them; fov also together with a mask
REQUIRED = ("image", "text", "label", "patient")  # an empty cell in one of these columns is an error
EMPTY = {"", "nan", "null", "na", "n/a", "<na>"}  # how pandas, R and SQL write a missing value
MOST_CLASSES = 100_000  # a larger number is not a class

Getter = Callable[[list[str]], str]
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
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        for name in [name for name, _ in self.columns] + list(self.require):
            if name not in NAMES:
                raise DataError(f"columns: {name!r} is not one of our names {', '.join(NAMES)}")
        if self.empty not in ("error", "drop", "keep"):
            raise DataError(f"empty must be error, drop or keep, not {self.empty!r}")
        if len(self.sep) != 1:
            raise DataError(f"sep must be one character, not {self.sep!r}")


@dataclass
class Table:
    """The columns of a file: strings, codes (indices into `names`), numbers f32 [rows n].

    `places` u32 [rows 2] holds the number of each data row, from 1, and its line in the file.
    """

    places: Stored
    texts: dict[str, Strings]
    codes: dict[str, Stored]
    names: dict[str, tuple[str, ...]]
    numbers: dict[str, Stored]

    def __len__(self) -> int:
        return len(self.places.array)


def where(path: Path, row: int, line: int) -> str:
    """The name of a row in messages: its number from 1 without the header, and the line of the file where it starts."""
    return f"{path} row {row} (line {line})"


def read_rows(path: Path, sep: str = ",", encoding: str = "utf-8") -> Iterator[tuple[int, int, list[str]]]:
    """Yield (row, line, cells) of a CSV file: first the header as row 0, then the data rows from 1.

    `line` is the line of the file where the row starts. Empty lines are skipped. Raises DataError for a file that
    cannot be read, a quotation mark that stays open, and a row with more or fewer fields than the header.
    """
    row, line, width = 0, 1, 0
    codec = "utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding
    try:
        with path.open(newline="", encoding=codec) as file:
            reader = csv.reader(file, delimiter=sep, strict=True)
            for cells in reader:
                if cells:
                    width = width or len(cells)
                    if len(cells) != width:
                        raise DataError(f"{where(path, row, line)}: has {len(cells)} fields, the header has {width}")
                    yield row, line, cells
                    row += 1
                line = reader.line_num + 1
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except UnicodeError as error:
        hint = "name its encoding, such as encoding='gb18030'"
        raise DataError(f"{path}: is not {encoding} ({error}); {hint}") from error
    except csv.Error as error:
        raise DataError(f"{where(path, row, line)}: {error}; is a quotation mark left open?") from error
    if not row:
        raise DataError(f"{path}: the file is empty, its first line should name columns")


def read_table(schema: CsvSchema) -> Table:
    """Read the whole file in one pass. Raises DataError naming the file and its row, line or columns."""
    rows = read_rows(schema.path, schema.sep, schema.encoding)
    builder = _Builder(schema, [name.strip() for name in next(rows)[2]])
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
    header: list[str]
    getters: dict[str, Getter] = field(default_factory=dict)
    groups: dict[str, list[tuple[str, Getter]]] = field(default_factory=dict)  # label, points, value: (column, getter)
    dropped: int = 0

    def __post_init__(self) -> None:
        requested = dict(self.schema.columns)
        for name in NAMES:
            automatic = name not in ON_REQUEST or (name == "fov" and bool(requested.get("mask")))
            theirs = requested.get(name, name if name in self.header and automatic else "")
            if theirs:
                self._bind(name, theirs)
            elif name == "image" or name in self.schema.require:
                raise self._missing(name, name)
        self.filters = [(column, self._getter("only", column), value) for column, value in self.schema.only]
        self.seen: dict[str, set[str]] = {column: set() for column, _ in self.schema.only}
        self.places = array("I")
        self.texts = {name: StringWriter() for name in TEXTS if name in self.getters}
        self.codes = {name: array("i") for name in CODES if name in self.getters}
        self.values: dict[str, dict[str, int]] = {name: {} for name in self.codes}  # value -> code, as they come
        self.numbers = {name: array("f") for name in self.groups}
        self.days = array("q")

    def _bind(self, name: str, theirs: str | tuple[str, ...]) -> None:
        if isinstance(theirs, str) and name not in ("points", "value"):
            self.getters[name] = self._getter(name, theirs)
            return
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        getters = [(column, self._getter(name, column)) for column in theirs]
        if name == "mask":
            self.getters[name] = lambda cells: "\n".join(get(cells) for _, get in getters)
            return
        if name not in ("label", "points", "value"):
            raise DataError(f"columns: {name} is one column, not {len(theirs)}")
        if name == "points" and len(theirs) % 2:
            raise DataError(f"columns: points needs x and y of each point, {len(theirs)} columns are not pairs")
        self.groups[name] = getters

    def _getter(self, ours: str, theirs: str) -> Getter:
        """The function that reads a column, or fills a template over columns such as "{ID}.png"."""
        if theirs in self.header:
            if self.header.count(theirs) > 1:
                raise DataError(f"{self.schema.path}: column {theirs!r} occurs {self.header.count(theirs)} times")
            place = self.header.index(theirs)
            return lambda cells: cells[place].strip()
        names = [name for _, name, _, _ in string.Formatter().parse(theirs) if name is not None]
        if not names:
            raise self._missing(ours, theirs)
        parts = {name: self._getter(ours, name) for name in names}
        return lambda cells: theirs.format(**{name: get(cells) for name, get in parts.items()})

    def _missing(self, ours: str, theirs: str) -> DataError:
        near = difflib.get_close_matches(theirs, self.header, 1, 0.4) or ["THEIRS"]
        separator = max((s for s in ",;\t|" if s != self.schema.sep), key=self.header[0].count)
        hint = f"map it with {self.schema.path},{ours}={near[0]}"
        if len(self.header) == 1 and separator in self.header[0]:
            hint = f"is the separator sep={separator!r}?"
        if ours == "only":
            hint = "`only` takes a column of the file"
        found = f"has no column {theirs!r} (our {ours!r}), only {', '.join(self.header)}"
        return DataError(f"{self.schema.path}: {found}; {hint}")

    def add(self, cells: list[str]) -> bool:
        """Append one row; False if it is filtered out or dropped. Raises DataError."""
        for column, get, wanted in self.filters:
            self.seen[column].add(get(cells))
            if get(cells) != wanted:
                return False
        row = {name: get(cells) for name, get in self.getters.items()}
        gap = next((name for name in REQUIRED if name in row and row[name].lower() in EMPTY), "")
        if gap and self.schema.empty != "drop":  # "keep" only concerns gaps in several labels
            raise DataError(f'{gap} is empty ({row[gap]!r}); fill it in, or leave such rows out by empty="drop"')
        codes = {} if gap else {name: self._code(name, row[name]) for name in self.codes}
        numbers = {} if gap else {name: _numbers(name, cells, group) for name, group in self.groups.items()}
        if gap or (self.schema.empty != "keep" and self._has_gap(cells, numbers.get("label", ()))):
            self.dropped += 1
            return False
        if "day" in row:
            self.days.append(_day(row["day"]))
        for name, code in codes.items():
            self.codes[name].append(code)
        for name, values in numbers.items():
            self.numbers[name].extend(values)
        for name, writer in self.texts.items():
            writer.append("" if name in ("mask", "fov") and row[name].lower() in EMPTY else row[name])
        return True

    def _has_gap(self, cells: list[str], labels: Sequence[float]) -> bool:
        """Whether one of several labels is empty, which is an error unless such rows are dropped."""
        gap = next((k for k, value in enumerate(labels) if math.isnan(value)), None)
        if gap is not None and self.schema.empty == "error":
            column, get = self.groups["label"][gap]
            hint = "empty='drop' leaves out such rows, 'keep' keeps gaps"
            raise DataError(f"label is empty ({get(cells)!r}) in {column}; {hint}")
        return gap is not None

    def _code(self, name: str, value: str) -> int:
        codes = self.values[name]
        if value not in codes:
            self._meanings(name, [value])  # raises for an unknown value, while the row is known
            codes[value] = len(codes)
        return codes[value]

    def _meanings(self, name: str, values: Iterable[str]) -> list[str] | None:
        """The modality, eye or given class that each value means; None for labels whose classes are not given."""
        if name == "modality":
            return [modality_name(value or self.schema.modality) for value in values]
        if name == "eye":
            return [eye_name(value) for value in values]
        classes = self.schema.classes
        return None if classes is None else [classes[class_index(value, classes)] for value in values]

    def finish(self) -> Table:
        """The finished table. Raises DataError if it has no rows."""
        path, rows = self.schema.path, len(self.places) // 2
        if self.dropped:
            logging.getLogger(__name__).warning("%s: left out %d rows with empty fields", path, self.dropped)
        if not rows:
            raise self._no_rows()
        codes: dict[str, Stored] = {}
        names: dict[str, tuple[str, ...]] = {}
        for name, values in self.values.items():
            index, names[name] = self._indices(name, values)
            kind = np.int8 if len(names[name]) < 128 else np.int32
            codes[name] = Stored(np.asarray(index, kind)[np.frombuffer(self.codes[name], np.int32)])
        if "label" in self.groups:
            columns = tuple(column for column, _ in self.groups["label"])
            names["label"] = self.schema.classes or columns
            if len(names["label"]) != len(columns):
                raise DataError(f"{path}: {len(names['label'])} classes for {len(columns)} label columns")
        if "day" in self.getters:
            codes["day"] = Stored(np.frombuffer(self.days, np.int64))
        return Table(
            Stored(np.frombuffer(self.places, np.uint32).reshape(rows, 2)),
            {name: writer.finish() for name, writer in self.texts.items()},
            codes,
            names,
            {name: Stored(np.frombuffer(n, np.float32).reshape(rows, -1)) for name, n in self.numbers.items()},
        )

    def _indices(self, name: str, values: Mapping[str, int]) -> tuple[list[int], tuple[str, ...]]:
        """(index into the names for each value, names): classes, or modalities and eyes in order of appearance."""
        if name == "label":
            classes = self.schema.classes or class_names(values, self.schema.path)
            return [class_index(value, classes) for value in values], classes
        meanings = self._meanings(name, values) or []
        names = tuple(dict.fromkeys(meanings))
        return [names.index(meaning) for meaning in meanings], names

    def _no_rows(self) -> DataError:
        for column, _, wanted in self.filters:
            if self.seen[column] and wanted not in self.seen[column]:
                values = ", ".join(sorted(self.seen[column])[:20])
                return DataError(f"{self.schema.path}: no row has {column} = {wanted!r}, it has {values}")
        return DataError(f"{self.schema.path}: has no rows" + (" left" if self.dropped or self.filters else ""))


def _numbers(name: str, cells: list[str], group: Sequence[tuple[str, Getter]]) -> list[float]:
    """The cells of a group as numbers; NaN where empty."""
    numbers = []
    for _, get in group:
        value = get(cells)
        try:
            numbers.append(math.nan if value.lower() in EMPTY else float(value))
        except ValueError as error:
            raise DataError(f"{name}: {value!r} is not a number") from error
    return numbers


def _day(value: str) -> int:
    for read in (int, lambda v: datetime.date.fromisoformat(v).toordinal()):
        try:
            return read(value)
        except ValueError:
            continue
    raise DataError(f"day: {value!r} is neither a whole number of days nor a date such as 2024-07-13")


def _whole(value: str) -> int | None:
    """The number in "3" and in "3.0", as pandas writes it."""
    match = re.fullmatch(r"(\d{1,9})(\.0*)?", value)
    return int(match.group(1)) if match else None


def class_names(values: Iterable[str], path: Path) -> tuple[str, ...]:
    """Class names from the labels of a file: numbers become 0..max including gaps, names are sorted."""
    values = list(values)
    numbers = [number for value in values if (number := _whole(value)) is not None]
    if len(numbers) < len(values):
        return tuple(sorted(values))
    if max(numbers) > MOST_CLASSES:
        raise DataError(f"{path}: label {max(numbers)} is not a class number")
    return tuple(str(number) for number in range(max(numbers) + 1))


def class_index(value: str, classes: Sequence[str]) -> int:
    """The index of a label, which is a class name or a class number. Raises DataError."""
    if value in classes:
        return classes.index(value)
    number = _whole(value)
    if number is not None and number < len(classes):
        return number
    near = difflib.get_close_matches(value, classes, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"label {value!r} is not one of the classes {', '.join(classes[:30])}{hint}")


def findings_of(targets: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that a label says are present."""
    if "label" not in targets:
        return ()
    label = targets["label"]
    present: list[int] = [int(label)] if label.ndim == 0 else np.flatnonzero(label > 0).tolist()
    if any(not 0 <= k < len(classes) for k in present):
        raise DataError(f"label {label} is beyond the {len(classes)} classes")
    return tuple(classes[k] for k in present)
