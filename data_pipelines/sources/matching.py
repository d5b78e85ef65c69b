"""Match the labels, findings and values of a source to given names: by name, never by position."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.columns import Indexed, Stored, read_once
from data_pipelines.sources.labels import findings_of, folded
from data_pipelines.sources.splits import hashes_of, patients_of

_log = logging.getLogger(__name__)


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """The names in a list of NAME and CODE:NAME, each once: h:healthy g:glaucoma s:glaucoma are healthy, glaucoma."""
    return tuple(dict.fromkeys(_parts(word)[1] for word in given))


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers, which say nothing to a text model and have an order of their own."""
    return bool(names) and all(name.replace(".", "", 1).isdigit() for name in names)


def places(own: Sequence[str], given: Sequence[str]) -> np.ndarray:
    """Index i64 [own] in `given` (NAME or CODE:NAME) of each of a source's names, or -1.

    Capitals, underscores and repeated spaces do not matter.
    """
    names, found = names_of(given), {}
    for word in given:
        code, name = _parts(word)
        for spelling in (code, name):
            found.setdefault(folded(spelling), names.index(name))
    return np.array([found.get(folded(name), -1) for name in own], np.int64)


@dataclass(frozen=True)
class Matched(Indexed):
    """A source whose labels or values are numbered by given names.

    A record's label becomes the index of its class in `classes`. With several labels, or with values, each column moves to the
    place of its name, and names that the source lacks are NaN. Rows of a class that is not among the given names are left
    out, and reported once; an error instead if `strict`.

    Args:
        source: a source with `classes`, or with values whose names are `own`.
        given: NAME or CODE:NAME of each class in order; CODE is the source's own word for it.
        called: name of the source in messages.
        target: label, or value.
        own: names of the source's values; () takes its classes.
        strict: whether a class of the source that is not given is an error.

    The first use raises DataError if none of the names is the source's.
    """

    source: Source
    given: tuple[str, ...]
    called: str
    target: str = "label"
    own: tuple[str, ...] = ()
    strict: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; those of the source itself where values are matched."""
        return names_of(self.given) if self.target == "label" else tuple(getattr(self.source, "classes", ()))

    @read_once
    def names(self) -> tuple[str, ...]:
        """The source's own names."""
        return self.own or tuple(getattr(self.source, "classes", ()))

    @read_once
    def places(self) -> np.ndarray:
        """Index i64 [names] of each of the source's own names."""
        found, names = places(self.names, self.given), names_of(self.given)
        if (found < 0).all():
            own, some = ", ".join(self.names) or "no names", self.names[:3] or ("CODE",)
            more = "..." if len(self.names) > len(some) else ""
            option = f"classes={'+'.join(f'{name}:NAME' for name in some)}{more} as an option of the source"
            flags = f"--classes {' '.join(f'{name}:NAME' for name in some)}{more}"
            raise DataError(
                f"{self.called}: its {self._what} are {own}; none of them is one of {', '.join(names)}; "
                f"say which is which: {option if self.target == 'label' else flags}"
            )
        if absent := [name for k, name in enumerate(names) if k not in found]:
            warn_line(_log, "%s: has no %s %s", self.called, self._what, ", ".join(absent))
        return found

    @read_once
    def chosen(self) -> Stored:
        """The rows of the source that are kept."""
        unknown, rows = np.flatnonzero(self.places < 0), np.arange(len(self.source))
        if not len(unknown) or not len(rows):
            return Stored(rows)
        names = [self.names[int(k)] for k in unknown]
        if self.target == "value" or np.ndim(self.source[0].targets.get("label", 0)):
            self._refuse(names)
            warn_line(_log, "%s: %s that are not used: %s", self.called, self._what, ", ".join(names))
            return Stored(rows)
        labels = np.array([int(self.source[row].targets.get("label", -1)) for row in range(len(rows))])
        counts = {self.names[k]: int((labels == k).sum()) for k in unknown}
        counted = [f"{name} ({count} rows)" for name, count in counts.items() if count]
        if counted:
            self._refuse(counted)
            left = "%s: rows of classes that are not among %s are left out: %s"
            warn_line(_log, left, self.called, ", ".join(names_of(self.given)), ", ".join(counted))
        kept = rows[~np.isin(labels, unknown)]
        if not len(kept):
            raise DataError(f"{self.called}: has no row of the classes {', '.join(names_of(self.given))}")
        return Stored(kept)

    def _refuse(self, unknown: Sequence[str]) -> None:
        if self.strict:
            raise DataError(
                f"{self.called}: has the {self._what} {', '.join(unknown)}, which are not among "
                f"{', '.join(names_of(self.given))}; add them, or leave them out by the option others=drop of the source"
            )

    @property
    def _what(self) -> str:
        return "classes" if self.target == "label" else "values"

    @property
    def rows(self) -> np.ndarray:
        """Row numbers i64 in the source."""
        return self.chosen.array

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        record = self.source[int(self.rows[index])]
        if self.target not in record.targets:
            return record
        targets = {**record.targets, self.target: self._moved(record)}
        if self.target == "value":
            return replace(record, targets=targets)
        unlabelled = np.ndim(targets["label"]) == 0 and targets["label"] < 0
        return replace(record, targets=targets, findings=() if unlabelled else findings_of(targets, self.classes))

    def _moved(self, record: Record) -> Any:
        own = np.asarray(record.targets[self.target])
        if own.ndim == 0:
            return np.int32(self.places[int(own)]) if own >= 0 else np.int32(-1)
        if len(own) != len(self.places):
            raise DataError(f"{record.where or self.called}: has {len(own)} {self._what} for {len(self.places)} names")
        moved = np.full(len(names_of(self.given)), np.nan, np.float32)
        for place, value in zip(self.places, own, strict=True):
            if place >= 0:
                moved[place] = value
        return moved

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [rows] of each row's patient or other key, for split_by."""
        return hashes_of(self.source, key, seed)[self.rows]

    def patients(self) -> list[str]:
        """The patient of each row."""
        own = patients_of(self.source)
        return [own[row] for row in self.rows]


def _parts(word: str) -> tuple[str, str]:
    code, colon, name = word.partition(":")
    return (code.strip(), name.strip()) if colon else (word.strip(), word.strip())
