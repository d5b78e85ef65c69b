"""Classification metrics, NaN where undefined: recall, specificity, F1, AUC, average precision, kappa, confusion.

`by_horizon` evaluates a forecast in bands of days ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fundax.metrics.calibration import calibration_error
from fundax.types import UserError


def classification(labels: Any, scores: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of a single-label classifier.

    A class that is absent from the labels, or is the only class of the labels, has NaN and a note where a metric is
    undefined, and is excluded from that mean.

    Args:
        labels: i32 [N].
        scores: f32 [N K], probabilities or logits; the class with the highest score is predicted.
        classes: names of the classes, to check their number.

    Returns:
        Per class f64 [K]: recall, specificity, precision, f1, auc and ap (one against the rest); count i64 [K]; note [K];
        confusion i64 [K K] (rows are the truth). Floats: accuracy, balanced_accuracy (FLAIR's ACA), macro_f1, macro_auc,
        macro_ap and kappa (quadratic weights, Cohen 1968).

    Raises UserError for labels out of range and scores that are not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = _check_classes(labels, scores, classes)
    k = scores.shape[1]
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (labels, scores.argmax(1)), 1)
    out: dict[str, Any] = _shares(confusion)
    ranked = {"auc": np.full(k, np.nan), "ap": np.full(k, np.nan)}
    notes = [""] * k
    for c, count in enumerate(out["count"]):
        if 0 < count < len(labels):
            ranked["auc"][c] = roc_auc_score(labels == c, scores[:, c])
            ranked["ap"][c] = average_precision_score(labels == c, scores[:, c])
        else:
            notes[c] = "absent from the evaluation set" if not count else "the only class of the evaluation set"
    out |= ranked | {"confusion": confusion, "note": np.array(notes), "kappa": quadratic_kappa(confusion)}
    means = {"balanced_accuracy": "recall", "macro_f1": "f1", "macro_auc": "auc", "macro_ap": "ap"}
    out |= {name: nanmean(out[column]) for name, column in means.items()}
    return out | {"accuracy": float(np.trace(confusion) / len(labels)) if len(labels) else float("nan")}


def roc(positive: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """ROC curve by scikit-learn: false and true positive rates f64 [n], and the area under the curve.

    `positive` is bool [N] and must have both values; `scores` are f32 [N].
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(positive, scores)
    return false, true, float(roc_auc_score(positive, scores))


def quadratic_kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights from counts [K K]; NaN if chance agreement is complete.

    Source: Cohen 1968, Psychological Bulletin 70:213.
    """
    k, total = len(confusion), confusion.sum()
    if not total:
        return float("nan")
    weights = (np.arange(k)[:, None] - np.arange(k)[None]) ** 2
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / total
    chance = float((weights * expected).sum())
    return 1 - float((weights * confusion).sum()) / chance if chance else float("nan")


def best_threshold(labels: Any, scores: Any) -> float:
    """The threshold that maximises Cohen's kappa + F1 of "score >= threshold"; choose it on validation data.

    `labels` are 0/1 [N] and `scores` f32 [N]. Returns NaN if a class is absent.

    Source: github.com/lxirich/MM-Retinal, evaluation of AMD, which chooses the threshold on the test set.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
    if labels.all() or not labels.any():
        return float("nan")
    thresholds = np.unique(scores)
    hit, false = (len(s) - np.searchsorted(np.sort(s), thresholds) for s in (scores[labels], scores[~labels]))
    missed, rejected = labels.sum() - hit, (~labels).sum() - false
    chance = (hit + false) * (false + rejected) + (hit + missed) * (missed + rejected)
    kappa = 2 * (hit * rejected - false * missed) / chance
    return float(thresholds[int(np.argmax(kappa + 2 * hit / (2 * hit + false + missed)))])


def kappa_f1(labels: Any, called: Any) -> tuple[float, float]:
    """Cohen's kappa and F1 of the positive class for labels and predictions bool [N]; NaN where undefined."""
    counts = np.zeros((2, 2), np.int64)
    np.add.at(counts, (np.asarray(labels).astype(int), np.asarray(called).astype(int)), 1)
    return quadratic_kappa(counts), float(_shares(counts)["f1"][1])


def _shares(confusion: np.ndarray) -> dict[str, np.ndarray]:
    right, count, called = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    total = confusion.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(count, right / count, np.nan)
        precision = np.where(called, right / called, np.nan)
        f1 = np.where(count, 2 * right / (count + called), np.nan)  # a class that is never predicted has an F1 of 0
        specificity = np.where(total - count, 1 - (called - right) / (total - count), np.nan)
    return {"recall": recall, "precision": precision, "f1": f1, "specificity": specificity, "count": count}


