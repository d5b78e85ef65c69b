"""Segmentation metrics on the grid of the original image, inside its field of view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """An Eval that compares `probability` [B h w K] of the forward pass with reference masks.

    Args:
        data: batches with `image` u8 [B s s 3], `truth` i32 [B H W] of classes (or [B H W K] of 0 and 1 if `overlapping`)
            at the original size, and `frame` f32 [B 3 2] (see original_grid). Optional keys are `truth_fov` [B H W],
            `group` [B] (the patient), `valid`, `index` and `modality`.
        classes: class names, as in objectives.Segment.
        interval: computes confidence intervals over patients (metrics.statistics.bootstrap).
        overlapping: classes may overlap.
        window: size of the model's images if those of the batches are larger; 0 applies the model to whole images.
        overlap: overlap of the sliding windows, as a fraction.
        windows: number of windows per forward pass.
        threshold: threshold of the probabilities if classes overlap.
        resamples: number of bootstrap resamples.

    Returns:
        A SegmentationResult. Metrics are means over classes of means over images: mean_dice (with the interval _low,
        _high), mean_iou, mean_sensitivity, mean_specificity, mean_hd95 (pixels of the original image), and mean_dice_NAME
        of each class if there are several. `empty` is the number of pairs of image and class without truth, which are
        ignored; `missed` is the number of pairs with truth but no prediction, for which hd95 is undefined. Exclusive
        classes also have mean_dice_with_background, which VisionFM reports. Cases are the worst and the best images.
    """

    data: Callable[[], Iterator[Batch]]
    classes: Sequence[str]
    interval: Callable[..., Estimate]
    overlapping: bool = False
    window: int = 0
    overlap: float = 0.5
    windows: int = 16
    threshold: float = 0.5
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
        return np.stack([slide(maps, picture, self.window, self.overlap, self.windows) for picture in image])

    def _measured(self, batch: Batch, probability: np.ndarray, i: int) -> dict[str, Any]:
        truth = np.asarray(batch["truth"][i])
        predicted = decided(
            original_map(probability, batch["frame"][i], truth.shape[:2]),
            len(self.classes), self.overlapping, self.threshold,
        )  # fmt: skip
        truth = channels(truth, len(self.classes), self.overlapping)
        inside = np.asarray(batch["truth_fov"][i]) > 0 if "truth_fov" in batch else None
        masks = [np.asarray(mask) for mask in (truth, predicted)]
        each = [scores(masks[0][..., k], masks[1][..., k], inside) for k in range(len(self.classes))]
        row: dict[str, Any] = {name: np.array([values[name] for values in each]) for name in NAMES}
        if not self.overlapping and len(self.classes) > 1:
            empty = [~np.asarray(mask.any(-1)) for mask in masks]
            row["background"] = scores(empty[0], empty[1], inside)["dice"]
        row |= {name: np.asarray(values)[i] for name, values in row_columns(batch).items()}
        photograph = _whole(np.asarray(batch["image"][i]), np.asarray(batch["frame"][i]), truth.shape[:2])
        return row | {"picture": masks_over(photograph, truth, predicted)}

    def _result(self, rows: Sequence[dict[str, Any]]) -> SegmentationResult:
        score = _means(rows)
        shown = extremes(score)
        columns = {name: np.array([row[name] for row in rows]) for name in row_columns(rows[0])}
        table = {name: np.stack([row[name] for row in rows]) for name in NAMES}
        metrics = summary(table, self.classes, columns.get("patient"), self.interval, self.resamples)
        if "background" in rows[0]:
            background = np.array([row["background"] for row in rows])
            metrics["mean_dice_with_background"] = macro(np.column_stack([background, table["dice"]]))
        return SegmentationResult(
            metrics=metrics, classes=np.array(self.classes), **table,
            rows=Rows.read(columns),
            cases=Cases(
                pictures=np.stack([rows[i]["picture"] for i in shown]), picture_row=shown, picture_score=score[shown]
            ),
        )  # fmt: skip


def summary(
    table: Mapping[str, np.ndarray],
    classes: Sequence[str],
    patients: np.ndarray | None,
    interval: Callable[..., Estimate],
    resamples: int = 1000,
) -> dict[str, float]:
    """The metrics of a SegmentationResult from those of each image, f64 [N K] by their names in metrics.segmentation."""
    dice = interval(macro, table["dice"], patients=patients, resamples=resamples)
    out = {"mean_dice": dice.value, "mean_dice_low": dice.low, "mean_dice_high": dice.high}
    out |= {f"mean_{name}": macro(table[name]) for name in NAMES if name != "dice"}
    if len(classes) > 1:
        named = zip(classes, table["dice"].T, strict=True)
        out |= {f"mean_dice_{name.replace(' ', '_')}": macro(column[:, None]) for name, column in named}
    out["empty"] = float(np.isnan(table["dice"]).sum())
    out["missed"] = float((np.isnan(table["hd95"]) & ~np.isnan(table["dice"])).sum())
    return {key: value for key, value in out.items() if not math.isnan(value)}


def decided(probability: np.ndarray, classes: int, overlapping: bool, threshold: float = 0.5) -> np.ndarray:
    """Masks bool [H W classes] from probabilities [H W K]: the most probable class or, if classes overlap, a threshold."""
    if overlapping or classes == 1:
        return np.asarray(probability > threshold)
    return np.asarray(probability.argmax(-1)[..., None] == np.arange(1, classes + 1))


def channels(truth: np.ndarray, classes: int, overlapping: bool) -> np.ndarray:
    """Masks bool [H W classes] from an index mask [H W] of 0 (background), 1, ..., or from channels [H W classes] of 0 and 1."""
    return np.asarray(truth > 0 if overlapping else truth[..., None] == np.arange(1, classes + 1))


def macro(values: np.ndarray) -> float:
    """Mean over the columns of the means over the rows of values [N K], ignoring NaN; NaN if all values are NaN."""
    return nanmean(weighted.nanmean(values))


def _means(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean Dice f64 [N] of each image, which selects the worst and the best images."""
    return np.array([macro(row["dice"][None]) for row in rows])


def _forget(rows: Sequence[dict[str, Any]]) -> None:
    """Remove all pictures except those of the worst and the best images so far, to save memory."""
    shown = set(extremes(_means(rows)).tolist())
    for at, row in enumerate(rows):
        if at not in shown:
            row["picture"] = None


def _whole(seen: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample the model's input image to the grid of the original image, u8 [H W 3]."""
    return np.clip(np.round(original_map(seen.astype(np.float32), frame, size)), 0, 255).astype(np.uint8)
