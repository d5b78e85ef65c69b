"""A CSV file of images, texts and labels read into columns, with one clear line for whatever is wrong in it."""

from __future__ import annotations

import csv
import datetime
import difflib
import logging
import math
import re
import string
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, eye_name, modality_name
from data_pipelines.sources.columns import Stored, Strings, StringWriter

# our names; a group (label, points, value) may be several columns of theirs
TEXTS = ("image", "text", "patient", "mask", "fov")


ON_REQUEST = ("mask", "fov", "points", "value")  # read only where `columns` asks for them; fov also with a mask


NAMES = (*TEXTS, "label", "modality", "eye", "day", "points", "value")


EMPTY = {"", "nan", "null", "na", "n/a", "<na>"}  # how pandas, R and SQL write that there is nothing


MOST_CLASSES = 100_000  # numbers above this are no classes


Getter = Callable[[list[str]], str]


Columns = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class Layout:
    """How to read the file; see `sources.csv_source` for the fields."""

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
    """The columns of a file: strings, codes (an index into `names`), numbers f32 [rows n].

    `places` u32 [rows 2]: where each row is, as a data row from 1 and a line (rows may have been left out).
    """

    places: Stored
    texts: dict[str, Strings]
    codes: dict[str, Stored]
    names: dict[str, tuple[str, ...]]
    numbers: dict[str, Stored]

    def __len__(self) -> int:
        return len(self.places.array)


def read_table(layout: Layout) -> Table:
    """Reads the whole file in one pass. Raises DataError naming the file and its row, line or columns."""
    rows = _rows(layout)
    header = next(rows, (0, 0, []))[2]
    if not header:
        raise DataError(f"{layout.path}: the file is empty, its first line should name columns")
    columns = _Columns(layout, header)
    for number, line, cells in rows:
        try:
            columns.add(number, line, cells)
        except DataError as error:
            raise DataError(f"{where(layout.path, number, line)}: {error}") from error
    return columns.finish()


def where(path: Path, row: int, line: int) -> str:
    """What messages call a row: its number from 1 without the header, and the line of the file where it starts."""
    return f"{path} row {row} (line {line})"


def _rows(layout: Layout) -> Iterator[tuple[int, int, list[str]]]:
    """(row from 1, its first line, cells); row 0 is the header. Empty lines are passed over."""
    number, line = 0, 1
    encoding = "utf-8-sig" if layout.encoding.lower().replace("-", "") == "utf8" else layout.encoding
    try:
        with layout.path.open(newline="", encoding=encoding) as file:
            reader = csv.reader(file, delimiter=layout.sep, strict=True)
            for cells in reader:
                if cells:
                    yield number, line, cells
                    number += 1
                line = reader.line_num + 1
    except FileNotFoundError as error:
        raise DataError(f"{layout.path}: no such file") from error
    except OSError as error:
        raise DataError(f"{layout.path}: cannot be opened ({error.strerror})") from error
    except UnicodeError as error:
        raise DataError(
            f"{layout.path}: is not {layout.encoding} ({error}); name its encoding, such as encoding='gb18030'"
        ) from error
    except csv.Error as error:
        raise DataError(f"{where(layout.path, number, line)}: {error}; is a quotation mark left open?") from error


