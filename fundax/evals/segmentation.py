"""Segmentation measured pixel by pixel on the grid of the original image, inside its field of view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundax.evals.kinds import Cases, Rows, SegmentationResult, row_columns
from fundax.evals.original_grid import original_map, slide
from fundax.evals.pictures import extremes, masks_over
from fundax.metrics import weighted
from fundax.metrics.classification import nanmean
from fundax.metrics.segmentation import NAMES, scores
from fundax.metrics.statistics import Estimate
from fundax.types import Batch, Extra, Forward, Params, UserError


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """An Eval of `probability` [B h w K] against reference masks.

    Batches hold `image` u8 [B s s 3], `truth` i [B H W] of classes (or [B H W K] of 0 and 1 where `overlapping`) at the
    original's size, `frame` f32 [B 3 2] (see original_grid), and perhaps `truth_fov` [B H W], `group` [B] (the patient),
    `valid`, `index`, `modality`. classes: names, as in objectives.Segment.
    window: side of the model's image where batches have larger images; it slides with the given `overlap`.

    Returns a SegmentationResult. Metrics are means over classes of means over images: mean_dice (with _low and _high, an
    interval over patients), mean_iou, mean_sensitivity, mean_specificity, mean_hd95 (pixels of the original image);
    mean_dice_NAME of each of several classes; empty (number of images and classes without truth, which are left out) and
    missed (number with truth and no prediction: hd95 is undefined); with exclusive classes mean_dice_with_background, as
    VisionFM counts it. Cases are the worst and the best images.
    """

    data: Callable[[], Iterator[Batch]]
    classes: Sequence[str]
    interval: Callable[..., Estimate]  # metrics.statistics.bootstrap
    overlapping: bool = False
    window: int = 0
    overlap: float = 0.5
    windows: int = 16  # per forward pass
    threshold: float = 0.5  # of sigmoids
    resamples: int = 1000

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> SegmentationResult:
        rows: list[dict[str, Any]] = []
        for batch in self.data():
            values = self._probability(forward, params, extra, batch)
            valid = np.asarray(batch.get("valid", np.ones(len(values), bool)))
            for i in np.flatnonzero(valid).tolist():
                rows.append({"index": len(rows)} | self._measured(batch, values[i], i))
            _forget(rows)
        if not rows or not any(np.isfinite(row["dice"]).any() for row in rows):
            raise UserError(f"the segmentation eval has no pixel of {', '.join(self.classes)} in any image")
        return self._result(rows)

    def _probability(self, forward: Forward, params: Params, extra: Extra, batch: Batch) -> np.ndarray:
        image = np.asarray(batch["image"])
        if not self.window or image.shape[1] == self.window:
            modality = {key: batch[key] for key in ("modality",) if key in batch}
            return forward(params, extra, {"image": image} | modality)["probability"]
        maps = lambda views: forward(params, extra, {"image": views})["probability"]  # noqa: E731
        return np.stack([slide(maps, one, self.window, self.overlap, self.windows) for one in image])

    def _measured(self, batch: Batch, probability: np.ndarray, i: int) -> dict[str, Any]:
        truth = np.asarray(batch["truth"][i])
        found = decided(
            original_map(probability, batch["frame"][i], truth.shape[:2]),
            len(self.classes), self.overlapping, self.threshold,
        )  # fmt: skip
        truth = channels(truth, len(self.classes), self.overlapping)
        inside = np.asarray(batch["truth_fov"][i]) > 0 if "truth_fov" in batch else None
        each = [scores(np.asarray(truth[..., k]), np.asarray(found[..., k]), inside) for k in range(len(self.classes))]
        row: dict[str, Any] = {name: np.array([one[name] for one in each]) for name in NAMES}
        if not self.overlapping and len(self.classes) > 1:
            row["background"] = scores(np.asarray(~truth.any(-1)), np.asarray(~found.any(-1)), inside)["dice"]
        row |= {name: np.asarray(values)[i] for name, values in row_columns(batch).items()}
        row["missed"] = int(sum(math.isnan(one["hd95"]) and not math.isnan(one["dice"]) for one in each))
        photograph = _whole(np.asarray(batch["image"][i]), np.asarray(batch["frame"][i]), truth.shape[:2])
        return row | {"picture": masks_over(photograph, truth, found)}

    def _floats(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        table = {name: np.stack([row[name] for row in rows]) for name in NAMES}  # [N K]
        patients = np.array([row["patient"] for row in rows]) if "patient" in rows[0] else None
        found = self.interval(macro, table["dice"], patients=patients, resamples=self.resamples)
        out = {"mean_dice": found.value, "mean_dice_low": found.low, "mean_dice_high": found.high}
        out |= {f"mean_{name}": macro(table[name]) for name in NAMES if name != "dice"}
        if len(self.classes) > 1:
            named = zip(self.classes, table["dice"].T, strict=True)
            out |= {f"mean_dice_{name.replace(' ', '_')}": macro(column[:, None]) for name, column in named}
        if "background" in rows[0]:
            background = np.array([row["background"] for row in rows])
            out["mean_dice_with_background"] = macro(np.column_stack([background, table["dice"]]))
        out["empty"] = float(np.isnan(table["dice"]).sum())
        out["missed"] = float(sum(row["missed"] for row in rows))
        return {key: value for key, value in out.items() if not math.isnan(value)}

    def _result(self, rows: Sequence[dict[str, Any]]) -> SegmentationResult:
        score = _means(rows)
        shown = extremes(score)
        columns = {name: np.array([row[name] for row in rows]) for name in row_columns(rows[0])}
        return SegmentationResult(
            metrics=self._floats(rows), classes=np.array(self.classes),
            **{name: np.stack([row[name] for row in rows]) for name in NAMES},
            rows=Rows.read(columns),
            cases=Cases(
                pictures=np.stack([rows[i]["picture"] for i in shown]), picture_row=shown, picture_score=score[shown]
            ),
        )  # fmt: skip


def decided(probability: np.ndarray, classes: int, overlapping: bool, threshold: float = 0.5) -> np.ndarray:
    """Masks bool [H W classes] of probabilities [H W K]: the most probable exclusive class, or all above the threshold."""
    if overlapping or classes == 1:
        return np.asarray(probability > threshold)
    return np.asarray(probability.argmax(-1)[..., None] == np.arange(1, classes + 1))


def channels(truth: np.ndarray, classes: int, overlapping: bool) -> np.ndarray:
    """Masks bool [H W classes] from an index mask [H W] of 0 (background), 1, ..., or from channels [H W classes] of 0 and 1."""
    return np.asarray(truth > 0 if overlapping else truth[..., None] == np.arange(1, classes + 1))


def macro(values: np.ndarray) -> float:
    """Mean over columns of the means over rows of [N K], ignoring NaN; NaN where nothing is defined."""
    return nanmean(weighted.nanmean(values))


def _means(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean Dice of each image f64 [N], by which the worst and the best are selected."""
    return np.array([macro(row["dice"][None]) for row in rows])


def _forget(rows: Sequence[dict[str, Any]]) -> None:
    """Keep only the pictures of the worst and the best images so far in memory."""
    shown = set(extremes(_means(rows)).tolist())
    for at, row in enumerate(rows):
        if at not in shown:
            row["picture"] = None


def _whole(seen: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image the model saw, resampled to the original's grid, u8 [H W 3]."""
    return np.clip(np.round(original_map(seen.astype(np.float32), frame, size)), 0, 255).astype(np.uint8)
