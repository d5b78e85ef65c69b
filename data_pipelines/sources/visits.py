"""Dates, and patients and eyes parsed from file names."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any

from data_pipelines.records import DataError, eye_name

_DATE = re.compile(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?(?:[ T].*)?")
_COMPACT = re.compile(r"(\d{4})(\d{2})(\d{2})(?:\d{6}(?:\.\d+)?)?(?:\.0*)?")  # DICOM's DA and DT; pandas adds .0
_DAYS = re.compile(r"([-+]?\d{1,5})(?:\.0*)?")
# an eye in a file's name: a word of its own, or a single capital letter after a number, as in Image_01L
_EYE = re.compile(r"(?:^|(?<=[\W_]))(?:left|right|os|od|l|r)(?=$|[\W_])|(?<=\d)[LR](?=$|[\W_])", re.I)


def day(value: Any) -> tuple[int, bool]:
    """(day, whether it was written as a date). A date is 2024-07-31, 2024/7/31 or 20240731; a number counts days.

    Raises DataError for anything else: 31/07/2024, a month, a year and month (202407), a fraction of a day.
    """
    if isinstance(value, datetime.date):  # also a datetime and pandas' Timestamp
        return value.toordinal(), True
    text = str(value).strip()
    if date := _DATE.fullmatch(text) or _COMPACT.fullmatch(text):
        try:
            return datetime.date(*map(int, date.groups())).toordinal(), True
        except ValueError:
            raise DataError(f"day: {text!r} is not a date that exists") from None
    if days := _DAYS.fullmatch(text):
        return int(days[1]), False
    raise DataError(f"day: {text!r} is neither a date such as 2024-07-31 or 20240731 nor a whole number of days")


def patient_of(image: str, pattern: str = "") -> str:
    """The patient in the path of an image.

    Without a pattern, what stands before the eye in the name of the file ("10_left.png" and "10_right.png": 10; left,
    right, OS, OD, L or R as a word, or a letter after a number, as in 01L), what stands behind it where nothing stands
    before, and the whole name without an eye. With a regular expression, its first group, or all it matches. Raises
    DataError if the pattern does not match.
    """
    stem = re.sub(r"\.\w{1,5}$", "", image.rsplit("/", 1)[-1])
    if pattern:
        match = re.search(pattern, stem)
        found = match and (match.group(1) if match.re.groups else match.group())
        if not found:
            raise DataError(f"patient: {pattern!r} does not match the name {stem!r}")
        return found
    match = _EYE.search(stem)
    if match is None:
        return stem
    return stem[: match.start()].rstrip("_-. ") or stem[match.end() :].lstrip("_-. ") or stem


def looks_paired(images: Iterable[str]) -> tuple[str, str] | None:
    """Two images whose names differ only in the eye, such as 10_left.png and 10_right.png; None if there are none."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for image in images:
        stem = image.rsplit("/", 1)[-1]
        if match := _EYE.search(stem):
            key, side = (stem[: match.start()], stem[match.end() :]), eye_name(match.group())
            other = seen.setdefault(key, (side, image))
            if other[0] != side:
                return other[1], image
    return None
