"""Metrics for many sets of row weights at once, for a bootstrap over patients that copies no rows.

Weights are f64 [R n]; a resample is a set of integer weights. Every function returns f64 [R], NaN where undefined."""

from __future__ import annotations

import numpy as np


def auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of bool [n] and scores [n]. Ties count half."""
    order = np.argsort(scores, kind="stable")
    value, is_k = scores[order], positive[order]
    w = weights[:, order].astype(np.float64)
    below = np.concatenate([np.zeros((len(w), 1)), np.cumsum(w * ~is_k, axis=1)], axis=1)
    left, right = (np.searchsorted(value, value, side) for side in ("left", "right"))
    ranked = (below[:, left] + below[:, right]) / 2
    return _share((w * is_k * ranked).sum(1), (w * is_k).sum(1) * below[:, -1])


def class_aucs(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC f64 [K R] of each class against the rest, for labels [n] and scores [n K]."""
    return np.stack([auc(labels == k, scores[:, k], weights) for k in range(scores.shape[1])])


def average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of bool [n] and scores [n], as in scikit-learn; equal scores share a threshold."""
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    value, is_k = -scores[order], positive[order]
    w = weights[:, order].astype(np.float64)
    last = np.searchsorted(value, value, "right") - 1
    hits = np.cumsum(w * is_k, axis=1)
    precision = _share(hits[:, last], np.cumsum(w, axis=1)[:, last])
    return _share((w * is_k * np.nan_to_num(precision)).sum(1), hits[:, -1])


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of values [n], ignoring NaN."""
    known = np.isfinite(values)
    w = weights[:, known]
    return _share(w @ values[known].astype(np.float64), w.sum(1))


def recalls(labels: np.ndarray, called: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Recall f64 [K R] of each class, for labels and predictions i32 [n]."""
    return np.stack(
        [mean((called == labels)[labels == k].astype(float), weights[:, labels == k]) for k in range(classes)]
    )


def r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination, 1 - residual / total sum of squares, of two arrays [n]; NaN rows are ignored."""
    truth, predicted, w = _known(truth, predicted, weights)
    residual, total = w @ (truth - predicted) ** 2, w.sum(1) * _variance(truth, truth, w)
    return 1 - _share(residual, np.where(total > 1e-12, total, 0))


def pearson(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation of two arrays [n]; NaN rows are ignored."""
    truth, predicted, w = _known(truth, predicted, weights)
    spread = _variance(truth, truth, w) * _variance(predicted, predicted, w)
    return _share(_variance(truth, predicted, w), np.sqrt(np.where(spread > 1e-24, spread, 0)))


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean [R] of values [K R] over K, ignoring NaN; NaN, without a warning, if all values are NaN."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0).sum(0), known.sum(0).astype(np.float64))


def _known(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    rows = np.isfinite(truth) & np.isfinite(predicted)
    return truth[rows].astype(np.float64), predicted[rows].astype(np.float64), weights[:, rows].astype(np.float64)


def _variance(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weighted covariance. Means are subtracted first, so that large values do not lose precision."""
    a, b = (v - (v.mean() if len(v) else 0) for v in (a, b))
    total = w.sum(1)
    return _share(w @ (a * b), total) - _share(w @ a, total) * _share(w @ b, total)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.divide(part, whole, out=out, where=whole > 0)
