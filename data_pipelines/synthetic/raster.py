"""Drawing primitives in degrees of the retina: frames, soft ellipses and lines.

Only multiplication, addition and square roots are used, which give the same bits on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.synthetic.noise import tile


@dataclass(frozen=True)
class Frame:
    """The field of an image of `size` pixels: its centre in degrees (fovea at 0, nasal is +x, down is +y) and scale."""

    size: int
    per_degree: float  # pixels in one degree
    x: float
    y: float

    def pixels(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The pixel coordinates of points in degrees."""
        middle = (self.size - 1) / 2
        return (
            (np.asarray(x) - self.x) * self.per_degree + middle,
            (np.asarray(y) - self.y) * self.per_degree + middle,
        )

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The degrees of each column f32 [1 w] and each row f32 [h 1]."""
        axis = _axis(self.size) * np.float32(1 / self.per_degree)
        return axis[None] + np.float32(self.x), axis[:, None] + np.float32(self.y)

    def squared(self, x: float, y: float, rx: float = 1.0, ry: float = 1.0) -> np.ndarray:
        """Squared distance f32 [h w] from a point in degrees, with each axis in units of its radius."""
        u, v = self.grid()
        u = (u - np.float32(x)) * np.float32(1 / rx)
        v = (v - np.float32(y)) * np.float32(1 / ry)
        return u * u + v * v


@lru_cache
def _axis(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)


def ellipse(frame: Frame, x: float, y: float, rx: float, ry: float, soft: float = 0.25) -> np.ndarray:
    """The coverage f32 [h w] of an upright ellipse with an edge of `soft` degrees, at least one pixel."""
    edge = max(soft, 1 / frame.per_degree)
    d = np.sqrt(frame.squared(x, y, rx, ry))
    return np.clip((1 - d) * np.float32((rx + ry) / 2 / edge) + np.float32(0.5), 0, 1)


def _near(size: int, x: np.ndarray, y: np.ndarray, reach: int) -> np.ndarray:
    """Whether the window of `reach` pixels around each point touches the image."""
    return (x > -reach) & (x < size + reach) & (y > -reach) & (y < size + reach)


@lru_cache
def _offsets(reach: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The offsets f32 [k] of a window around a point, and their flat indices on a canvas [k*k]."""
    step = np.arange(-reach, reach + 2)
    return step.astype(np.float32), (step[:, None] * side + step[None]).reshape(-1)


class _Canvas:
    """Several images in one array, padded so that every window fits. Each pixel keeps its largest coverage."""

    def __init__(self, size: int, count: int = 1) -> None:
        self.size, self.count, self.cover = size, count, np.zeros((count, size, size), np.float32)

    def windows(self, x: np.ndarray, y: np.ndarray, reach: int, which: np.ndarray | int = 0) -> tuple[np.ndarray, ...]:
        """The flat indices [n k*k] of the windows around points, and the offsets dx, dy f32 [n k] of their pixels."""
        pad = 2 * reach + 1
        side = self.size + 2 * pad
        column, row = np.floor(x), np.floor(y)
        step, flat = _offsets(reach, side)
        dx = step + (column - x).astype(np.float32)[:, None]
        dy = step + (row - y).astype(np.float32)[:, None]
        first = ((row + pad) * side + (column + pad)).astype(np.int64) + which * (side * side)
        return first[:, None] + flat, dx, dy

    def keep(self, index: np.ndarray, cover: np.ndarray, reach: int) -> None:
        """Merge coverages f32 at the indices."""
        pad = 2 * reach + 1
        side = self.size + 2 * pad
        canvas = np.zeros(self.count * side * side, np.float32)
        np.maximum.at(canvas, index.reshape(-1), cover.reshape(-1))
        part = canvas.reshape(self.count, side, side)[:, pad : pad + self.size, pad : pad + self.size]
        np.maximum(self.cover, part, out=self.cover)


def blots(frame: Frame, marks: np.ndarray, soft: float = 0.3, rough: float = 0.0) -> np.ndarray:
    """The coverage f32 [h w] of marks [n 6] = (x, y, rx, ry, cos, sin) in degrees.

    `soft` is the width of the edge as a fraction of the radius, and `rough` (0..1) the irregularity of the outline. Radii
    below 0.55 pixels are raised to 0.55, because a microaneurysm is visible even when it is smaller than a pixel.
    """
    canvas = _Canvas(frame.size)
    if len(marks):
        x, y = frame.pixels(marks[:, 0], marks[:, 1])
        radii = np.maximum(marks[:, 2:4] * frame.per_degree, 0.55)
        largest = np.maximum(radii[:, 0], radii[:, 1])
        for low, high in ((0.0, 2.0), (2.0, 6.0), (6.0, 1e9)):
            group = (largest > low) & (largest <= high)
            reach = int(largest[group].max() * (1.15 + 0.6 * rough) + 1.5) if group.any() else 0
            group &= _near(frame.size, x, y, reach)
            if group.any():
                _blots(canvas, x[group], y[group], reach, radii[group], marks[group, 4:6], soft, rough)
    return canvas.cover[0]


