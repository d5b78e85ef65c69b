"""The healthy parts of a synthetic eye: disc, vessel tree, pigment. Degrees of the retina, fovea at the origin.

Every eye is made as a right eye as a fundus camera shows it: nasal (and the disc) at +x, up at -y. A left eye is its
mirror image, made by the renderer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.noise import cos_sin


@dataclass(frozen=True)
class Eye:
    """The state of one eye at one visit; every modality is drawn from it."""

    side: str  # "left" or "right"
    condition: str
    load: float  # how far the condition has come: retinopathy 1..5, others 0..1
    grade: int
    disc: tuple[float, float]
    disc_radius: tuple[float, float]
    cup: float  # cup-to-disc ratio, vertical
    pallor: float  # 0..1
    swelling: float  # 0..1
    age: float
    tessellation: float  # 0..1
    pigment: float  # 0 light .. 1 dark fundus
    haze: float  # 0 clear media .. 1 nothing seen
    axial_length: float
    texture: tuple[float, float]  # where in the noise tiles this eye lies
    arteries: np.ndarray  # [n 6] segments (x0, y0, x1, y1, width0, width1)
    veins: np.ndarray
    lesions: Mapping[str, np.ndarray]  # marks [n 6] (x, y, rx, ry, cos, sin) by name of conditions.LESIONS
    fronds: np.ndarray  # new vessels, segments [n 6]
    traits: Mapping[str, float]  # further numbers of single conditions


@dataclass(frozen=True)
class Tone:
    """How the vessels look: wiggle and calibre."""

    tortuosity: float  # 0..1
    ratio: float  # artery-to-vein ratio of calibres
    dilation: float = 0.0  # of veins, 0..1


# Main vessels from the disc outwards, as offsets in degrees from the fovea; the lower two arcades mirror the upper.
_TEMPORAL = ((15.4, -3.6), (10.6, -9.4), (2.0, -12.2), (-8.5, -12.4), (-20.0, -12.5), (-37.0, -17.0), (-56.0, -25.0))
_NASAL = ((16.8, -3.4), (20.0, -8.0), (26.0, -13.5), (35.0, -20.0), (44.0, -26.0), (53.0, -32.0), (62.0, -38.0))
_FREEDOM = np.array([0, 0.35, 1.0, 1.5, 2.0, 2.2, 3.0, 4.0])
_PER = 9  # nodes between two control points


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


def _across(a: np.ndarray) -> np.ndarray:
    return np.stack([-a[..., 1], a[..., 0]], axis=-1)


def _mains(disc: tuple[float, float], tone: Tone, rng: np.random.Generator) -> np.ndarray:
    """Centre lines of four arteries, then their four veins, [8 n 2]."""
    upper = np.array([_TEMPORAL, _NASAL])
    arcs = np.concatenate([upper, upper * (1, -1)])
    spread = (rng.random((4, 1, 2)) - 0.5) * 2.4 * _FREEDOM[1:, None] * 0.6
    own = (rng.random((8, 7, 2)) - 0.5) * _FREEDOM[1:, None] * (0.8 + 0.6 * tone.tortuosity)
    points = np.concatenate([arcs + spread, arcs + spread]) + own
    gap = np.array([0.9, 1.1, 0.9, 1.1, -0.9, -1.1, -0.9, -1.1])[:, None, None]
    points = points + gap * np.array([0.15, 0.55, 0.7, 0.7, 0.8, 0.9, 1.0])[:, None] * (0.2, 0.8)
    start = np.asarray(disc) + (rng.random((8, 1, 2)) - 0.5) * (0.9, 0.9)
    curves = _spline(np.concatenate([start, points], axis=1))
    return _wiggle(curves, tone.tortuosity, rng)


def _wiggle(curves: np.ndarray, tortuosity: float, rng: np.random.Generator) -> np.ndarray:
    """Sideways waves whose height is the tortuosity."""
    n = curves.shape[1]
    along = np.gradient(curves, axis=1)
    phase, cycles = rng.random((2, len(curves), 1))
    _, wave = cos_sin(phase + np.arange(n) / n * (7 + 4 * cycles))
    _, ripple = cos_sin(2 * phase + np.arange(n) / n * 3.1)
    height = (0.12 + 1.0 * tortuosity) * wave + 0.35 * ripple
    height = height * np.minimum(1, np.arange(n) / 8)
    return curves + _across(_direction(along)) * height[:, :, None]


def _grow(root: np.ndarray, heading: np.ndarray, length: np.ndarray, steps: int, bend: np.ndarray) -> np.ndarray:
    """Branches marched from roots [n 2] along headings; `bend` [n steps] turns them, in turns per step."""
    path = [root]
    c, s = cos_sin(bend)
    step = length[:, None] / steps
    for k in range(steps):
        heading = heading * c[:, k, None] + _across(heading) * s[:, k, None]
        path.append(path[-1] + heading * step)
    return np.stack(path, axis=1)


def _branch(
    parents: np.ndarray,
    nodes: np.ndarray,
    lengths: tuple[float, float],
    steps: int,
    wild: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Side branches of curves [P n 2] at node numbers [P b], on alternate sides -> [P*b steps+1 2]."""
    p, b = nodes.shape
    row = np.arange(p)[:, None]
    root = parents[row, nodes].reshape(-1, 2)
    along = _direction(parents[row, nodes] - parents[row, nodes - 1]).reshape(-1, 2)
    draw = rng.random((4, p * b))
    side = np.where((np.arange(p * b) + np.repeat(np.arange(p), b)) % 2 == 0, 1.0, -1.0)
    c, s = cos_sin(side * (0.09 + 0.08 * draw[0]))
    heading = along * c[:, None] + _across(along) * s[:, None]
    length = lengths[0] + (lengths[1] - lengths[0]) * draw[1]
    bend = -side[:, None] * (0.05 + 0.07 * draw[2])[:, None] / steps
    bend = bend + wild * (rng.random((p * b, steps)) - 0.5)
    return _grow(root, heading, length, steps, bend)


