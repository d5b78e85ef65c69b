"""Position tables moved to another grid, by each peer's own rule, as explicit matrices in float64 numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fundax.types import Array, UserError


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of parameter `a` (Keys 1981, eq. 4 and its family), any shape."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def antialiased(old: int, new: int) -> np.ndarray:
    """[new old] of open_clip's rule: bicubic, a = -0.5, pixel centres, widened and renormalised when shrinking.

    The same as jax.image.resize(method="cubic", antialias=True), and as torch's antialiased interpolate.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = cubic((np.arange(old)[None] - centres[:, None]) / max(scale, 1.0), -0.5)
    return weights / weights.sum(1, keepdims=True)


def aligned_corners(old: int, new: int) -> np.ndarray:
    """[new old] of RET-CLIP's and Chinese-CLIP's rule: bicubic, a = -0.75, corners aligned, edges repeated, no antialiasing."""
    return _four_taps(np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0), old)


def pixel_centres(old: int, new: int) -> np.ndarray:
    """[new old] of the rule by which DINO-family code (iBOT, VisionFM) fits a checkpoint to another grid when it is loaded.

    Bicubic, a = -0.75, pixel centres, edges repeated, no antialiasing: torch's interpolate with a size.
    """
    return _four_taps((np.arange(new) + 0.5) * (old / new) - 0.5, old)


def scaled(old: int, new: int) -> np.ndarray:
    """[new old] of the rule by which the same code moves positions at run time, for crops of another size.

    As pixel_centres, but with the scale factor (new + 0.1) / old: their guard against a grid that is rounded down.
    """
    return _four_taps((np.arange(new) + 0.5) * (old / (new + 0.1)) - 0.5, old)


def _four_taps(centres: np.ndarray, old: int) -> np.ndarray:
    """[new old]: cubic weights, a = -0.75, of the four pixels around each centre; those beyond the edge fall on it."""
    weights = np.zeros((len(centres), old))
    rows = np.arange(len(centres))
    for tap in (-1, 0, 1, 2):
        source = np.floor(centres) + tap
        np.add.at(weights, (rows, np.clip(source, 0, old - 1).astype(int)), cubic(centres - source, -0.75))
    return weights


def resize_positions(
    table: Array, rows: int, rule: Callable[[int, int], np.ndarray] = antialiased, *, class_row: bool = True
) -> np.ndarray:
    """A table [N D] of a square grid, moved to `rows` rows (again a square grid); f32 [rows D].

    The class row, first, is copied. A table that has the size already is returned as it is.
    Raises UserError if either number of rows is not a square (plus the class row).
    """
    table = np.asarray(table, np.float32)
    if len(table) == rows:
        return table
    skip = int(class_row)
    old, new = _side(len(table) - skip), _side(rows - skip)
    matrix = rule(old, new)
    grid = table[skip:].astype(np.float64).reshape(old, old, -1)
    moved = np.einsum("ia,jb,abd->ijd", matrix, matrix, grid, optimize=True)
    return np.concatenate([table[:skip], moved.reshape(new * new, -1).astype(np.float32)])


def _side(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side * side != patches or side == 0:
        raise UserError(f"a position table of {patches} patches is not a square grid")
    return side
