"""The one rule for labels, whatever source they come from.

A class is known by its name. Case, width, and spaces or underscores do not matter: "Normal" and "normal" are one class,
called as most rows spell it. Words are sorted; whole numbers are codes 0 to the highest, and name nothing (`named`). A
number below 0, such as -1, means not labelled. A finding of several is 1, 0 or a gap.
"""

from __future__ import annotations

import difflib
import functools
import logging
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError
from data_pipelines.sources.tables import is_empty

_log = logging.getLogger(__name__)

NOT_LABELLED = -1
MOST_CLASSES = 100_000  # a larger number is not a class
GAP = "gap"  # the word for a missing value in `values`


def folded(name: str) -> str:
    """The form in which class names are compared: "No_DR", "no dr" and "no-DR" are the same, "grade -1" is "grade -1"."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")
    return " ".join(re.sub(r"(?<=\w)-(?=\w)", " ", plain.replace("_", " ")).split())


def named(classes: Sequence[str]) -> bool:
    """Whether all classes have names that can be asked for in words; False if one is a number, or if there are none."""
    return bool(classes) and not any(_is_number(name) for name in classes)


def whole(value: str) -> int | None:
    """The number in "3" and in "3.0", as pandas writes it; None for anything else."""
    match = re.fullmatch(r"(\d{1,9})(\.0*)?", value)
    return int(match.group(1)) if match else None


def unlabelled(value: str) -> bool:
    """Whether a label is a number below 0, which means not labelled."""
    return re.fullmatch(r"[-−]\d{1,9}(\.0*)?", value) is not None and float(value.replace("−", "-")) < 0


class Classes:
    """Class names in order, and the index of each label. Raises DataError for names that are empty or occur twice."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.named = named(self.names)
        self.places: dict[str, int] = {}
        for place, name in enumerate(self.names):
            if not folded(name):
                raise DataError(f"classes {'+'.join(self.names[:30])}: name {place + 1} is empty")
            first = self.places.setdefault(folded(name), place)
            if first != place:
                raise DataError(f"classes: {self.names[first]!r} and {name!r} are the same class")

    def __contains__(self, value: str) -> bool:
        return folded(value) in self.places

    def index(self, value: str) -> int:
        """The index of a label: a class name, or the number of a class if the classes have names.

        NOT_LABELLED for a number below 0. Raises DataError for any other label.
        """
        if (place := self.places.get(folded(value))) is not None:
            return place
        if unlabelled(value):
            return NOT_LABELLED
        number = whole(value)
        if number is not None and str(number) in self.places:  # "3.0" and "03" of the class "3"
            return self.places[str(number)]
        if number is not None and self.named and number < len(self.names):
            return number
        near = difflib.get_close_matches(folded(value), list(self.places)[:1000], 1)
        hint = f"; did you mean {self.names[self.places[near[0]]]!r}?" if near else ""
        known = ", ".join(self.names[:30]) or "(none are given; name them with classes=)"
        raise DataError(f"label {value!r} is not one of the classes {known}{hint}")


@functools.lru_cache(maxsize=16)
def lookup(names: tuple[str, ...]) -> Classes:
    """Classes(names), made once."""
    return Classes(names)


def class_names(counts: Mapping[str, int], place: str) -> tuple[str, ...]:
    """Class names from the labels of a source and how often each occurs. Raises DataError naming `place`.

    Logs in one line what was not as expected: several spellings, numbers among words, numbers that no row has.
    """
    counts = {value: count for value, count in counts.items() if not unlabelled(value)}
    if not counts:
        raise DataError(f"{place}: no row has a label")
    numbers = {number for value in counts if (number := whole(value)) is not None}
    if all(whole(value) is not None for value in counts):
        return _codes(numbers, place)
    spellings: dict[str, list[str]] = {}
    for value in sorted(counts, key=lambda value: (-counts[value], value)):
        spellings.setdefault(folded(value), []).append(value)
    for same in [same for same in spellings.values() if len(same) > 1][:20]:
        warn_line(_log, "%s: the labels %s are one class, %r", place, " and ".join(map(repr, same)), same[0])
    if numbers:
        warn_line(_log, "%s: labels are words and also numbers (%s)", place, _some(map(str, sorted(numbers))))
    if len(spellings) > max(20, sum(counts.values()) // 2):
        warn_line(_log, "%s: has %d classes in %d rows; is it a text?", place, len(spellings), sum(counts.values()))
    return tuple(sorted(same[0] for same in spellings.values()))


def _codes(numbers: set[int], place: str) -> tuple[str, ...]:
    top = max(numbers)
    absent = top + 1 - len(numbers)
    if top > MOST_CLASSES or absent > 100 + 10 * len(numbers):
        raise DataError(f"{place}: label {top} is not a class number ({len(numbers)} different numbers)")
    if absent:
        missing = _some(str(k) for k in range(top + 1) if k not in numbers)
        warn_line(_log, "%s: labels are numbers up to %d, and no row has %s", place, top, missing)
    return tuple(str(number) for number in range(top + 1))


def check_label(value: str) -> None:
    """Raise DataError for a single label that is a number, but no class number."""
    if whole(value) is None and not unlabelled(value) and _is_number(value):
        raise DataError(f"label {value!r} is not a class number; value=COLUMN reads numbers to predict")


def finding(value: str) -> float:
    """1 or 0 for a finding that is present or absent, NaN for a gap. Raises DataError for anything else."""
    if is_empty(value) or value == GAP:
        return math.nan
    known = {"true": 1.0, "false": 0.0}.get(value.lower())
    try:
        number = known if known is not None else float(value)
    except ValueError:
        number = math.nan
    if number not in (0, 1):
        raise DataError(f"{value!r}; expected 0, 1 or nothing; map other values with values={value}:{GAP}+...")
    return number


def findings_of(targets: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that a label says are present; none for a row that is not labelled."""
    if "label" not in targets:
        return ()
    label = np.asarray(targets["label"])
    present: list[int] = [int(label)] * bool(label >= 0) if label.ndim == 0 else np.flatnonzero(label > 0).tolist()
    if any(k >= len(classes) for k in present):
        raise DataError(f"label {label} is beyond the {len(classes)} classes")
    return tuple(classes[k] for k in present)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _some(words: Any, most: int = 10) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
