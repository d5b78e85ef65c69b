"""A source that keeps its records in memory, for synthetic eyes and other small sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_pipelines.records import Record, Source


@dataclass(frozen=True)
class CachedSource:
    """Reads each row of `source` once per process and keeps it. Use it without worker processes.

    A pickled copy starts empty. If two threads ask for the same row at the same time, both read it and one result is
    kept.
    """

    source: Source
    _rows: dict[int, Record] = field(default_factory=dict, repr=False, compare=False)

    @property
    def classes(self) -> Sequence[str]:
        """The class names of the source."""
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
