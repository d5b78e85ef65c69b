"""One result of all rows of several results, such as those of the folds of cross-validation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
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
from fundax.metrics.statistics import bootstrap
from fundax.types import UserError


def pooled(results: Sequence[Any]) -> Any:
    """The result of all rows of several results of one kind, with metrics and intervals over all rows.

    Patients of different results are different ones. Cases are left out. Raises UserError for a kind that cannot be
    pooled, and for results of different kinds or classes.
    """
    first = results[0]
    check(first)
    columns, pool = KINDS[type(first)]
    names = [str(name) for name in getattr(first, columns)]
    for one in results:
        if type(one) is not type(first) or [str(name) for name in getattr(one, columns)] != names:
            raise UserError("results of different kinds or classes cannot be pooled")
    return pool(results, _rows(results))


def check(result: Result) -> None:
    """Raise UserError for a result of a kind that cannot be pooled."""
    if type(result) not in KINDS:
        known = ", ".join(kind.kind for kind in KINDS)
        raise UserError(f"results of the kind {result.kind} cannot be pooled; expected {known}")


def _of_images(columns: str, summary: Callable[..., dict[str, float]], results: Sequence[Any], rows: Rows) -> Any:
    """Pool the arrays [N ..] that all results have, and compute the metrics of all rows."""
    first = results[0]
    several = {item.name: [getattr(one, item.name) for one in results] for item in fields(first)}
    arrays: dict[str, Any] = {
        name: np.concatenate(values)
        for name, values in several.items()
        if name not in (columns, "about") and all(isinstance(value, np.ndarray) for value in values)
    }
    names = [str(name) for name in getattr(first, columns)]
    metrics = summary(arrays, names, rows.patient, bootstrap)
    return type(first)(metrics=metrics, rows=rows, **{columns: np.array(names)}, **arrays)


def _rows(results: Sequence[Any]) -> Rows:
    """The columns that all results have; each of them numbers its own patients, and rows of its own source."""
    columns = [one.rows.arrays() if one.rows else {} for one in results]
    shared = set.intersection(*(set(one) for one in columns)) - {"index"}
    rows: dict[str, Any] = {name: np.concatenate([one[name] for one in columns]) for name in shared}
    if "patient" in rows:
        named = [np.stack([np.full(len(one["patient"]), k), one["patient"]]) for k, one in enumerate(columns)]
        rows["patient"] = np.unique(np.concatenate(named, axis=1), axis=1, return_inverse=True)[1].ravel()
    return Rows.read(rows) or Rows()


KINDS: dict[type[Result], tuple[str, Callable[..., Any]]] = {  # the field that names the columns, and what pools them
    ClassificationResult: ("classes", supervised.pooled),
    MultiLabelResult: ("classes", supervised.pooled),
    SegmentationResult: ("classes", functools.partial(_of_images, "classes", segmentation.summary)),
    LandmarkResult: ("names", functools.partial(_of_images, "names", landmarks.summary)),
}
