"""FLAIR's way of making an image square: the longer side to the size, the rest black at the right and at the bottom.

Two forms: `flair_pixels` in floats, as the peer's model sees an image; and the step `Canvas`, in u8, for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.geometry import Crop, Move, Resize, move
from data_pipelines.records import DataError
from data_pipelines.transforms import present

SIZE = 512  # FLAIR's


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width on a canvas of `size`: cut to whole pixels, never rounded up."""
    scale = max(height, width) / size
    return int(height / scale), int(width / scale)


def flair_pixels(image: np.ndarray, size: int = SIZE, *, antialias: bool = True, canvas: bool = True) -> np.ndarray:
    """The pixels FLAIR's model sees: f32 [size size 3] from 0 to 1.

    Args:
        image: u8 [H W 3].
        antialias: False is what FLAIR did before 2025-11-27 with torchvision before 0.17.
        canvas: False squashes to a square instead.
    Raises:
        DataError: any other array.

    Source: github.com/jusiro/FLAIR, preprocess_image: divided by 255 and nothing more.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"FLAIR takes images u8 [H W 3], this one is {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    tall, wide = fitted(height, width, size) if canvas and height != width else (size, size)
    out = np.zeros((size, size, 3), np.float32)
    rows, columns = triangles(height, tall, antialias), triangles(width, wide, antialias)
    out[:tall, :wide] = np.einsum("ah,bw,hwc->abc", rows, columns, image / 255.0, optimize=True)
    return out


def triangles(old: int, new: int, antialias: bool) -> np.ndarray:
    """Weights f64 [new old] of bilinear resizing: triangles about the centres of pixels, widened where it shrinks."""
    if antialias:
        reach, centres = max(old / new, 1.0), (np.arange(new) + 0.5) * (old / new) - 0.5
    else:  # torch finds its two neighbours in fp32, which at the right end is 1e-5 of a grey level from the truth
        reach, scale = 1.0, np.float32(old) / np.float32(new)
        centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    if reach == 1:
        centres = np.clip(centres, 0, old - 1)
    weights = np.maximum(0.0, 1 - np.abs(np.arange(old)[None] - centres[:, None]) / reach)
    return weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class Canvas:
    """The longer side to `size`, black below or to the right, in u8; mask and points go along."""

    size: int = SIZE

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            example = move(example, key, self.moves(*example[key].shape[:2]))
        return example

    def moves(self, height: int, width: int) -> tuple[Move, ...]:
        """The resize and, where the image is no square, the filling up."""
        tall, wide = fitted(height, width, self.size)
        resize = Resize(tall, wide, "bilinear")
        return (resize,) if tall == wide else (resize, Crop(0, 0, self.size, self.size))


def foreground(image: np.ndarray) -> Crop:
    """The box of the lit eye in [H W 3]: the largest region that is redder than Li's threshold.

    Source: github.com/jusiro/FLAIR, its crop for transfer (LoadImage, foreground by Li's minimum cross-entropy).
    """
    from scipy import ndimage

    red = np.asarray(image[:, :, 0], np.float64)
    regions = np.zeros(red.shape, np.int32)
    count = ndimage.label(red > li_threshold(red), structure=np.ones((3, 3)), output=regions)
    if not count:
        return Crop(0, 0, *red.shape)
    largest = regions == 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = (np.flatnonzero(largest.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    return Crop(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def li_threshold(x: np.ndarray) -> float:
    """The threshold of least cross-entropy between an image and its two classes, by Li and Tam's iteration (1998)."""
    least = float(x.min())
    x = x.ravel() - least
    values = np.unique(x)
    if len(values) < 2:
        return least
    tolerance, now, after = np.diff(values).min() / 2, -np.inf, x.mean()
    while abs(after - now) > tolerance:
        now = after
        bright, dark = x[x > now].mean(), x[x <= now].mean()
        if dark == 0:
            break
        after = (dark - bright) / (np.log(dark) - np.log(bright))
    return least + float(after)