def _blots(
    canvas: _Canvas,
    x: np.ndarray,
    y: np.ndarray,
    reach: int,
    radii: np.ndarray,
    turn: np.ndarray,
    soft: float,
    rough: float,
) -> None:
    index, dx, dy = canvas.windows(x, y, reach)
    radii, turn = radii.astype(np.float32), turn.astype(np.float32)
    c, s = turn[:, 0, None] / radii[:, 0, None], turn[:, 1, None] / radii[:, 0, None]
    u = (dx * c)[:, None, :] + (dy * s)[:, :, None]
    c, s = turn[:, 0, None] / radii[:, 1, None], turn[:, 1, None] / radii[:, 1, None]
    v = (dy * c)[:, :, None] - (dx * s)[:, None, :]
    d = np.sqrt(u * u + v * v)
    if rough:
        # the noise of the outline scales with the radius, so that large marks get large indentations
        k = (np.arange(len(x)) * 37)[:, None, None]
        rows, columns = np.floor(v * 14).astype(np.int64) + k, np.floor(u * 14).astype(np.int64) + k
        ragged = tile("cloud")[rows & 511, columns & 511]
        d *= np.float32(1 - rough / 2) + np.float32(rough / 255) * ragged
    small = np.minimum(radii[:, 0], radii[:, 1])[:, None, None]
    slope = small / np.maximum(np.float32(soft) * small, np.float32(0.9))
    canvas.keep(index, np.clip((1 - d) * slope + np.float32(0.5), 0, 1), reach)


def lines(frame: Frame, groups: Sequence[np.ndarray]) -> np.ndarray:
    """The coverage f32 [G h w] of each group of segments [n 6] = (x0, y0, x1, y1, width0, width1) in degrees.

    Segments thinner than a sixth of a pixel are omitted.
    """
    segments = np.concatenate(groups)
    owner = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    middle = (frame.size - 1) / 2
    lo_x, lo_y = frame.x - (middle + 3) / frame.per_degree, frame.y - (middle + 3) / frame.per_degree
    hi_x, hi_y = frame.x + (middle + 3) / frame.per_degree, frame.y + (middle + 3) / frame.per_degree
    x, y = segments[:, 0], segments[:, 1]
    seen = (x > lo_x) & (x < hi_x) & (y > lo_y) & (y < hi_y) & (segments[:, 4] > 0.17 / frame.per_degree)
    segments, owner = segments[seen].astype(np.float32), owner[seen]
    centre = np.array([frame.x, frame.y, frame.x, frame.y], np.float32)
    ends = (segments[:, :4] - centre) * np.float32(frame.per_degree) + np.float32(middle)
    width = segments[:, 4:6] * np.float32(frame.per_degree)
    along = ends[:, 2:] - ends[:, :2]
    length = np.sqrt(along[:, 0] * along[:, 0] + along[:, 1] * along[:, 1])
    count = np.ceil(length * 1.25).astype(np.int64)
    which = np.repeat(np.arange(len(count)), count)
    t = ((np.arange(len(which)) - (np.cumsum(count) - count)[which]) / count[which]).astype(np.float32)
    beads = np.concatenate([ends[:, :2], width[:, :1]], axis=1)[which]
    beads += t[:, None] * np.concatenate([along, width[:, 1:] - width[:, :1]], axis=1)[which]
    return _beads(frame.size, beads, owner[which], len(groups))


def _beads(size: int, beads: np.ndarray, owner: np.ndarray, groups: int) -> np.ndarray:
    """The coverage of discs [n 3] = (x, y, diameter) in pixels."""
    canvas = _Canvas(size, groups)
    radius = beads[:, 2] * np.float32(0.5)
    for low, high, reach in ((-1.0, 0.5, 1), (0.5, 1.5, 2), (1.5, 1e9, 0)):
        group = np.flatnonzero((radius > low) & (radius <= high))
        if not len(group):
            continue
        reach = reach or int(radius[group].max() + 0.5)
        group = group[_near(size, beads[group, 0], beads[group, 1], reach)]
        index, dx, dy = canvas.windows(beads[group, 0], beads[group, 1], reach, owner[group])
        r = radius[group][:, None, None]
        d = np.sqrt((dy * dy)[:, :, None] + (dx * dx)[:, None, :])
        # a vessel thinner than a pixel is drawn one pixel wide, and correspondingly fainter
        cover = np.clip(np.maximum(r, np.float32(0.5)) + np.float32(0.5) - d, 0, 1)
        canvas.keep(index, cover * np.minimum(np.float32(1), 2 * r), reach)
    return canvas.cover
