"""Position tables: interpolation to another grid, by the rule of each original implementation, sinusoids, rotary positions.

The interpolation matrices are explicit, in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fundax.types import Array, UserError


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel with parameter `a` (Keys 1981, equation 4), for x of any shape."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def antialiased(old: int, new: int) -> np.ndarray:
    """Matrix [new old] of open_clip's rule: antialiased bicubic interpolation with a = -0.5 and pixel centres.

    Equal to jax.image.resize(method="cubic", antialias=True) and PyTorch's antialiased interpolate.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = cubic((np.arange(old)[None] - centres[:, None]) / max(scale, 1.0), -0.5)
    return weights / weights.sum(1, keepdims=True)


def aligned_corners(old: int, new: int) -> np.ndarray:
    """Matrix [new old] of RET-CLIP's and Chinese-CLIP's rule: bicubic with a = -0.75 and aligned corners.

    Edges are repeated, without antialiasing.
    """
    return _four_taps(np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0), old)


def pixel_centres(old: int, new: int) -> np.ndarray:
    """Matrix [new old] by which DINO, iBOT and VisionFM fit a checkpoint to another grid when loading it.

    Bicubic with a = -0.75 and pixel centres, edges repeated, no antialiasing: PyTorch's interpolate with a size.
    """
    return _four_taps((np.arange(new) + 0.5) * (old / new) - 0.5, old)


def scaled(old: int, new: int) -> np.ndarray:
    """Matrix [new old] by which the same code interpolates positions at run time, for crops of another size.

    As pixel_centres, but with the scale factor (new + 0.1) / old, which keeps PyTorch from rounding the grid down.
    """
    return _four_taps((np.arange(new) + 0.5) * (old / (new + 0.1)) - 0.5, old)


def _four_taps(centres: np.ndarray, old: int) -> np.ndarray:
    """Cubic weights [new old] (a = -0.75) of the four pixels around each centre; pixels beyond an edge repeat it."""
    weights = np.zeros((len(centres), old))
    rows = np.arange(len(centres))
    for tap in (-1, 0, 1, 2):
        source = np.floor(centres) + tap
        np.add.at(weights, (rows, np.clip(source, 0, old - 1).astype(int)), cubic(centres - source, -0.75))
    return weights


def resize_positions(
    table: Array, rows: int, rule: Callable[[int, int], np.ndarray] = antialiased, *, class_row: bool = True
) -> np.ndarray:
    """Interpolate a position table [N D] of a square grid to `rows` rows; f32 [rows D].

    The first row, that of the class token, is copied. A table of the right size is returned unchanged.
    Raises UserError if one of the two grids is not square.
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


def sin_cos(x: Array, rates: Array) -> jax.Array:
    """Sine and cosine of x [...] times every rate [F]; f32 [... F 2]."""
    x = jnp.asarray(x, jnp.float32)[..., None]
    angles = x * jnp.asarray(rates, jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of a grid of patches (DINOv3, arXiv:2508.10104): channels are turned by angles of row and column.

    base: of the periods. rows, columns: of the grid. first: tokens before the patches, which are not turned, like those
    after them.
    """

    base: float
    rows: int
    columns: int
    first: int = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Queries or keys [B N H C] with the patches turned; C is a multiple of 4."""
        cosine, sine = (jnp.asarray(table, x.dtype)[None, :, None] for table in self.tables(x.shape[-1]))
        last = self.first + self.rows * self.columns
        patches = x[:, self.first : last]
        half = x.shape[-1] // 2
        turned = jnp.concatenate([-patches[..., half:], patches[..., :half]], axis=-1)
        return jnp.concatenate([x[:, : self.first], patches * cosine + turned * sine, x[:, last:]], axis=1)

    def tables(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines f32 [patches C]; places are the centres of the patches, from -1 to 1."""
        places = np.meshgrid(*((2 * (np.arange(n) + 0.5) / n - 1) for n in (self.rows, self.columns)), indexing="ij")
        frequencies = self.base ** -np.arange(0, 1, 4 / channels)
        angles = 2 * np.pi * np.stack(places, -1).reshape(-1, 2, 1) * frequencies[None, None]  # [N 2 C/4]
        angles = np.tile(angles.reshape(len(angles), -1), 2)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
