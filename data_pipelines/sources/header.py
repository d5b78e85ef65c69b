"""Roles of table columns: columns by name, templates over columns, and the log line that lists what is read."""

from __future__ import annotations

import difflib
import logging
import operator
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError
from data_pipelines.sources.labels import whole
from data_pipelines.sources.tables import SEPARATORS, is_empty

_log = logging.getLogger(__name__)

Getter = Callable[[list[str]], str]

# what others call our columns; a table that has one of these gets a hint
OTHER_NAMES = {
    "image": ("image_id", "image_path", "imageid", "file", "filename", "file_name", "path", "img", "id_code", "photo"),
    "text": ("report", "caption", "description", "text_en", "text_zh", "finding", "impression", "diagnosis_text"),
    "label": ("class", "grade", "diagnosis", "category", "severity", "level", "target", "retinopathy_grade", "dx"),
    "patient": ("patient_id", "patientid", "pid", "subject", "subject_id", "group", "case", "person", "id"),
    "eye": ("side", "laterality", "eye_side", "exam_eye", "od_os"),
    "modality": ("imaging", "image_type", "exam_type"),
    "day": ("date", "visit", "study_date", "studydate", "exam_date", "visit_date"),
}
_NUMBER = re.compile(r"(0?)(\d{1,2})d")  # {id:04d}
_ALIGNED = re.compile(r"(.?)([<>^])(\d{1,2})")  # {id:0>4}


@dataclass(frozen=True)
class Header:
    """The column names of a file, and how a row's cells are found by them. Raises DataError naming the file."""

    path: Path
    names: tuple[str, ...]

    def getter(self, ours: str, theirs: str) -> Getter:
        """The function that reads a column, or fills a template over columns such as "{ID}.png" or "{ID:04d}.png".

        A template with an empty part is empty as a whole.
        """
        if theirs in self.names:
            if self.names.count(theirs) > 1:
                raise DataError(f"{self.path}: column {theirs!r} occurs {self.names.count(theirs)} times")
            return operator.itemgetter(self.names.index(theirs))
        parts = parsed(theirs)
        if not any(name is not None for _, name, _ in parts):
            raise self.missing(ours, theirs)
        filled = [(text, self.getter(ours, name) if name else None, name, spec) for text, name, spec in parts]

        def fill(cells: list[str]) -> str:
            words = []
            for text, get, name, spec in filled:
                value = get(cells) if get else ""
                if get and is_empty(value):
                    return ""
                words += [text, formatted(value, spec, name or "", tidy=ours != "text")]
            return "".join(words)

        return fill

    def missing(self, ours: str, theirs: str) -> DataError:
        """The error of a column that the file does not have, with the nearest name it has."""
        others = list(filter(None, self.names))
        shown = ", ".join(others[:30]) + (f" and {len(others) - 30} more" if len(others) > 30 else "")
        problem = f"{self.path}: has no column {theirs!r} (our {ours!r}), only {shown}"
        if ours == "only":
            return DataError(f"{problem}; `only` takes a column of the file")
        if sep := next((f"sep={word}" for word, sign in SEPARATORS.items() if sign in others[0]), ""):
            return DataError(f"{problem}; is the separator {sep}?")
        lower = {name.lower(): name for name in reversed(others)}
        near = difflib.get_close_matches(theirs.lower(), list(lower), 1, 0.5)
        known = [lower[name] for name in (ours, *OTHER_NAMES.get(ours, ())) if name in lower]
        guess = lower[near[0]] if near else known[0] if known else "THEIRS"
        return DataError(f"{problem}; map it with {self.path.name},{ours}={guess}")

    def used(self, theirs: str) -> set[str]:
        """The columns that a column name or a template reads."""
        return {theirs} if theirs in self.names else {name for _, name, _ in parsed(theirs) if name}

    def describe(self, read: Mapping[str, Sequence[str]], assumed: Sequence[str] = ()) -> None:
        """Log in one line which columns are read (our name -> theirs), which are ignored, and what is assumed."""
        shown = [
            ours if [ours] == list(theirs) else f"{ours} ({_listed(theirs) or 'from the name of the image'})"
            for ours, theirs in read.items()
        ]
        taken = {name for theirs in read.values() for one in theirs for name in self.used(one)}
        ignored = [self._hint(name, read) for name in self.names if name and name not in taken]
        ignored.sort(key=lambda text: "=" not in text)  # what may have been meant comes first
        line = f"{self.path}: reads {_listed(shown)}"
        line += f"; ignores {_listed(ignored)}" if ignored else ""
        line += f"; assumes {_listed(assumed)}" if assumed else ""
        if ignored or assumed:
            warn_line(_log, "%s", line)
        else:
            _log.info("%s", line)

    def _hint(self, name: str, read: Mapping[str, Sequence[str]]) -> str:
        plain = re.sub(r"[\s_-]+", "_", name.lower())
        ours = next((ours for ours, others in OTHER_NAMES.items() if plain in (ours, f"{ours}s", *others)), "")
        return f"{name} ({ours}={name} reads it)" if ours and ours not in (name, *read) else name


def parsed(template: str) -> list[tuple[str, str | None, str]]:
    """(text, column or None, format) of each part of a template. Raises DataError for one that is malformed."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write {{COLUMN}}, and {{{{ for a brace") from None
    for _, name, spec, conversion in parts:
        if name == "":
            raise DataError(f"template {template!r}: {{}} names no column; write {{COLUMN}}")
        if conversion or (spec and not _NUMBER.fullmatch(spec) and not _ALIGNED.fullmatch(spec)):
            wrong = f"!{conversion}" if conversion else f":{spec}"
            raise DataError(f"template {template!r}: {wrong!r} is not supported; expected such as {{{name}:04d}}")
    return [(text, name, spec or "") for text, name, spec, _ in parts]


def formatted(value: str, spec: str, name: str, *, tidy: bool) -> str:
    """A cell in the format of a template. `tidy` writes the whole number "7.0" as "7". Raises DataError for other text."""
    number = whole(value)
    if match := _NUMBER.fullmatch(spec):
        if number is None:
            raise DataError(f"{name} is {value!r}, expected a whole number for {{{name}:{spec}}}")
        return str(number).rjust(int(match[2]), match[1] or " ")
    if tidy and number is not None and "." in value:
        value = str(number)
    if match := _ALIGNED.fullmatch(spec):
        fill, width = match[1] or " ", int(match[3])
        return {"<": value.ljust, ">": value.rjust, "^": value.center}[match[2]](width, fill)
    return value


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
