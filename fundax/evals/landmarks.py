"""Landmark errors in pixels of the original image and in diameters of the optic disc."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import Cases, LandmarkResult, Rows, row_columns
from fundax.evals.original_grid import original_points
from fundax.evals.pictures import extremes, points_over
from fundax.metrics.statistics import Estimate
from fundax.types import Batch, Extra, Forward, Params, UserError

Table = dict[str, np.ndarray]  # arrays [N ...] of all images
ARRAYS = ("error", "error_diameters", "found", "truth")


def distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distances f64 [...] of points [... 2]; NaN if a point is NaN."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """An Eval that compares predicted landmarks [B n 2] with the true ones.

    Args:
        data: batches with `image` u8 [B h w 3], `points` f32 [B n 2] (x, y) in pixels of the image (NaN if missing) and
            `frame` f32 [B 3 2] (see original_grid). Optional keys are `diameter` f32 [B] (of the optic disc, in pixels
            of the original image), `group` [B] (the patient), `valid` and `index`.
        names: names of the n landmarks.
        interval: computes confidence intervals over patients (metrics.statistics.bootstrap).
        read: key of the predicted points in the output of the forward pass.
        resamples: number of bootstrap resamples.

    Returns:
        A LandmarkResult. Metrics over all landmarks: mean_error and median_error (pixels of the original image),
        mean_error_grid (pixels of the model's image) and, if the diameter is known, mean_diameters, median_diameters and
        within_half (fraction of points within half a disc diameter). mean_error and median_diameters have intervals
        (_low, _high). The medians are also given for each landmark, with the 95th percentile of the error, NAME_error_95.
        Cases are the best and the worst images.
    """

    data: Callable[[], Iterator[Batch]]
    names: Sequence[str]
    interval: Callable[..., Estimate]  # metrics.statistics.bootstrap
    read: str = "points_refined"
    resamples: int = 1000

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> LandmarkResult:
        parts: list[Table] = []
        for batch in self.data():
            out = forward(params, extra, {k: v for k, v in batch.items() if k in ("image", "modality")})
            if self.read not in out:
                raise UserError(f"the model gives {', '.join(sorted(out))}; the landmark eval expects {self.read!r}")
            parts.append(_measured(batch, out[self.read], out.get("confidence")))
        rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
        if not rows or not np.isfinite(rows["error"]).any():
            raise UserError("the landmark eval has no image with a known landmark")
        return self._result(rows)

    def _result(self, rows: Table) -> LandmarkResult:
        known = np.isfinite(rows["error"])
        score = np.where(known.any(1), np.nan_to_num(rows["error"]).sum(1) / np.maximum(known.sum(1), 1), np.nan)
        shown = extremes(score)
        drawn = [points_over(rows["image"][i], rows["grid_truth"][i], rows["grid_found"][i]) for i in shown]
        kept = {key: rows[key] for key in ARRAYS}
        metrics = summary(kept, self.names, rows.get("patient"), self.interval, self.resamples)
        return LandmarkResult(
            metrics=metrics | {"mean_error_grid": float(np.nanmean(rows["error_grid"]))},
            names=np.array(self.names), confidence=rows.get("confidence"), **kept,
            rows=Rows.read(rows),
            cases=Cases(pictures=np.stack(drawn), picture_row=shown, picture_score=score[shown]),
        )  # fmt: skip


def summary(
    arrays: Table,
    names: Sequence[str],
    patients: np.ndarray | None,
    interval: Callable[..., Estimate],
    resamples: int = 1000,
) -> dict[str, float]:
    """The metrics of a LandmarkResult, except mean_error_grid, from its `error` and `error_diameters` f64 [N n]."""
    error, scaled = arrays["error"], arrays["error_diameters"]
    out = {"median_error": float(np.nanmedian(error))}
    out |= _with_interval("mean_error", interval(np.nanmean, error, patients=patients, resamples=resamples))
    for k, name in enumerate(names):
        out[f"{name}_median_error"] = _quantile(error[:, k], 0.5)
        out[f"{name}_error_95"] = _quantile(error[:, k], 0.95)
    if np.isfinite(scaled).any():
        median = interval(np.nanmedian, scaled, patients=patients, resamples=resamples)
        out |= {"mean_diameters": float(np.nanmean(scaled)), **_with_interval("median_diameters", median)}
        out["within_half"] = float((scaled[np.isfinite(scaled)] <= 0.5).mean())
        for k, name in enumerate(names):
            out[f"{name}_median_diameters"] = _quantile(scaled[:, k], 0.5)
    return {key: value for key, value in out.items() if not math.isnan(value)}


def _measured(batch: Batch, predicted: np.ndarray, confidence: np.ndarray | None) -> Table:
    """Points and errors of the non-padding rows of a batch."""
    valid = np.asarray(batch.get("valid", np.ones(len(predicted), bool)))
    whole = {key: np.asarray(value)[valid] for key, value in batch.items() if key != "valid"}
    predicted, truth, frame = np.asarray(predicted, np.float64)[valid], whole["points"], whole["frame"]
    original = [original_points(points, frame) for points in (predicted, truth)]
    error = distances(*original)
    diameter = whole.get("diameter", np.full(len(predicted), np.nan)).reshape(-1, 1)
    rows = {
        "image": whole["image"], "grid_found": predicted, "grid_truth": truth,
        "error_grid": distances(predicted, truth), "found": original[0], "truth": original[1], "error": error,
        "error_diameters": error / diameter,
    }  # fmt: skip
    sure = {} if confidence is None else {"confidence": np.asarray(confidence)[valid]}
    return rows | {"index": np.arange(len(predicted))} | row_columns(whole) | sure


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.nanquantile(values, share)) if np.isfinite(values).any() else math.nan


def _with_interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
