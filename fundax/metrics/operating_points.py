"""Operating points: thresholds for a given specificity or sensitivity, chosen on validation data and applied to test data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.metrics.classification import best_threshold
from fundax.metrics.statistics import Estimate, blank, check_binary
from fundax.types import UserError


@dataclass(frozen=True)
class OperatingPoint:
    """A row is predicted positive if score >= threshold. If no threshold can be chosen, it is NaN and `note` says why."""

    threshold: float
    chosen_for: str
    note: str = ""


def at_specificity(labels: Any, scores: Any, wanted: float = 0.9) -> OperatingPoint:
    """Choose the threshold with the highest sensitivity among those with a specificity of at least `wanted`.

    `labels` are 0/1 [N] and `scores` f32 [N] of validation data. Use `apply` on test data.
    """
    return _choose(labels, scores, wanted, "specificity")


def at_sensitivity(labels: Any, scores: Any, wanted: float = 0.9) -> OperatingPoint:
    """Choose the threshold with the highest specificity among those with a sensitivity of at least `wanted`.

    See `at_specificity`.
    """
    return _choose(labels, scores, wanted, "sensitivity")


def at_kappa_f1(labels: Any, scores: Any) -> OperatingPoint:
    """Choose the threshold with the largest Cohen's kappa + F1, as KeepFIT's evaluation of AMD does."""
    labels, scores = _check(labels, scores)
    threshold = best_threshold(labels, scores)
    return OperatingPoint(threshold, "kappa + F1", "a class is absent" if math.isnan(threshold) else "")


def apply(point: OperatingPoint, labels: Any, scores: Any, *, level: float = 0.95) -> dict[str, Estimate]:
    """Sensitivity, specificity, ppv and npv of an operating point on other rows, with Clopper-Pearson intervals.

    A metric is blank if no row is in its denominator. Rows are treated as independent; with several images per patient,
    use a bootstrap over patients instead.
    """
    labels, scores = _check(labels, scores)
    if math.isnan(point.threshold):
        return dict.fromkeys(("sensitivity", "specificity", "ppv", "npv"), blank(point.note))
    called = scores >= point.threshold
    return {
        "sensitivity": _share(called[labels], level, "no positive row"),
        "specificity": _share(~called[~labels], level, "no negative row"),
        "ppv": _share(labels[called], level, "no row is predicted positive"),
        "npv": _share(~labels[~called], level, "no row is predicted negative"),
    }


def write(points: dict[str, OperatingPoint], path: str | Path) -> None:
    """Write operating points by name (for example of a class) as JSON; an undefined threshold is null."""
    rows = {name: asdict(point) for name, point in points.items()}
    for row in rows.values():
        row["threshold"] = None if math.isnan(row["threshold"]) else row["threshold"]
    Path(path).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> dict[str, OperatingPoint]:
    """Read operating points written by `write`. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected operating points written by fundax")
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in rows.values():
            row["threshold"] = math.nan if row["threshold"] is None else float(row["threshold"])
        return {name: OperatingPoint(**row) for name, row in rows.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path}: expected operating points written by fundax: {error}") from error


def _choose(labels: Any, scores: Any, wanted: float, metric: str) -> OperatingPoint:
    labels, scores = _check(labels, scores)
    name = f"{metric} >= {wanted:g}"
    if not labels.any() or labels.all():
        absent = "positive" if not labels.any() else "negative"
        return OperatingPoint(math.nan, name, f"no {absent} row to choose a threshold on")
    # all distinct scores, and a threshold above them at which no row is predicted positive
    candidates = np.append(np.unique(scores), np.nextafter(scores.max(), np.inf))
    if metric == "specificity":
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


def _check(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels bool [N] and scores f64 [N]. Raises UserError for other shapes or labels and for scores that are not finite."""
    labels, rows = check_binary(labels, scores)
    if not np.isfinite(rows).all():
        raise UserError("a score is not finite; operating points need finite scores")
    return labels, rows[0]
