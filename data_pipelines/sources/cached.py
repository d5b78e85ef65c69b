"""A source whose records are made once and kept: for synthetic eyes and other small sources that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_pipelines.records import Record, Source


@dataclass(frozen=True)
class CachedSource:
    """`source`, each of whose rows is asked for once per process; use it without worker processes.

    A pickled copy starts empty. Two threads that ask for the same row at once both make it, and one result is kept.
    """

    source: Source
    _rows: dict[int, Record] = field(default_factory=dict, repr=False, compare=False)

    @property
    def classes(self) -> Sequence[str]:
        """Those of the source."""
        return tuple(getattr(self.source, "classes", ()))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if index not in self._rows:
            self._rows.setdefault(index, self.source[index])
        return self._rows[index]

    def __getstate__(self) -> dict[str, object]:
        return {"source": self.source, "_rows": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