def _segments(curves: np.ndarray, start: np.ndarray, end: float) -> np.ndarray:
    """Curves [P n 2] with calibres [P] at the root and `end` times that at the tip -> [P (n-1) 6]."""
    n = curves.shape[1] - 1
    taper = 1 + (end - 1) * np.arange(n + 1) / n
    width = start[:, None] * taper
    return np.concatenate([curves[:, :-1], curves[:, 1:], width[:, :-1, None], width[:, 1:, None]], axis=2)


def vessel_tree(disc: tuple[float, float], tone: Tone, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Arteries and veins, segments [n 6] each: four arcades from the disc, their branches, twigs, none in the fovea."""
    mains = _mains(disc, tone, rng)
    calibre = 0.56 * np.concatenate([np.full(4, tone.ratio), np.full(4, 1 + 0.5 * tone.dilation)])
    nodes = np.array([5, 11, 15, 20, 25, 31, 38, 46]) + np.floor(rng.random((8, 8)) * 4).astype(np.int64)
    second = _branch(mains, nodes, (7.0, 13.0), 11, 0.02 + 0.06 * tone.tortuosity, rng)
    size2 = (calibre[:, None] * (1 - 0.6 * nodes / mains.shape[1]) * 0.6).reshape(-1)
    # straight small vessels from the disc towards the macula and the nose
    fan = np.array([0.46, 0.53, 0.42, 0.57, 0.98, 0.03]) + (rng.random(6) - 0.5) * 0.03
    heading = np.stack(cos_sin(fan), axis=-1)
    bend = 0.035 * (rng.random((6, 11)) - 0.5)
    small = _grow(np.repeat(np.asarray(disc)[None], 6, 0), heading, 9 + 4 * rng.random(6), 11, bend)
    third_nodes = np.floor(np.array([2.0, 5.0, 8.0]) + 2 * rng.random((64, 3))).astype(np.int64)
    third = _branch(second, third_nodes, (2.5, 5.5), 6, 0.08, rng)
    size3 = np.repeat(size2, 3) * 0.55
    parts = [_segments(mains, calibre, 0.45), _segments(second, size2, 0.45), _segments(third, size3, 0.5)]
    fans = _segments(small, np.full(6, 0.17), 0.4)
    arteries = np.concatenate([p[: len(p) // 2].reshape(-1, 6) for p in parts] + [fans[::2].reshape(-1, 6)])
    veins = np.concatenate([p[len(p) // 2 :].reshape(-1, 6) for p in parts] + [fans[1::2].reshape(-1, 6)])
    return _outside_fovea(arteries), _outside_fovea(veins)


def _outside_fovea(segments: np.ndarray) -> np.ndarray:
    x, y = segments[:, 2], segments[:, 3]
    return segments[x * x + y * y > 1.7 * 1.7]
