"""Forecasts by how far ahead they look: AUC, F1 and calibration in bands of days."""

from __future__ import annotations

from typing import Any

import numpy as np

from fundax.classification import kappa_f1
from fundax.errors import UserError

BINS = 10  # of the expected calibration error


def by_horizon(labels: Any, probabilities: Any, days: Any, bands: int = 3) -> dict[str, np.ndarray]:
    """labels 0/1 [N], probabilities [N] of the 1, days [N]: bands of about as many rows each, cut at quantiles of the days.

    Arrays [bands]: band_from and band_to (days, both included), band_rows, band_positives i64; band_auc, band_f1 (called
    from 0.5 on), band_brier, band_ece f64, NaN where not defined, and band_note, the reason. Equal days stay together,
    so there may be fewer bands. Raises UserError for shapes that differ.
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
                calibration_error(y, q),
                note,
            )
        )
    names = ("from", "to", "rows", "positives", "auc", "f1", "brier", "ece", "note")
    return {f"band_{name}": np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (arXiv:1706.04599, eq. 3) of probabilities of the 1, in equal bins of [0, 1]."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        np.abs(labels[place == k].mean() - probabilities[place == k].mean()) * (place == k).sum()
        for k in np.unique(place)
    ]
    return float(np.sum(gaps) / len(labels)) if len(labels) else float("nan")