def nanmean(values: Any) -> float:
    """Mean of the values that are not NaN. Returns NaN, without a warning, if there are none."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _check_classes(labels: Any, scores: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if scores.ndim != 2 or labels.shape != (len(scores),) or (classes and len(classes) != scores.shape[1]):
        raise UserError(f"labels {labels.shape}, scores {scores.shape}, {len(classes)} names; expected [N], [N K], K")
    bad = [row for row, value in enumerate(labels) if not 0 <= value < scores.shape[1]]
    if bad:
        raise UserError(f"row {bad[0]}: label {labels[bad[0]]}; expected 0 to {scores.shape[1] - 1}")
    if not np.isfinite(scores).all():
        raise UserError(f"row {int(np.argwhere(~np.isfinite(scores))[0][0])}: a score is not finite")
    return labels.astype(np.int64), scores


def multi_label(labels: Any, scores: Any, classes: Sequence[str] = (), threshold: float = 0.5) -> dict[str, Any]:
    """Metrics of a multi-label classifier.

    A label without positives or without negatives has NaN and a note where a metric is undefined, and is excluded from
    that mean.

    Args:
        labels: f32 [N K] of 0, 1 and NaN (not labelled).
        scores: f32 [N K], probabilities; a probability of at least `threshold` is a positive prediction.
        classes: names of the labels.
        threshold: see `scores`.

    Returns:
        Per label f64 [K], over its labelled rows: recall, specificity, precision, f1, auc, ap; count i64 [K] (positives),
        labelled i64 [K]; note [K]. Floats: accuracy (fraction of correct labelled entries), balanced_accuracy (mean of
        recall and specificity over labels that have both), macro_f1, macro_auc, macro_ap.

    Raises UserError for other values and shapes.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = _check_labels(labels, scores, classes)
    k = scores.shape[1]
    out: dict[str, Any] = {n: np.full(k, np.nan) for n in ("recall", "specificity", "precision", "f1", "auc", "ap")}
    out |= {"count": np.zeros(k, np.int64), "labelled": np.zeros(k, np.int64)}
    notes, right = [""] * k, 0
    for c in range(k):
        known = ~np.isnan(labels[:, c])
        truth, score = labels[known, c] > 0.5, scores[known, c]
        counts = np.zeros((2, 2), np.int64)
        np.add.at(counts, (truth.astype(int), (score >= threshold).astype(int)), 1)
        right += int(np.trace(counts))
        for name, values in _shares(counts).items():
            out[name][c] = values[1]
        out["labelled"][c] = known.sum()
        if truth.any() and not truth.all():
            out["auc"][c], out["ap"][c] = roc_auc_score(truth, score), average_precision_score(truth, score)
        else:
            notes[c] = "no row is labelled" if not known.any() else f"every row is {'' if truth.any() else 'not '}{{}}"
    names = list(classes) or [f"label {c}" for c in range(k)]
    out |= {"note": np.array([note.format(name) for note, name in zip(notes, names, strict=True)])}
    both = (out["recall"] + out["specificity"]) / 2
    out |= {"balanced_accuracy": nanmean(both)} | {f"macro_{n}": nanmean(out[n]) for n in ("f1", "auc", "ap")}
    total = int(out["labelled"].sum())
    return out | {"accuracy": right / total if total else float("nan")}


def _check_labels(labels: Any, scores: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape or (classes and len(classes) != labels.shape[1]):
        raise UserError(f"labels {labels.shape}, scores {scores.shape}, {len(classes)} names; expected [N K] twice, K")
    if len(bad := np.argwhere(~(np.isnan(labels) | (labels == 0) | (labels == 1)))):
        row, column = bad[0]
        raise UserError(f"row {row}: label {labels[row, column]} in column {column}; expected 0, 1 or NaN")
    if not np.isfinite(scores).all():
        raise UserError(f"row {int(np.argwhere(~np.isfinite(scores))[0][0])}: a score is not finite")
    return labels, scores


BINS = 10  # bins of the calibration error of a band of horizons


def by_horizon(labels: Any, probabilities: Any, days: Any, bands: int = 3) -> dict[str, np.ndarray]:
    """Metrics of a binary forecast in bands of days ahead.

    Args:
        labels: 0/1 [N].
        probabilities: f32 [N], of class 1.
        days: f32 [N], days ahead.
        bands: number of bands. They are cut at quantiles of the days, so that they have about the same number of rows.
            Equal days stay together, so there may be fewer bands.

    Returns:
        Arrays [bands]: band_from and band_to (days, both inclusive), band_rows, band_positives i64; band_auc, band_f1
        (threshold 0.5), band_brier, band_ece f64 (NaN where undefined), and band_note, the reason.

    Raises UserError for shapes that differ.
    """
    from sklearn.metrics import roc_auc_score

    labels, p, days = np.asarray(labels), np.asarray(probabilities, np.float64), np.asarray(days, np.float64)
    if not labels.shape == p.shape == days.shape or labels.ndim != 1:
        raise UserError(f"labels {labels.shape}, probabilities {p.shape}, days {days.shape}; expected [N] each")
    edges = np.unique(np.quantile(days, np.arange(1, bands) / bands)) if len(days) else np.zeros(0)
    band = np.searchsorted(edges, days, side="right")
    rows: list[tuple[Any, ...]] = []
    for k in np.unique(band):
        y, q, d = labels[band == k], p[band == k], days[band == k]
        both = 0 < y.sum() < len(y)
        auc = float(roc_auc_score(y, q)) if both else float("nan")
        f1 = kappa_f1(y, q >= 0.5)[1] if y.any() else float("nan")
        note = "" if both else ("every row progressed" if y.any() else "no row progressed")
        rows.append(
            (
                d.min(),
                d.max(),
                len(y),
                int(y.sum()),
                auc,
                f1,
                float(((q - y) ** 2).mean()),
                calibration_error(y, q, bins=BINS).value,
                note,
            )
        )
    names = ("from", "to", "rows", "positives", "auc", "f1", "brier", "ece", "note")
    return {f"band_{name}": np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
