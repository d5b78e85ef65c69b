"""Parsing of table cells: files, numbers, patients, days and labels."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Mapping

from data_pipelines.records import DataError
from data_pipelines.sources.labels import GAP, Classes
from data_pipelines.sources.tables import EMPTY, is_empty
from data_pipelines.sources.visits import day

MAPPED_GAP = "\0gap"  # no cell of a table is equal to it
_LONGEST = max(map(len, EMPTY))


def any_empty(column: Iterable[str]) -> bool:
    """Whether a cell of a column is one of the ways to write a missing value."""
    return any(len(cell) <= _LONGEST and cell.lower() in EMPTY for cell in column)


def without_empty(column: Iterable[str]) -> list[str]:
    """The cells of a column, with "" for every way to write a missing value."""
    return ["" if len(cell) <= _LONGEST and cell.lower() in EMPTY else cell for cell in column]


def from_name(theirs: str) -> bool:
    """Whether an option takes the patient from the image's name: "name", or "name:" and a regular expression."""
    if theirs.startswith("name:"):
        try:
            re.compile(theirs[5:])
        except re.error as error:
            raise DataError(f"patient={theirs}: is not a regular expression ({error})") from None
    return theirs == "name" or theirs.startswith("name:")


def without_point(number: str) -> str:
    """Shorten "7.0" to "7": pandas writes integers as floats if a column has gaps."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", number) if "." in number else number


def as_file(path: str) -> str:
    """Convert the separators of a Windows path."""
    return path.replace("\\", "/")


def as_number(value: str) -> float:
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


def lacks_label(label: str, classes: Classes | None) -> bool:
    """Whether a label is a word for a missing value. "none" is not: it is a usual name of a grade."""
    return is_empty(label) and label.lower() != "none" and not (classes is not None and label in classes)


def mapped(label: str, values: Mapping[str, str]) -> str:
    """Map a label by the option `values`; MAPPED_GAP for a value that is mapped to a gap."""
    if not values:
        return label
    meaning = values.get(label, values.get(without_point(label), label))
    return MAPPED_GAP if meaning == GAP and label != GAP else meaning


class Days:
    """The days of a column, which are all dates or all numbers of days."""

    def __init__(self) -> None:
        self.found = array("q")
        self.dated: bool | None = None
        self._parsed: dict[str, int] = {}

    def number(self, value: str) -> int:
        """The day that a cell means. Raises DataError if dates and numbers of days are mixed."""
        if (known := self._parsed.get(value)) is not None:
            return known
        number, dated = day(value)
        if self.dated not in (None, dated):
            kinds = ("numbers of days", "dates")
            raise DataError(f"day: {value!r} is among {kinds[not dated]}; a column has one of both")
        self.dated = dated
        self._parsed[value] = number
        return number
