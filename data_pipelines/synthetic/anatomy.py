"""The anatomy of a synthetic eye: disc, vessel tree and pigment, in degrees of the retina with the fovea at the origin.

Every eye is built as a right eye as seen by a fundus camera: nasal, with the disc, at +x, and superior at -y. The
renderer mirrors left eyes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.noise import cos_sin


@dataclass(frozen=True)
class Eye:
    """The state of one eye at one visit; every modality is drawn from it."""

    side: str  # "left" or "right"
    condition: str
    load: float  # disease load: 1..5 for retinopathy, 0..1 for others
    grade: int
    disc: tuple[float, float]
    disc_radius: tuple[float, float]
    cup: float  # cup-to-disc ratio, vertical
    pallor: float  # 0..1
    swelling: float  # 0..1
    age: float
    tessellation: float  # 0..1
    pigment: float  # 0 light .. 1 dark fundus
    haze: float  # 0 clear media .. 1 opaque
    axial_length: float
    texture: tuple[float, float]  # position of this eye in the noise tiles
    arteries: np.ndarray  # [n 6] segments (x0, y0, x1, y1, width0, width1)
    veins: np.ndarray
    lesions: Mapping[str, np.ndarray]  # marks [n 6] (x, y, rx, ry, cos, sin) by name of conditions.LESIONS
    fronds: np.ndarray  # new vessels, segments [n 6]
    traits: Mapping[str, float]  # numbers that only some conditions have


@dataclass(frozen=True)
class Tone:
    """The appearance of the vessels: tortuosity and calibre."""

    tortuosity: float  # 0..1
    ratio: float  # artery-to-vein ratio of calibres
    dilation: float = 0.0  # dilation of the veins, 0..1


# Main vessels from the disc outwards, as offsets in degrees from the fovea; the lower two arcades mirror the upper.
_TEMPORAL = ((15.4, -3.6), (10.6, -9.4), (2.0, -12.2), (-8.5, -12.4), (-20.0, -12.5), (-37.0, -17.0), (-56.0, -25.0))
_NASAL = ((16.8, -3.4), (20.0, -8.0), (26.0, -13.5), (35.0, -20.0), (44.0, -26.0), (53.0, -32.0), (62.0, -38.0))
_FREEDOM = np.array([0.35, 1.0, 1.5, 2.0, 2.2, 3.0, 4.0])[:, None]
_PER = 12  # nodes between two control points


def _bases() -> np.ndarray:
    """Catmull-Rom weights [4 per]."""
    t = np.arange(_PER) / _PER
    return 0.5 * np.stack(
        [-t + 2 * t * t - t * t * t, 2 - 5 * t * t + 3 * t * t * t, t + 4 * t * t - 3 * t * t * t, t * t * t - t * t]
    )


_WEIGHTS = _bases()


def _spline(points: np.ndarray) -> np.ndarray:
    """Smooth curves through control points [P K 2] -> [P (K-1)*per 2]."""
    p = np.concatenate([points[:, :1], points, points[:, -1:]], axis=1)[:, :, None]
    w = _WEIGHTS[:, None, :, None]
    out = p[:, :-3] * w[0] + p[:, 1:-2] * w[1] + p[:, 2:-1] * w[2] + p[:, 3:] * w[3]
    return out.reshape(len(points), -1, 2)


def _direction(a: np.ndarray) -> np.ndarray:
    return a / np.sqrt(a[..., :1] * a[..., :1] + a[..., 1:] * a[..., 1:] + 1e-9)


def _mains(disc: tuple[float, float], tone: Tone, rng: np.random.Generator) -> np.ndarray:
    """Centre lines of four arteries, then their four veins, [8 n 2]."""
    upper = np.array([_TEMPORAL, _NASAL])
    arcs = np.concatenate([upper, upper * (1, -1)])
    spread = (rng.random((4, 1, 2)) - 0.5) * 1.4 * _FREEDOM
    own = (rng.random((8, 7, 2)) - 0.5) * _FREEDOM * (0.6 + 0.4 * tone.tortuosity)
    points = np.concatenate([arcs + spread, arcs + spread]) + own
    gap = np.array([0.9, 1.1, 0.9, 1.1, -0.9, -1.1, -0.9, -1.1])[:, None, None]
    points = points + gap * np.array([0.15, 0.6, 0.8, 0.8, 0.8, 0.9, 1.0])[:, None] * (0.25, 0.8)
    start = np.asarray(disc) + (0.4, 0) + (rng.random((8, 1, 2)) - 0.5) * (0.7, 0.9)
    curves = _spline(np.concatenate([start, points], axis=1))
    return _wiggle(curves, tone.tortuosity, rng)


def _wiggle(curves: np.ndarray, tortuosity: float, rng: np.random.Generator) -> np.ndarray:
    """Add long and short sideways waves to curves; their height is the tortuosity."""
    n = curves.shape[1]
    phase, cycles = rng.random((2, len(curves), 1))
    t = np.arange(n) / n
    _, long = cos_sin(phase + t * (6 + 3 * cycles))
    _, short = cos_sin(2 * phase + t * (15 + 5 * cycles))
    height = (0.08 + 0.5 * tortuosity) * long + (0.02 + 0.72 * tortuosity) * short * (0.6 + 0.4 * long)
    height = height * np.minimum(1, np.arange(n) / 14)
    along = np.empty_like(curves)
    along[:, 1:] = curves[:, 1:] - curves[:, :-1]
    along[:, 0] = along[:, 1]
    along = _direction(along) * height[:, :, None]
    return curves + np.stack([-along[..., 1], along[..., 0]], axis=-1)


def _grow(root: np.ndarray, heading: np.ndarray, length: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Curves from roots [n 2] along unit headings [n 2]; `turns` [n steps] is the angle of each step to its heading."""
    c, s = cos_sin(turns)
    step = length[:, None] / turns.shape[1]
    x, y = heading[:, :1] * step, heading[:, 1:] * step
    out = np.zeros((len(root), turns.shape[1] + 1, 2))
    np.cumsum(x * c - y * s, axis=1, out=out[:, 1:, 0])
    np.cumsum(x * s + y * c, axis=1, out=out[:, 1:, 1])
    return out + root[:, None]


