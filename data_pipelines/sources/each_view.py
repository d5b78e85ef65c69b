"""A source of visits as one of single images: every view is a record of its own, of the same patient."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.records import Record, Source


@dataclass(frozen=True)
class EachView:
    """The views of all records, in their order. The first use counts the views of every record; no image is read.

    A view without a report has that of its eye, else that of the visit; its targets come before those of the visit.
    """

    source: Source

    @property
    def classes(self) -> Sequence[str]:
        """The class names of the source."""
        return tuple(getattr(self.source, "classes", ()))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Cumulative number i64 [records] of views."""
        return np.cumsum([len(self.source[row].views) for row in range(len(self.source))])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.source) else 0

    def __getitem__(self, index: int) -> Record:
        row = int(np.searchsorted(self.ends, index, side="right"))
        record = self.source[row]
        place = index - int(self.ends[row]) + len(record.views)
        view = record.views[place]
        report = view.report or record.eye_reports.get(view.eye) or record.report
        where = f"{record.where}, view {place + 1}" if record.where and len(record.views) > 1 else record.where
        targets = {**record.targets, **view.targets}
        return replace(record, views=(view,), report=report, targets=targets, eye_reports={}, where=where)
