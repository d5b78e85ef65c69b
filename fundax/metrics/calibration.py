"""Calibration of probabilities: reliability, expected calibration error, Brier score, temperature scaling.

Probabilities are f32 [N K] with labels i32 [N], or f32 [N] for the positive class with labels 0/1 [N]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fundax.metrics.statistics import Estimate, blank
from fundax.types import UserError


def reliability(
    labels: Any, probabilities: Any, *, bins: int = 15, equal_counts: bool = False
) -> dict[str, np.ndarray]:
    """Compute a reliability curve.

    Probabilities [N K] compare the confidence of the predicted class with its accuracy. Probabilities [N] compare the
    probability of the positive class with its frequency.

    Args:
        labels, probabilities: see the top of this file.
        bins: number of bins b.
        equal_counts: bins with equal numbers of rows instead of equal widths. Equal probabilities stay together, so
            there may be fewer bins.

    Returns:
        confidence and observed f64 [b] (mean confidence and observed frequency, NaN in empty bins), count i64 [b] and
        edges f64 [b + 1].
    """
    confidence, right = _confidence(labels, probabilities)
    if equal_counts and len(confidence):
        edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))
        edges[0], edges[-1] = 0.0, 1.0
        edges = edges if len(edges) > 1 else np.array([0.0, 1.0])
    else:
        edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)  # (low, high]
    count = np.bincount(place, minlength=len(edges) - 1)
    sums = [np.bincount(place, x, minlength=len(edges) - 1) for x in (confidence, right.astype(np.float64))]
    with np.errstate(invalid="ignore"):
        mean, observed = (np.where(count > 0, s / np.maximum(count, 1), np.nan) for s in sums)
    return {"confidence": mean, "observed": observed, "count": count, "edges": edges}


def calibration_error(labels: Any, probabilities: Any, *, bins: int = 15, equal_counts: bool = False) -> Estimate:
    """Expected calibration error: the mean over rows of |confidence - observed frequency| of their bin.

    Source: Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    curve = reliability(labels, probabilities, bins=bins, equal_counts=equal_counts)
    rows = curve["count"].sum()
    if not rows:
        return blank("no rows")
    gaps = np.abs(curve["confidence"] - curve["observed"])
    return Estimate(float(np.nansum(gaps * curve["count"]) / rows))


def brier(labels: Any, probabilities: Any) -> Estimate:
    """Brier score: the mean squared difference of probability and outcome, summed over the classes if there are several.

    Source: Brier 1950, Monthly Weather Review 78:1; the two-class form is scikit-learn's.
    """
    labels, probabilities = _check_probabilities(labels, probabilities)
    if not len(labels):
        return blank("no rows")
    if probabilities.ndim == 1:
        return Estimate(float(np.mean((probabilities - labels) ** 2)))
    outcome = np.eye(probabilities.shape[1])[labels]
    return Estimate(float(np.mean(np.sum((probabilities - outcome) ** 2, axis=1))))


def temperature(logits: Any, labels: Any) -> float:
    """Fit the temperature T > 0 that maximises the likelihood of softmax(logits / T) on validation data.

    `logits` are f32 [N K], or f32 [N] of the positive class for a sigmoid. Returns NaN if there are no rows or only one
    class, because no temperature is optimal.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        return math.nan
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    rows, labels = np.arange(len(labels)), labels.astype(np.int64)

    def loss(log_temperature: float) -> float:
        z = logits / math.exp(log_temperature)
        z = z - z.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(z).sum(1)) - z[rows, labels]))

    optimum: Any = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(optimum.x))


def _confidence(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = _check_probabilities(labels, probabilities)
    if probabilities.ndim == 1:
        return probabilities, labels == 1
    return probabilities.max(1, initial=0.0), probabilities.argmax(1) == labels


def _check_probabilities(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels i64 and probabilities f64. Raises UserError for inconsistent shapes and invalid labels or probabilities."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if labels.ndim != 1 or len(labels) != len(probabilities) or probabilities.ndim > 2:
        raise UserError(f"labels {labels.shape} and probabilities {probabilities.shape}; expected [N] and [N] or [N K]")
    bad = ~np.isfinite(probabilities) | (probabilities < -1e-6) | (probabilities > 1 + 1e-6)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise UserError(f"row {row}: {probabilities[row]} is not a probability; expected numbers from 0 to 1")
    classes = 2 if probabilities.ndim == 1 else probabilities.shape[1]
    if len(labels) and not ((labels >= 0) & (labels < classes)).all():
        raise UserError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    return labels.astype(np.int64), probabilities