@dataclass
class _Columns:
    """The columns while they grow."""

    layout: Layout
    header: list[str]
    getters: dict[str, Getter] = field(default_factory=dict)
    groups: dict[str, list[Getter]] = field(default_factory=dict)
    group_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        self.header = [name.strip() for name in self.header]
        given = dict(self.layout.columns)
        for name in NAMES:
            asked = name not in ON_REQUEST or (name == "fov" and bool(given.get("mask")))
            found = name in self.header and asked
            theirs = given.get(name, name if found else "")
            if not theirs:
                if name == "image" or name in self.layout.require:
                    raise self._missing(name, name)
            elif isinstance(theirs, tuple) and name == "mask":
                masks = [self._getter(name, column) for column in theirs]
                self.getters[name] = lambda cells, masks=masks: "\n".join(get(cells) for get in masks)
            elif isinstance(theirs, tuple) or name in ("points", "value"):
                self._add_group(name, (theirs,) if isinstance(theirs, str) else theirs)
            else:
                self.getters[name] = self._getter(name, theirs)
        self.filters = [(column, self._getter("only", column), value) for column, value in self.layout.only]
        self.seen: dict[str, set[str]] = {column: set() for column, _ in self.layout.only}
        self.places = array("I")
        self.texts = {name: StringWriter() for name in TEXTS if name in self.getters}
        self.codes = {name: array("i") for name in ("label", "modality", "eye") if name in self.getters}
        self.days = array("q")
        self.values: dict[str, dict[str, int]] = {name: {} for name in self.codes}
        self.numbers = {name: array("f") for name in self.groups}

    def _add_group(self, name: str, theirs: tuple[str, ...]) -> None:
        if name not in ("label", "points", "value"):
            raise DataError(f"columns: {name} is one column, not {len(theirs)}")
        if name == "points" and len(theirs) % 2:
            raise DataError(f"columns: points needs x and y of each point, {len(theirs)} columns are not pairs")
        self.groups[name] = [self._getter(name, column) for column in theirs]
        self.group_names[name] = theirs

    def _getter(self, ours: str, theirs: str) -> Getter:
        """A column, or a template over columns such as "{ID}.png"."""
        if theirs in self.header:
            if self.header.count(theirs) > 1:
                raise DataError(f"{self.layout.path}: column {theirs!r} occurs {self.header.count(theirs)} times")
            place = self.header.index(theirs)
            return lambda cells: cells[place].strip()
        parts = [name for _, name, _, _ in string.Formatter().parse(theirs) if name is not None]
        if not parts:
            raise self._missing(ours, theirs)
        filled = {name: self._getter(ours, name) for name in parts}
        return lambda cells: theirs.format(**{name: get(cells) for name, get in filled.items()})

    def _missing(self, ours: str, theirs: str) -> DataError:
        near = difflib.get_close_matches(theirs, self.header, 1, 0.4) or ["THEIRS"]
        separators = {s: self.header[0].count(s) for s in ",;\t|" if s != self.layout.sep}
        separator = max(separators, key=lambda s: separators[s])
        hint = f"say which it is: {self.layout.path},{ours}={near[0]}"
        if len(self.header) == 1 and separators[separator]:
            hint = f"is the separator sep={separator!r}?"
        if ours == "only":
            hint = "`only` takes a column of the file"
        return DataError(
            f"{self.layout.path}: has no column {theirs!r} (our {ours!r}), only {', '.join(self.header)}; {hint}"
        )

    def add(self, number: int, line: int, cells: list[str]) -> None:
        """One row, or DataError."""
        if len(cells) != len(self.header):
            raise DataError(f"has {len(cells)} fields, the header has {len(self.header)}")
        for column, get, wanted in self.filters:
            self.seen[column].add(get(cells))
            if get(cells) != wanted:
                return
        row = {name: get(cells) for name, get in self.getters.items()}
        for name in ("image", "text", "label", "patient"):
            if row.get(name, "x").lower() in EMPTY:
                if self.layout.empty == "drop":  # "keep" is for gaps in several labels
                    self.dropped += 1
                    return
                raise DataError(f'{name} is empty ({row[name]!r}); fill it in, or leave such rows out by empty="drop"')
        codes = {name: self._code(name, row[name]) for name in self.codes}
        numbers = {name: [_number(name, get(cells)) for get in group] for name, group in self.groups.items()}
        gap = next((k for k, value in enumerate(numbers.get("label", ())) if math.isnan(value)), None)
        if gap is not None and self.layout.empty == "drop":
            self.dropped += 1
            return
        if gap is not None and self.layout.empty == "error":
            written, column = self.groups["label"][gap](cells), self.group_names["label"][gap]
            raise DataError(
                f"label is empty ({written!r}) in {column}; empty='drop' leaves out such rows, 'keep' keeps gaps"
            )
        if "day" in row:
            self.days.append(_day(row["day"]))
        for name, code in codes.items():
            self.codes[name].append(code)
        for name, found in numbers.items():
            self.numbers[name].extend(found)
        for name, writer in self.texts.items():
            writer.append("" if name in ("mask", "fov") and row[name].lower() in EMPTY else row[name])
        self.places.extend((number, line))

    def _code(self, name: str, value: str) -> int:
        known = self.values[name]
        if value not in known:
            if name == "modality":
                modality_name(value or self.layout.modality)
            elif name == "eye":
                eye_name(value)
            elif self.layout.classes is not None:
                class_index(value, self.layout.classes)
            known[value] = len(known)
        return known[value]

    def finish(self) -> Table:
        """The table; DataError where nothing is left."""
        path = self.layout.path
        if self.dropped:
            logging.getLogger(__name__).warning("%s: left out %d rows with empty fields", path, self.dropped)
        if not self.places:
            for column, _, wanted in self.filters:
                if self.seen[column] and wanted not in self.seen[column]:
                    values = ", ".join(sorted(self.seen[column])[:20])
                    raise DataError(f"{path}: no row has {column} = {wanted!r}, it has {values}")
            raise DataError(f"{path}: has no rows" + (" left" if self.dropped or self.filters else ""))
        rows = len(self.places) // 2
        codes, names = self._final_codes()
        numbers = {name: Stored(np.frombuffer(n, np.float32).reshape(rows, -1)) for name, n in self.numbers.items()}
        if "day" in self.getters:
            codes["day"] = Stored(np.frombuffer(self.days, np.int64))
        texts = {name: writer.finish() for name, writer in self.texts.items()}
        places = Stored(np.frombuffer(self.places, np.uint32).reshape(rows, 2))
        return Table(places, texts, codes, names, numbers)

    def _final_codes(self) -> tuple[dict[str, Stored], dict[str, tuple[str, ...]]]:
        """Codes in the order in which values came, made indices into classes, modalities and eyes."""
        codes: dict[str, Stored] = {}
        names: dict[str, tuple[str, ...]] = {}
        for name, values in self.values.items():
            if name == "label":
                names[name] = self.layout.classes or class_names(values, self.layout.path)
                index = [class_index(value, names[name]) for value in values]
            elif name == "modality":
                meant = [modality_name(value or self.layout.modality) for value in values]
                names[name] = tuple(dict.fromkeys(meant))
                index = [names[name].index(value) for value in meant]
            else:
                meant = [eye_name(value) for value in values]
                names[name] = tuple(dict.fromkeys(meant))
                index = [names[name].index(value) for value in meant]
            kind = np.int8 if len(names[name]) < 128 else np.int32
            codes[name] = Stored(np.asarray(index, kind)[np.frombuffer(self.codes[name], np.int32)])
        if "label" in self.groups:
            names["label"] = self.layout.classes or self.group_names["label"]
            if len(names["label"]) != len(self.groups["label"]):
                raise DataError(
                    f"{self.layout.path}: {len(names['label'])} classes for {len(self.groups['label'])} label columns"
                )
        return codes, names