def _branch(
    parents: np.ndarray,
    nodes: np.ndarray,
    lengths: tuple[float, float],
    steps: int,
    wild: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Side branches [P*b steps+1 2] of curves [P n 2] at node numbers [P b], on alternating sides."""
    p, b = nodes.shape
    row = np.arange(p)[:, None]
    root = parents[row, nodes].reshape(-1, 2)
    along = _direction(root - parents[row, nodes - 1].reshape(-1, 2))
    draw = rng.random((3 + steps, p * b))
    side = np.where((np.arange(p * b) + np.repeat(np.arange(p), b)) % 2 == 0, 1.0, -1.0)
    bend = -side / steps * (0.05 + 0.07 * draw[2]) + wild * (draw[3:] - 0.5)
    turns = side * (0.09 + 0.08 * draw[0]) + np.cumsum(bend, axis=0)
    return _grow(root, along, lengths[0] + (lengths[1] - lengths[0]) * draw[1], turns.T)


def _segments(curves: np.ndarray, start: np.ndarray, end: float) -> np.ndarray:
    """Segments [P (n-1) 6] of curves [P n 2] with calibres [P] at the root and `end` times that at the tip."""
    n = curves.shape[1] - 1
    out = np.empty((len(curves), n, 6))
    out[..., :2], out[..., 2:4] = curves[:, :-1], curves[:, 1:]
    width = start[:, None] * (1 + (end - 1) * np.arange(n + 1) / n)
    out[..., 4], out[..., 5] = width[:, :-1], width[:, 1:]
    return out


_NODES = np.array([14, 20, 26, 31, 37, 45, 54, 64])
# directions, in turns, of small vessels from the disc towards the macula and the nose
_FAN = np.array([0.46, 0.53, 0.41, 0.58, 0.97, 0.04])


def vessel_tree(disc: tuple[float, float], tone: Tone, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Arteries and veins, segments [n 6] each: four arcades from the disc with two orders of branches, sparing the fovea."""
    mains = _mains(disc, tone, rng)
    calibre = 0.60 * np.concatenate([np.full(4, tone.ratio), np.full(4, 1 + 0.5 * tone.dilation)])
    nodes = _NODES + np.floor(rng.random((8, 8)) * 5).astype(np.int64)
    second = _branch(mains, nodes, (6.0, 12.0), 11, 0.02 + 0.05 * tone.tortuosity, rng)
    size2 = (calibre[:, None] * (1 - 0.6 * nodes / mains.shape[1]) * 0.55).reshape(-1)
    fan = _FAN + (rng.random(6) - 0.5) * 0.04
    turns = fan[:, None] + np.cumsum(0.035 * (rng.random((6, 11)) - 0.5), axis=1)
    small = _grow(np.repeat(np.asarray(disc)[None], 6, 0), np.repeat([[1.0, 0.0]], 6, 0), 6 + 4 * rng.random(6), turns)
    third_nodes = np.floor(np.array([2.0, 5.0, 8.0]) + 2 * rng.random((64, 3))).astype(np.int64)
    third = _branch(second, third_nodes, (2.5, 5.5), 6, 0.08, rng)
    size3 = np.repeat(size2, 3) * 0.55
    parts = [_segments(mains, calibre, 0.42), _segments(second, size2, 0.45), _segments(third, size3, 0.5)]
    fans = _segments(small, np.full(6, 0.13), 0.4)
    arteries = np.concatenate([p[: len(p) // 2].reshape(-1, 6) for p in parts] + [fans[::2].reshape(-1, 6)])
    veins = np.concatenate([p[len(p) // 2 :].reshape(-1, 6) for p in parts] + [fans[1::2].reshape(-1, 6)])
    return _outside_fovea(arteries), _outside_fovea(veins)


def _outside_fovea(segments: np.ndarray) -> np.ndarray:
    x, y = segments[:, 2], segments[:, 3]
    return segments[x * x + y * y > 1.8 * 1.8]
