"""Geometric transforms of an image together with its mask and points: crop, resize, rotate, flip.

Points are (x, y) in pixels. Whole numbers are pixel centres: the point (3, 2) is the centre of mask[2, 3]. Points are
transformed exactly, so they may become fractions or leave the image; masks take the nearest pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Move(Protocol):
    """A transform of pixels, u8 [H W 3] or a mask [H W] with `nearest`, and of points f32 [n 2] in an image of `size`."""

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray: ...
    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray: ...


@dataclass(frozen=True)
class Crop:
    """Cut out the box at (top, left). Pixels outside the image are 0, so a crop can also pad."""

    top: int
    left: int
    height: int
    width: int

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        height, width = array.shape[:2]
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, height), min(self.left + self.width, width)
        inside = array[top : max(bottom, top), left : max(right, left)]
        if inside.shape[:2] == (self.height, self.width):
            return inside
        out = np.zeros((self.height, self.width, *array.shape[2:]), array.dtype)
        at = (top - self.top, left - self.left)
        out[at[0] : at[0] + inside.shape[0], at[1] : at[1] + inside.shape[1]] = inside
        return out

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return points - np.asarray([self.left, self.top], np.float32)


@dataclass(frozen=True)
class Resize:
    """Resize to (height, width) with Pillow, whose filters are antialiased."""

    height: int
    width: int
    interpolation: str = "bicubic"

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        if array.shape[:2] == (self.height, self.width):
            return array
        how = INTERPOLATIONS["nearest" if nearest else self.interpolation]
        return np.asarray(Image.fromarray(array).resize((self.width, self.height), how))

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        scale = np.asarray([self.width / size[1], self.height / size[0]], np.float32)
        return (points + np.float32(0.5)) * scale - np.float32(0.5)


@dataclass(frozen=True)
class Rotate:
    """Rotate clockwise by degrees around the centre: nearest pixel, 0 outside, same canvas.

    Source: the inverse matrix around (W/2, H/2) of torchvision's `functional.affine` for a Pillow image.
    """

    degrees: float

    def _inverse(self, height: int, width: int) -> tuple[float, ...]:
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        x, y = width * 0.5, height * 0.5
        return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        height, width = array.shape[:2]
        inverse = self._inverse(height, width)
        rotated = Image.fromarray(array).transform(
            (width, height), Image.Transform.AFFINE, inverse, INTERPOLATIONS["nearest"], fillcolor=0
        )
        return np.asarray(rotated)

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        cos, sin, _, _, _, _ = self._inverse(*size)
        middle = np.asarray([size[1] - 1, size[0] - 1], np.float32) / 2
        x, y = np.moveaxis(points - middle, -1, 0)
        rotated = np.stack([cos * x - sin * y, sin * x + cos * y], -1)
        return (rotated + middle).astype(np.float32)


@dataclass(frozen=True)
class Mirror:
    """Flip horizontally."""

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        return array[:, ::-1]

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.stack([size[1] - 1 - points[..., 0], points[..., 1]], -1)


@dataclass(frozen=True)
class FlipRows:
    """Flip vertically."""

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        return array[::-1]

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.stack([points[..., 0], size[0] - 1 - points[..., 1]], -1)


@dataclass(frozen=True)
class Transpose:
    """Exchange rows and columns. Together with the flips it gives lossless rotations by right angles."""

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        return array.swapaxes(0, 1)

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return points[..., ::-1]


@dataclass(frozen=True)
class Affine:
    """Rotate clockwise by degrees around the centre, scale, then shift by (right, down) pixels; bilinear, 0 outside."""

    degrees: float
    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0

    def pixels(self, array: np.ndarray, nearest: bool = False) -> np.ndarray:
        height, width = array.shape[:2]
        cos, sin = (f(math.radians(self.degrees)) / self.scale for f in (math.cos, math.sin))
        x, y = width / 2 + self.right, height / 2 + self.down
        inverse = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
        how = INTERPOLATIONS["nearest" if nearest else "bilinear"]
        moved = Image.fromarray(array).transform((width, height), Image.Transform.AFFINE, inverse, how, fillcolor=0)
        return np.asarray(moved)

    def points(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        cos, sin = (f(math.radians(self.degrees)) * self.scale for f in (math.cos, math.sin))
        middle = np.asarray([size[1] - 1, size[0] - 1], np.float32) / 2
        x, y = np.moveaxis(points - middle, -1, 0)
        moved = np.stack([cos * x - sin * y + self.right, sin * x + cos * y + self.down], -1)
        return (moved + middle).astype(np.float32)


MASKS = ("mask", "fov")  # keys that are transformed with `image`: classes [H W], or [H W K] of 0 and 1
POINTS = ("points", "frame")


def move(example: dict[str, Any], key: str, moves: Iterable[Move]) -> dict[str, Any]:
    """Transform the image under `key`; for "image", also the MASKS and POINTS of the example."""
    out = dict(example)
    for step in moves:
        size = out[key].shape[:2]
        out[key] = np.ascontiguousarray(step.pixels(out[key]))
        for name in MASKS if key == "image" else ():
            if name in out:
                out[name] = mask_pixels(step, out[name])
        for name in POINTS if key == "image" else ():
            if name in out:
                out[name] = step.points(out[name], size)
    return out


def mask_pixels(step: Move, mask: np.ndarray) -> np.ndarray:
    """Transform a mask with nearest pixels; Pillow takes the channels of [H W K] one at a time."""
    if mask.ndim == 2:
        return np.ascontiguousarray(step.pixels(mask, nearest=True))
    return np.stack([step.pixels(np.ascontiguousarray(m), nearest=True) for m in np.moveaxis(mask, -1, 0)], -1)


RESIZE_MODES = ("squash", "shortest", "longest", "canvas")


def resize_moves(
    size: tuple[int, int], to: int, mode: str, interpolation: str = "bicubic", resize_to: int = 0, down: bool = False
) -> tuple[Move, ...]:
    """The transforms from size (H, W) to a square of `to` pixels.

    `mode` is "squash" (ignore the aspect ratio), "shortest" (crop the centre), "longest" (pad with 0 around the image) or
    "canvas" (pad with 0 below it or to its right). resize_to: resize to this many pixels instead, and then cut or pad the
    centre to `to`. down: the place of that cut is rounded down, as in transformers.

    Source: open_clip 2.30 `image_transform` and torchvision, which truncates the longer side, while `longest` rounds
    both; `canvas` is FLAIR's `preprocess_image`, which truncates both.
    """
    height, width = size
    edge = resize_to or to
    high = wide = edge
    if mode == "canvas":
        high, wide = fitted(height, width, edge)
    elif mode == "shortest":
        high, wide = (int(edge * side / min(size)) for side in size)
    elif mode == "longest":
        ratio = max(height, width) / edge
        high, wide = (max(round(side / ratio), 1) for side in size)
    resize = Resize(high, wide, interpolation)
    if (high, wide) == (to, to):
        return (resize,)
    if mode == "canvas":
        return resize, Crop(0, 0, to, to)
    return resize, Crop(_middle(high, to, down), _middle(wide, to, down), to, to)


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image resized to fit FLAIR's canvas of `size`, rounded down to whole pixels."""
    scale = max(height, width) / size
    return (size, size) if height == width else (max(int(height / scale), 1), max(int(width / scale), 1))


def _middle(length: int, to: int, down: bool) -> int:
    """The first pixel of a centre crop, below 0 if it pads; half a pixel is rounded to even, as torchvision does."""
    if length < to:
        return -((to - length) // 2)
    return (length - to) // 2 if down else round((length - to) / 2)
