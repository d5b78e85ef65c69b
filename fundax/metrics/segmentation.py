"""Segmentation metrics: Dice, IoU, sensitivity, specificity and the 95th percentile of surface distances.

These are pure functions of bool [H W] masks. Metrics that are undefined for an empty mask are NaN."""

from __future__ import annotations

import math

import numpy as np

NAMES = ("dice", "iou", "sensitivity", "specificity", "hd95")


def scores(truth: np.ndarray, predicted: np.ndarray, inside: np.ndarray | None = None) -> dict[str, float]:
    """The metrics in NAMES for one structure of one image, within the pixels `inside` (for example a field of view).

    If the true mask is empty, dice, iou, sensitivity and hd95 are NaN. If only the predicted mask is empty, hd95 is NaN,
    and dice, iou and sensitivity are 0.
    """
    if inside is not None:
        truth, predicted = truth & inside, predicted & inside
    area = truth.size if inside is None else int(inside.sum())
    positive, hit, both = int(truth.sum()), int(predicted.sum()), int((truth & predicted).sum())
    nan = math.nan
    return {
        "dice": 2 * both / (positive + hit) if positive else nan,
        "iou": both / (positive + hit - both) if positive else nan,
        "sensitivity": both / positive if positive else nan,
        "specificity": (area - positive - hit + both) / (area - positive) if area > positive else nan,
        "hd95": hausdorff_95(truth, predicted),
    }


def hausdorff_95(first: np.ndarray, second: np.ndarray) -> float:
    """The 95 % Hausdorff distance of two masks in pixels; NaN if a mask is empty.

    It is the larger of the two 95th percentiles of the distances from one surface to the other. The surface of a mask
    consists of its pixels with a neighbour outside the mask (or outside the image).

    Source: Huttenlocher et al. 1993, IEEE TPAMI 15:850, with percentiles in place of maxima.
    """
    if not first.any() or not second.any():
        return math.nan
    box = tuple(
        slice(int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1) for line in _lines(first | second)
    )
    first, second = np.pad(first[box], 1), np.pad(second[box], 1)
    edges = [_surface(first), _surface(second)]
    there, back = (_distances(edges[1])[edges[0]], _distances(edges[0])[edges[1]])
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _lines(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(mask.any(1)), np.asarray(mask.any(0))


def _surface(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def _distances(surface: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.distance_transform_edt(~surface)  # type: ignore[return-value]