def _number(name: str, value: str) -> float:
    if value.lower() in EMPTY:
        return float("nan")
    try:
        return float(value)
    except ValueError as error:
        raise DataError(f"{name}: {value!r} is not a number") from error


def _day(value: str) -> int:
    for read in (int, lambda v: datetime.date.fromisoformat(v).toordinal()):
        try:
            return read(value)
        except ValueError:
            continue
    raise DataError(f"day: {value!r} is neither a whole number of days nor a date such as 2024-07-13")


def _whole(value: str) -> int | None:
    """The number of "3" and of pandas' "3.0"."""
    match = re.fullmatch(r"(\d{1,9})(\.0*)?", value)
    return int(match.group(1)) if match else None


def class_names(values: Mapping[str, Any] | Sequence[str], path: Path) -> tuple[str, ...]:
    """Classes from the labels found: numbers stay what they are (0..max, gaps included), names are sorted."""
    numbers = [_whole(value) for value in values]
    if any(number is None for number in numbers):
        return tuple(sorted(values))
    highest = max(number for number in numbers if number is not None)
    if highest > MOST_CLASSES:
        raise DataError(f"{path}: label {highest} is no class number")
    return tuple(str(number) for number in range(highest + 1))


def class_index(value: str, classes: Sequence[str]) -> int:
    """The index of a label: a class name, or its number. Raises DataError."""
    if value in classes:
        return classes.index(value)
    number = _whole(value)
    if number is not None and number < len(classes):
        return number
    near = difflib.get_close_matches(value, classes, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"label {value!r} is not one of the classes {', '.join(classes[:30])}{meant}")
