"""Thumbnails of the most informative rows of an evaluation, and overlays of truth and prediction on a photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from fundax.types import Batch, UserError

SIDE = 96  # pixels of a thumbnail


# selection -> whether the prediction is correct, and the sign by which certainty is sorted (lowest first)
ANSWERS = {
    "correct, confident": (True, -1.0),
    "correct, uncertain": (True, 1.0),
    "wrong, uncertain": (False, 1.0),
    "wrong, confident": (False, -1.0),
}


class Thumbnails:
    """Collects thumbnails of the most extreme rows of each selection, batch by batch."""

    def __init__(self, count: int, kinds: Mapping[str, tuple[bool, float]]) -> None:
        self._each, self._kinds = count // len(kinds), kinds
        self._best: dict[str, list[tuple[float, int, np.ndarray]]] = {kind: [] for kind in kinds}

    def offer(self, batch: Batch, known: np.ndarray, before: int, right: np.ndarray, measure: np.ndarray) -> None:
        """Add the rows of a batch where `known` [B] is True; `before` is the number of earlier rows."""
        images = batch.get("picture", batch.get("image"))
        if images is None or np.asarray(images).dtype != np.uint8 or np.ndim(images) != 4 or not self._each:
            return
        chosen, right, measure = np.flatnonzero(known), right[known], measure[known]
        for kind, (want, sign) in self._kinds.items():
            order = [k for k in np.argsort(sign * measure, kind="stable") if right[k] == want][: self._each]
            pool = self._best[kind] + [(sign * float(measure[k]), before + int(k), images[chosen[k]]) for k in order]
            pool = sorted(pool, key=lambda entry: entry[:2])[: self._each]
            self._best[kind] = [(a, b, image if image.shape[0] == SIDE else _small(image)) for a, b, image in pool]

    def arrays(self) -> dict[str, np.ndarray]:
        """pictures u8 [T 96 96 3], picture_row i64 [T] and picture_kind [T]; empty if no batch had images."""
        selected = [(kind, row, image) for kind, entries in self._best.items() for _, row, image in entries]
        if not selected:
            return {}
        kinds, rows, images = zip(*selected, strict=True)
        return {"pictures": np.stack(images), "picture_row": np.array(rows), "picture_kind": np.array(kinds)}


def _small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


# Okabe and Ito's colours, which are distinguishable with any colour vision and on red fundi. More classes repeat them.
COLOURS = ((86, 180, 233), (240, 228, 66), (0, 158, 115), (204, 121, 167), (230, 159, 0), (255, 255, 255))


def masks_over(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, side: int = 256) -> np.ndarray:
    """Draw three square panels, u8 [side 3 side + 8 3]: the photograph, and overlays of the true and predicted masks.

    image u8 [H W 3]; truth, predicted bool [H W K]. Masks are half transparent, in the colour of their class.
    """
    small = _scaled(image, side)
    return _in_a_row([small, *(_painted(small, channels, side) for channels in (truth, predicted))])


def points_over(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, side: int = 256) -> np.ndarray:
    """Draw two square panels, u8 [side 2 side + 4 3]: the photograph without and with landmarks.

    Circles are the truth, and crosses the predictions. image u8 [H W 3]; truth, predicted f32 [n 2] as (x, y) in pixels
    of the image, NaN if missing.
    """
    small = _scaled(image, side)
    scale = np.array([side / image.shape[1], side / image.shape[0]])
    marked = small.copy()
    for k, (right, guess) in enumerate(zip(truth, predicted, strict=True)):
        colour = COLOURS[k % len(COLOURS)]
        for point, mark in ((right, _ring), (guess, _cross)):
            if np.isfinite(point).all():
                x, y = (point + 0.5) * scale - 0.5
                marked[mark(side, float(x), float(y))] = colour
    return _in_a_row([small, marked])


def extremes(scores: np.ndarray, each: int = 6) -> np.ndarray:
    """Rows with the `each` lowest and the `each` highest scores [N], in ascending order, without NaN."""
    order = np.argsort(scores, kind="stable")[: int(np.isfinite(scores).sum())]
    return order if len(order) <= 2 * each else np.concatenate([order[:each], order[-each:]])


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    if image.ndim != 3 or image.dtype != np.uint8:
        raise UserError(f"expected an image u8 [H W 3], got {image.dtype} {image.shape}")
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _painted(small: np.ndarray, channels: np.ndarray, side: int) -> np.ndarray:
    out = small.astype(np.float32)
    for k in range(channels.shape[-1]):
        cover = Image.fromarray(channels[..., k].astype(np.uint8) * 255).resize((side, side), Image.Resampling.BILINEAR)
        weight = np.asarray(cover, np.float32)[..., None] / 255 * 0.65
        out = out * (1 - weight) + np.array(COLOURS[k % len(COLOURS)], np.float32) * weight
    return np.round(out).astype(np.uint8)


def _in_a_row(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    white = np.full((len(pictures[0]), gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (white, picture)][1:]
    return np.concatenate(parts, axis=1)


def _ring(side: int, x: float, y: float) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    distance = np.sqrt((columns - x) ** 2 + (rows - y) ** 2)
    return np.abs(distance - side / 24) < max(1.0, side / 200)


def _cross(side: int, x: float, y: float) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    thick, long = max(0.8, side / 320), side / 36
    across = (np.abs(rows - y) < thick) & (np.abs(columns - x) < long)
    return across | ((np.abs(columns - x) < thick) & (np.abs(rows - y) < long))
