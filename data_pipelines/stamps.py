"""Drawing in degrees of the retina: frames, soft ellipses, lines. Multiplication, addition and square roots only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.noise import tile


@dataclass(frozen=True)
class Frame:
    """Where a picture of `size` pixels looks: its centre in degrees (fovea at 0, nasal is +x, down is +y)."""

    size: int
    per_degree: float  # pixels in one degree
    x: float
    y: float

    def pixels(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates of points in degrees."""
        middle = (self.size - 1) / 2
        return (
            (np.asarray(x) - self.x) * self.per_degree + middle,
            (np.asarray(y) - self.y) * self.per_degree + middle,
        )

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Degrees of every column f32 [1 w] and every row f32 [h 1]."""
        axis = _axis(self.size) * np.float32(1 / self.per_degree)
        return axis[None] + np.float32(self.x), axis[:, None] + np.float32(self.y)

    def squared(self, x: float, y: float, rx: float = 1.0, ry: float = 1.0) -> np.ndarray:
        """f32 [h w]: squared distance from a point in degrees, each axis in units of its radius."""
        u, v = self.grid()
        u = (u - np.float32(x)) * np.float32(1 / rx)
        v = (v - np.float32(y)) * np.float32(1 / ry)
        return u * u + v * v


@lru_cache
def _axis(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)


def ellipse(frame: Frame, x: float, y: float, rx: float, ry: float, soft: float = 0.25) -> np.ndarray:
    """f32 [h w]: coverage of an upright ellipse whose edge is `soft` degrees wide (at least a pixel)."""
    edge = max(soft, 1 / frame.per_degree)
    d = np.sqrt(frame.squared(x, y, rx, ry))
    return np.clip((1 - d) * np.float32((rx + ry) / 2 / edge) + np.float32(0.5), 0, 1)


def _window(frame: Frame, x: np.ndarray, y: np.ndarray, reach: int) -> np.ndarray:
    """Which points have a window of `reach` pixels that touches the picture."""
    return (x > -reach) & (x < frame.size + reach) & (y > -reach) & (y < frame.size + reach)


def _splat(size: int, x: np.ndarray, y: np.ndarray, reach: int) -> tuple[np.ndarray, ...]:
    """Flat indices into a padded canvas and offsets (dx, dy) of the windows around points. All [n k k]."""
    pad = 2 * reach + 1
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    step = np.arange(-reach, reach + 2)
    dx = (column - x)[:, None, None] + step[None, None, :]
    dy = (row - y)[:, None, None] + step[None, :, None]
    index = (row[:, None, None] + step[None, :, None] + pad) * (size + 2 * pad)
    return index + (column[:, None, None] + step[None, None, :] + pad), dx, dy


def _keep(size: int, reach: int, index: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The largest coverage at every pixel, f32 [h w]."""
    pad = 2 * reach + 1
    side = size + 2 * pad
    canvas = np.zeros(side * side, np.float32)
    np.maximum.at(canvas, index.reshape(-1), cover.astype(np.float32).reshape(-1))
    return canvas.reshape(side, side)[pad : pad + size, pad : pad + size]


def blots(frame: Frame, marks: np.ndarray, soft: float = 0.3, rough: float = 0.0) -> np.ndarray:
    """f32 [h w]: coverage of marks [n 6] = (x, y, rx, ry, cos, sin) in degrees.

    `soft` is the width of the edge as a share of the radius, `rough` (0..1) how ragged the outline is. Marks below
    0.55 pixels are drawn at that radius: a microaneurysm is smaller than a pixel, and is still seen.
    """
    out = np.zeros((frame.size, frame.size), np.float32)
    if not len(marks):
        return out
    x, y = frame.pixels(marks[:, 0], marks[:, 1])
    radii = np.maximum(marks[:, 2:4] * frame.per_degree, 0.55)
    largest = np.maximum(radii[:, 0], radii[:, 1])
    for low, high in ((0.0, 2.0), (2.0, 6.0), (6.0, 1e9)):
        group = (largest > low) & (largest <= high)
        reach = int(largest[group].max() * (1.15 + 0.6 * rough) + 1.5) if group.any() else 0
        group &= _window(frame, x, y, reach)
        if group.any():
            part = _blots(frame, x[group], y[group], radii[group], marks[group, 4:6], soft, rough, reach)
            out = np.maximum(out, part)
    return out


def _blots(
    frame: Frame,
    x: np.ndarray,
    y: np.ndarray,
    radii: np.ndarray,
    turn: np.ndarray,
    soft: float,
    rough: float,
    reach: int,
) -> np.ndarray:
    index, dx, dy = _splat(frame.size, x, y, reach)
    c, s = turn[:, 0, None, None], turn[:, 1, None, None]
    u = (dx * c + dy * s) / radii[:, 0, None, None]
    v = (dy * c - dx * s) / radii[:, 1, None, None]
    d = np.sqrt(u * u + v * v)
    if rough:
        # the outline's noise keeps its grain in units of the radius, so big blots get big bays
        k = (np.arange(len(x)) * 37)[:, None, None]
        ragged = tile("cloud")[
            (np.floor(v * 14).astype(np.int64) + k) % 512, (np.floor(u * 14).astype(np.int64) + k) % 512
        ]
        d = d * (1 + rough * (ragged / 255 - 0.5))
    small = np.minimum(radii[:, 0], radii[:, 1])[:, None, None]
    cover = np.clip((1 - d) * small / np.maximum(soft * small, 0.9) + 0.5, 0, 1)
    return _keep(frame.size, reach, index, cover)


def lines(frame: Frame, segments: np.ndarray) -> np.ndarray:
    """f32 [h w]: coverage of segments [n 6] = (x0, y0, x1, y1, width0, width1) in degrees."""
    x0, y0 = frame.pixels(segments[:, 0], segments[:, 1])
    x1, y1 = frame.pixels(segments[:, 2], segments[:, 3])
    seen = _window(frame, x0, y0, 2) | _window(frame, x1, y1, 2)
    if not seen.any():
        return np.zeros((frame.size, frame.size), np.float32)
    x0, y0, x1, y1, w = x0[seen], y0[seen], x1[seen], y1[seen], segments[seen, 4:6] * frame.per_degree
    length = np.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
    count = np.ceil(length / 0.75).astype(np.int64) + 1
    which = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    t = (np.arange(len(which)) - first[which]) / count[which]
    x = x0[which] + t * (x1 - x0)[which]
    y = y0[which] + t * (y1 - y0)[which]
    radius = 0.5 * (w[which, 0] + t * (w[:, 1] - w[:, 0])[which])
    return _beads(frame, x, y, radius)


def _beads(frame: Frame, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    out = np.zeros((frame.size, frame.size), np.float32)
    for low, high in ((-1.0, 0.5), (0.5, 1.5), (1.5, 1e9)):
        group = (radius > low) & (radius <= high)
        if not group.any():
            continue
        r = radius[group]
        reach = int(r.max() + 0.5)
        group &= _window(frame, x, y, reach)
        r = radius[group][:, None, None]
        index, dx, dy = _splat(frame.size, x[group], y[group], reach)
        d = np.sqrt(dx * dx + dy * dy)
        # a vessel thinner than a pixel is drawn one pixel wide and as faint as it is thin
        cover = np.clip(np.maximum(r, 0.5) + 0.5 - d, 0, 1) * np.minimum(1, 2 * r)
        out = np.maximum(out, _keep(frame.size, reach, index, cover))
    return out
