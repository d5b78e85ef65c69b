"""Thresholds for use: sensitivity at a wanted specificity and the reverse, chosen on validation, applied to the test."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.metrics.classification import best_threshold
from fundax.metrics.statistics import Estimate, blank
from fundax.types import UserError


@dataclass(frozen=True)
class OperatingPoint:
    """A row is called positive when its score >= threshold; NaN, with a note, where no threshold can be chosen."""

    threshold: float
    chosen_for: str
    note: str = ""


def at_specificity(labels: Any, scores: Any, wanted: float = 0.9) -> OperatingPoint:
    """The lowest threshold whose specificity on these rows is at least `wanted`: the highest sensitivity it allows.

    labels 0/1 [N], scores [N]. Choose on validation, then `apply` to the test.
    """
    return _choose(labels, scores, wanted, "specificity")


def at_sensitivity(labels: Any, scores: Any, wanted: float = 0.9) -> OperatingPoint:
    """The highest threshold whose sensitivity on these rows is at least `wanted`. See `at_specificity`."""
    return _choose(labels, scores, wanted, "sensitivity")


def at_kappa_f1(labels: Any, scores: Any) -> OperatingPoint:
    """The threshold with the largest Cohen's kappa + F1 on these rows, as KeepFIT reports AMD."""
    labels, scores = _checked(labels, scores)
    threshold = best_threshold(labels, scores)
    return OperatingPoint(threshold, "kappa + F1", "a class is absent" if math.isnan(threshold) else "")


def apply(point: OperatingPoint, labels: Any, scores: Any, *, level: float = 0.95) -> dict[str, Estimate]:
    """sensitivity, specificity, ppv, npv of a point on other rows, with exact (Clopper-Pearson) intervals by scipy.

    Each is blank where its denominator is empty. Rows count as independent: for several images of a patient,
    bootstrap over patients.
    """
    labels, scores = _checked(labels, scores)
    if math.isnan(point.threshold):
        return dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), blank(point.note))
    called = scores >= point.threshold
    return {
        "sensitivity": _share(called[labels], level, "no positive row"),
        "specificity": _share(~called[~labels], level, "no negative row"),
        "ppv": _share(labels[called], level, "no row is called positive"),
        "npv": _share(~labels[~called], level, "no row is called negative"),
    }


def write(points: dict[str, OperatingPoint], path: str | Path) -> None:
    """Points by name (of a class, say) as JSON, to be read by another program; an undefined threshold is null."""
    rows = {name: asdict(point) for name, point in points.items()}
    for row in rows.values():
        row["threshold"] = None if math.isnan(row["threshold"]) else row["threshold"]
    Path(path).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> dict[str, OperatingPoint]:
    """What `write` wrote. Raises UserError for another file."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in rows.values():
            row["threshold"] = math.nan if row["threshold"] is None else float(row["threshold"])
        return {name: OperatingPoint(**row) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected operating points written by fundax: {error}") from error


def _choose(labels: Any, scores: Any, wanted: float, what: str) -> OperatingPoint:
    labels, scores = _checked(labels, scores)
    name = f"{what} >= {wanted:g}"
    if not labels.any() or labels.all():
        absent = "positive" if not labels.any() else "negative"
        return OperatingPoint(math.nan, name, f"no {absent} row to choose a threshold by")
    # one candidate per distinct score, and one above all of them, where nothing is called positive
    candidates = np.append(np.unique(scores), np.nextafter(scores.max(), np.inf))
    if what == "specificity":
        below = np.searchsorted(np.sort(scores[~labels]), candidates, side="left") / np.sum(~labels)
        return OperatingPoint(float(candidates[below >= wanted - 1e-12][0]), name)
    above = 1 - np.searchsorted(np.sort(scores[labels]), candidates, side="left") / np.sum(labels)
    return OperatingPoint(float(candidates[above >= wanted - 1e-12][-1]), name)


def _share(hits: np.ndarray, level: float, empty: str) -> Estimate:
    from scipy.stats import binomtest

    if not len(hits):
        return blank(empty)
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(level, method="exact")
    return Estimate(float(hits.mean()), float(interval.low), float(interval.high))


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise UserError(f"labels {labels.shape} and scores {scores.shape}; expected [N] of both")
    if not np.isin(labels, (0, 1)).all() or not np.isfinite(scores).all():
        raise UserError("operating points need labels 0 and 1 and finite scores")
    return labels.astype(bool), scores
