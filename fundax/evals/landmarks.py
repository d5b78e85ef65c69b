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


def distances(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distances f64 [...] of points [... 2]; NaN where one of them has no place."""
    return np.linalg.norm(np.asarray(found, np.float64) - np.asarray(truth, np.float64), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """An Eval of points [B n 2] against what the forward pass gives under `read`.

    Batches hold `image` u8 [B h w 3], `points` f32 [B n 2] (x, y) in its pixels, NaN where a landmark has no place,
    `frame` f32 [B 3 2] (where the original's pixels lie, see original_grid), and perhaps `diameter` f32 [B], that of the
    optic disc in pixels of the original, `group` [B] (the patient), `valid`, `index`.

    Returns a LandmarkResult. Metrics: mean_error and median_error of all landmarks (pixels of the original image) and
    mean_error_grid (of the model's image); where the diameter is known mean_diameters, median_diameters and within_half
    (fraction of points within half a disc diameter); the medians of each landmark. mean_error and median_diameters
    have an interval over patients (_low, _high) by `interval`. Cases are the best and the worst images.
    """

    data: Callable[[], Iterator[Batch]]
    names: Sequence[str]
    interval: Callable[..., Estimate]  # metrics.statistics.bootstrap
    read: str = "points_expected"
    resamples: int = 1000

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> LandmarkResult:
        parts: list[Table] = []
        for batch in self.data():
            out = forward(params, extra, {k: v for k, v in batch.items() if k in ("image", "modality")})
            if self.read not in out:
                raise UserError(f"the landmark eval wants {self.read!r}, the model gives {', '.join(sorted(out))}")
            parts.append(_measured(batch, out[self.read]))
        rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
        if not rows or not np.isfinite(rows["error"]).any():
            raise UserError("the landmark eval has no image with a landmark in it")
        return self._result(rows)

    def _floats(self, rows: Table) -> dict[str, float]:
        patients = rows.get("patient")
        error, scaled = rows["error"], rows["error_diameters"]
        out = {"mean_error_grid": float(np.nanmean(rows["error_grid"])), "median_error": float(np.nanmedian(error))}
        out |= _with_interval(
            "mean_error", self.interval(np.nanmean, error, patients=patients, resamples=self.resamples)
        )
        for k, name in enumerate(self.names):
            out[f"{name}_median_error"] = _median(error[:, k])
        if np.isfinite(scaled).any():
            median = self.interval(np.nanmedian, scaled, patients=patients, resamples=self.resamples)
            out |= {"mean_diameters": float(np.nanmean(scaled)), **_with_interval("median_diameters", median)}
            out["within_half"] = float((scaled[np.isfinite(scaled)] <= 0.5).mean())
            for k, name in enumerate(self.names):
                out[f"{name}_median_diameters"] = _median(scaled[:, k])
        return {key: value for key, value in out.items() if not math.isnan(value)}

    def _result(self, rows: Table) -> LandmarkResult:
        known = np.isfinite(rows["error"])
        score = np.where(known.any(1), np.nan_to_num(rows["error"]).sum(1) / np.maximum(known.sum(1), 1), np.nan)
        shown = extremes(score)
        drawn = [points_over(rows["image"][i], rows["grid_truth"][i], rows["grid_found"][i]) for i in shown]
        kept = {key: rows[key] for key in ("error", "error_diameters", "found", "truth")}
        return LandmarkResult(
            metrics=self._floats(rows), names=np.array(self.names), **kept,
            rows=Rows.read(rows),
            cases=Cases(pictures=np.stack(drawn), picture_row=shown, picture_score=score[shown]),
        )  # fmt: skip


def _measured(batch: Batch, found: np.ndarray) -> Table:
    """The non-padding rows of a batch."""
    valid = np.asarray(batch.get("valid", np.ones(len(found), bool)))
    whole = {key: np.asarray(value)[valid] for key, value in batch.items() if key != "valid"}
    found, truth, frame = np.asarray(found, np.float64)[valid], whole["points"], whole["frame"]
    there = [original_points(points, frame) for points in (found, truth)]
    error = distances(*there)
    diameter = whole.get("diameter", np.full(len(found), np.nan)).reshape(-1, 1)
    rows = {
        "image": whole["image"], "grid_found": found, "grid_truth": truth, "error_grid": distances(found, truth),
        "found": there[0], "truth": there[1], "error": error, "error_diameters": error / diameter,
    }  # fmt: skip
    return rows | {"index": np.arange(len(found))} | row_columns(whole)


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan


def _with_interval(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
