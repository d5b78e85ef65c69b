"""Map predictions back to the grid of the original image, and apply a model to a large image with sliding windows.

`frame` f32 [3 2] are the positions (x, y) of the original's points (0, 0), (1000, 0) and (0, 1000) in the input image of
the model. Crops, resizes, flips and rotations are affine, so these three points determine them. Frames come from
data_pipelines.transforms.dense.

`slide` blends the predictions of overlapping windows. All windows have the model's size, so the model is compiled once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fundax.types import UserError

UNIT = 1000.0


def axes(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices f64 [B 2 2] and origins [B 2] of frames [B 3 2], where input = matrix @ original + origin."""
    frame = np.asarray(frame, np.float64)
    origin = frame[:, 0]
    return np.swapaxes((frame[:, 1:] - origin[:, None]) / UNIT, 1, 2), origin


def original_points(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Map points [B n 2] in the input images to pixels of the original images; f64 [B n 2]. frame f32 [B 3 2]."""
    matrix, origin = axes(frame)
    moved = np.asarray(points, np.float64) - origin[:, None]
    return np.einsum("bij,bnj->bni", np.linalg.inv(matrix), moved)


def original_map(values: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample values [h w K] of an input image to the grid of the original image, bilinearly; f32 [H W K].

    `frame` is f32 [3 2] and `size` is (H, W). Pixels of the original that the input image does not show, because they were
    cropped away, are 0.
    """
    from scipy import ndimage

    matrix, origin = (part[0] for part in axes(frame[None]))
    flip = np.array([[0, 1], [1, 0]])  # scipy uses (row, column)
    out = np.empty((*size, values.shape[-1]), np.float32)
    for k in range(values.shape[-1]):
        ndimage.affine_transform(
            values[..., k], flip @ matrix @ flip, origin[::-1], size, out[..., k], order=1, mode="nearest"
        )
    shown = [
        np.abs(part - (length - 1) / 2) < length / 2 + 1e-3
        for part, length in zip(_positions(matrix, origin, size), values.shape[1::-1], strict=True)
    ]
    out[~(shown[0] & shown[1])] = 0
    return out


def _positions(matrix: np.ndarray, origin: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The positions x and y f64 [H W] in the input image of all pixels of the original."""
    y, x = np.ogrid[: size[0], : size[1]]
    return [row[0] * x + row[1] * y + start for row, start in zip(matrix, origin, strict=True)]


Maps = Callable[[np.ndarray], np.ndarray]  # u8 [B s s 3] -> f32 [B s s K]


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of windows along a side, evenly spaced, which overlap by at least the fraction `overlap`.

    Raises UserError for an overlap outside 0..0.9.
    """
    if not 0 <= overlap <= 0.9:
        raise UserError(f"windows overlap by {overlap} of their side; expected 0 to 0.9")
    if length <= window:
        return [0]
    count = int(np.ceil((length - window) / max(window * (1 - overlap), 1))) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def blend(window: int) -> np.ndarray:
    """Blending weights f32 [s s] of a window: 1 in the centre, falling linearly towards the edge, never 0."""
    ramp = 1 - np.abs(np.arange(window) + 0.5 - window / 2) / (window / 2)
    ramp = np.maximum(ramp, 1 / window).astype(np.float32)
    return ramp[:, None] * ramp[None]


def slide(maps: Maps, image: np.ndarray, window: int, overlap: float = 0.5, batch: int = 16) -> np.ndarray:
    """Predictions f32 [H W K] of `maps` for an image u8 [H W 3], blended from square windows of `window` pixels.

    A smaller image is padded with zeros. `maps` is always called with `batch` windows; the last window is repeated.
    """
    height, width = image.shape[:2]
    room = (max(window - height, 0), max(window - width, 0))
    padded = np.pad(image, ((0, room[0]), (0, room[1]), (0, 0)))
    places = [(y, x) for y in starts(len(padded), window, overlap) for x in starts(padded.shape[1], window, overlap)]
    weights = blend(window)[..., None]
    total, weight = None, np.zeros((*padded.shape[:2], 1), np.float32)
    for at in range(0, len(places), batch):
        chosen = places[at : at + batch]
        views = [padded[y : y + window, x : x + window] for y, x in chosen]
        predictions = maps(np.stack(views + views[-1:] * (batch - len(views))))
        total = np.zeros((*padded.shape[:2], predictions.shape[-1]), np.float32) if total is None else total
        for (y, x), values in zip(chosen, predictions, strict=False):
            total[y : y + window, x : x + window] += weights * values
            weight[y : y + window, x : x + window] += weights
    assert total is not None
    return (total / weight)[:height, :width]
