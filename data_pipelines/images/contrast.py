"""Local contrast of fundus photographs, whose light is uneven: CLAHE, and the difference from the local average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

Contrast = Literal["none", "clahe", "graham"]


def graham(image: np.ndarray, share: float = 1 / 30) -> np.ndarray:
    """Subtract the local average colour: 4 (image - blurred) + 128 of u8 [H W 3], clipped.

    The blur is a Gaussian whose deviation is `share` of half the image's side.
    Source: B. Graham, Kaggle Diabetic Retinopathy Detection competition report, 2015.
    """
    photograph = Image.fromarray(image)
    blurred = photograph.filter(ImageFilter.GaussianBlur(max(image.shape[:2]) / 2 * share))
    difference = image.astype(np.float32) - np.asarray(blurred, np.float32)
    seen = image.max(axis=2, keepdims=True) > 10  # the frame stays grey, not a bright edge
    return np.clip(np.where(seen, 4 * difference + 128, 128), 0, 255).astype(np.uint8)


def clahe(image: np.ndarray, tiles: int = 8, limit: float = 2.0) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the luminance of u8 [H W 3].

    tiles: number of tiles on each side. limit: largest count of a grey level, relative to a flat histogram.
    Source: K. Zuiderveld, Contrast Limited Adaptive Histogram Equalization, Graphics Gems IV, 1994.
    """
    light, *colour = Image.fromarray(image).convert("YCbCr").split()
    grey = np.asarray(light)
    height, width = grey.shape
    rows, columns = (np.linspace(0, side, tiles + 1).astype(int) for side in (height, width))
    maps = np.empty((tiles, tiles, 256), np.float32)
    for i in range(tiles):
        for j in range(tiles):
            maps[i, j] = _equalised(grey[rows[i] : rows[i + 1], columns[j] : columns[j + 1]], limit)
    (top, below, down), (left, right, across) = (_between(side, tiles) for side in (height, width))
    at = lambda i, j: maps[i[:, None], j[None], grey]  # noqa: E731  [H W]
    upper = at(top, left) * (1 - across)[None] + at(top, right) * across[None]
    lower = at(below, left) * (1 - across)[None] + at(below, right) * across[None]
    even = np.clip(upper * (1 - down)[:, None] + lower * down[:, None], 0, 255).astype(np.uint8)
    return np.asarray(Image.merge("YCbCr", [Image.fromarray(even), *colour]).convert("RGB"))


def _equalised(tile: np.ndarray, limit: float) -> np.ndarray:
    """The new value f32 [256] of each grey level of a tile."""
    counts = np.bincount(tile.ravel(), minlength=256).astype(np.float32)
    most = max(limit * tile.size / 256, 1)
    over = np.maximum(counts - most, 0).sum()
    counts = np.minimum(counts, most) + over / 256
    return np.cumsum(counts) * (255 / max(tile.size, 1))


def _between(side: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tile before, tile after and the share of the second, for each pixel of a side."""
    place = np.clip((np.arange(side) + 0.5) * tiles / side - 0.5, 0, tiles - 1)
    first = np.floor(place).astype(int)
    return first, np.minimum(first + 1, tiles - 1), (place - first).astype(np.float32)


CONTRASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda image: image,
    "clahe": clahe,
    "graham": graham,
}
