"""Parts of a source: chosen rows, and splits that keep every patient whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.columns import Stored, read_once, text_hash
from data_pipelines.records import DataError, Record, Source


def select(source: Source, rows: Iterable[int] | Callable[[Record], bool]) -> Subset:
    """The given rows of a source, in their order; or those whose record a function says yes to (images unread)."""
    chosen = (row for row in range(len(source)) if rows(source[row])) if callable(rows) else rows
    array = np.fromiter(chosen, np.int64)
    if array.size and not -len(source) <= array.min() <= array.max() < len(source):
        raise DataError(f"rows {array.min()}..{array.max()} are not all within the {len(source)} of the source")
    return Subset(source, Stored(array))


@dataclass(frozen=True)
class Subset:
    """Rows of another source."""

    source: Source
    chosen: Stored

    @property
    def rows(self) -> np.ndarray:
        """i64: the rows of the other source."""
        return self.chosen.array

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the source: a class absent here keeps its number."""
        return tuple(getattr(self.source, "classes", ()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.rows[index])]


def split_by(
    source: Source, key: str = "patient", fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, Part]:
    """Named parts that share no patient: {"train": .8, "val": .1, "test": .1} unless told otherwise.

    Patients are put in the order of a hash of their name and the seed, and cut where the rows reach each fraction:
    the same whatever the order of the rows, the machine or the number of workers. `key`: patient, or another string
    column of a CSV (text keeps equal captions together). Nothing is read until a part is used.
    """
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1} if fractions is None else dict(fractions)
    if min(fractions.values(), default=0) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise DataError(f"the fractions of a split must be positive and add up to 1, got {fractions}")
    return {name: Part(source, key, tuple(fractions.items()), name, seed) for name in fractions}


@dataclass(frozen=True)
class Part:
    """One part of split_by."""

    source: Source
    key: str
    fractions: tuple[tuple[str, float], ...]
    name: str
    seed: int

    @read_once
    def chosen(self) -> Stored:
        hashes = _hashes(self.source, self.key, self.seed)
        groups, member, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        # a group belongs to the part in which the middle of its rows falls
        middle = (np.cumsum(counts) - counts / 2) / len(hashes)
        edges = np.cumsum([share for _, share in self.fractions])[:-1]
        part = [name for name, _ in self.fractions].index(self.name)
        chosen = np.flatnonzero(np.searchsorted(edges, middle, "right")[member] == part)
        if not len(chosen):
            raise DataError(f"split {self.name!r} is empty: {len(groups)} different {self.key}s are too few")
        return Stored(chosen)

    @property
    def rows(self) -> np.ndarray:
        """i64: the rows of the whole source, ascending."""
        return self.chosen.array

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the whole: a class absent here keeps its number."""
        return tuple(getattr(self.source, "classes", ()))

    def __getstate__(self) -> dict[str, object]:
        len(self)
        return self.__dict__

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.rows[index])]


def _hashes(source: Source, key: str, seed: int) -> np.ndarray:
    """u64 [rows]: the source's own columns where it has them, else its records one by one."""
    own = getattr(source, "hashes", None)
    if own is not None:
        return own(key, seed)
    if key not in ("patient", "report"):
        raise DataError(f"{type(source).__name__} can be split by patient or report, not by {key!r}")
    words = (text_hash(str(getattr(source[row], key)).encode(), seed) for row in range(len(source)))
    return np.fromiter(words, np.uint64, len(source))
