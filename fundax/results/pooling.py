"""One result of all rows of several results, such as those of the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fundax.evals import landmarks, segmentation, supervised
from fundax.evals.kinds import (
    ClassificationResult,
    LandmarkResult,
    MultiLabelResult,
    Result,
    Rows,
    SegmentationResult,
)
from fundax.types import UserError

KINDS: dict[type[Result], tuple[str, Callable[..., Any]]] = {  # the field that names the columns, and what pools them
    ClassificationResult: ("classes", supervised.pooled),
    MultiLabelResult: ("classes", supervised.pooled),
    SegmentationResult: ("classes", segmentation.pooled),
    LandmarkResult: ("names", landmarks.pooled),
}


def pooled(results: Sequence[Any]) -> Any:
    """The result of all rows of several results of one kind, with metrics and intervals over all rows.

    Patients of different results are different ones. Cases are left out. Raises UserError for a kind that cannot be
    pooled, and for results of different kinds or classes.
    """
    first = results[0]
    if type(first) not in KINDS:
        known = ", ".join(kind.kind for kind in KINDS)
        raise UserError(f"results of the kind {first.kind} cannot be pooled; expected {known}")
    columns, pool = KINDS[type(first)]
    names = [str(name) for name in getattr(first, columns)]
    for one in results:
        if type(one) is not type(first) or [str(name) for name in getattr(one, columns)] != names:
            raise UserError("results of different kinds or classes cannot be pooled")
    return pool(results, _rows(results))


def _rows(results: Sequence[Any]) -> Rows:
    """The columns that all results have; each of them numbers its own patients, and rows of its own source."""
    columns = [one.rows.arrays() if one.rows else {} for one in results]
    shared = set.intersection(*(set(one) for one in columns)) - {"index"}
    rows: dict[str, Any] = {name: np.concatenate([one[name] for one in columns]) for name in shared}
    if "patient" in rows:
        named = [np.stack([np.full(len(one["patient"]), k), one["patient"]]) for k, one in enumerate(columns)]
        rows["patient"] = np.unique(np.concatenate(named, axis=1), axis=1, return_inverse=True)[1].ravel()
    kept = Rows.read(rows)
    return Rows() if kept is None else kept
