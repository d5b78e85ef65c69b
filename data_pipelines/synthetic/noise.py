"""Noise tiles, sine tables and random streams of the synthetic eyes, the same on every processor.

They use only integers and rounded table entries, because numpy's transcendental functions differ in the last bit between
processors.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

TURN = 1024  # table entries of a full circle
TILE = 512  # width and height of a tile, which wraps around
TILE_PER_DEGREE = 3.5  # tile pixels per degree of the retina

_COS = np.array([round(math.cos(2 * math.pi * k / TURN), 6) for k in range(TURN)])
_SIN = np.array([round(math.sin(2 * math.pi * k / TURN), 6) for k in range(TURN)])


def cos_sin(turns: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angles in turns (1.0 is a full circle), from a table with 1024 entries."""
    index = np.floor(np.asarray(turns) * TURN).astype(np.int64) % TURN
    return _COS[index], _SIN[index]


def stream(*key: int) -> np.random.Generator:
    """The random generator of a key of non-negative integers. Use only its `random()`, which is the same everywhere."""
    return np.random.Generator(np.random.PCG64(key))


def _smooth(a: np.ndarray, height: int, width: int = 0) -> np.ndarray:
    """Apply a circular box filter twice along each axis, in integers. A `width` of 0 means the height."""
    for axis, w in ((0, height), (0, height), (1, width or height), (1, width or height)):
        a = np.moveaxis(a, axis, 0)
        c = np.cumsum(np.concatenate([np.zeros_like(a[:1]), a, a[:w]]), axis=0)
        a = np.moveaxis((c[w:] - c[:-w])[:TILE] // w, 0, axis)
    return a


def _stretch(a: np.ndarray) -> np.ndarray:
    """Scale the 1st to 99th percentile to 0..255 in exact integer arithmetic."""
    order = np.sort(a, axis=None)
    low, high = int(order[a.size // 100]), int(order[-a.size // 100])
    return np.clip((a - low) * 255 // max(high - low, 1), 0, 255)


def _white(salt: int) -> np.ndarray:
    return np.floor(stream(20, salt).random((TILE, TILE)) * 65536).astype(np.int64)


def _cloud(salt: int, widths: tuple[int, ...]) -> np.ndarray:
    octaves = [_stretch(_smooth(_white(salt + k), w)) * w for k, w in enumerate(widths)]
    return _stretch(np.asarray(sum(octaves)))


def _ridge(salt: int, height: int, width: int) -> np.ndarray:
    """Ridges along the contour lines of smooth noise with the given correlation lengths."""
    fold = np.abs(_stretch(_smooth(_white(salt), height, width)) - 128)
    return _stretch(255 - np.minimum(255, fold * 4))


def _choroid() -> np.ndarray:
    """A net of mostly horizontal bands, like the large vessels of the choroid."""
    return _stretch(_smooth(np.maximum(_ridge(11, 6, 15), _ridge(12, 13, 6) * 7 // 10), 2))


def _speckle() -> np.ndarray:
    """Speckle: products of uniform numbers, with the long bright tail of coherent imaging, smoothed over two pixels."""
    a = _white(40) * _white(41) >> 16
    return _stretch(_smooth(a, 2) + a // 3)


_KINDS = {
    "white": lambda: _stretch(np.asarray(sum(_white(30 + k) for k in range(4)))),
    "cloud": lambda: _cloud(1, (48, 24, 12, 6)),
    "grain": lambda: _cloud(6, (6, 3, 2)),
    "choroid": _choroid,
    "folds": lambda: _cloud(14, (40, 20)),
    "speckle": _speckle,
}


@lru_cache
def tile(kind: str) -> np.ndarray:
    """A tile u8 [1024 1024] of a kind, repeated twice along each axis so that any crop of 512 fits."""
    return np.tile(_KINDS[kind]().astype(np.uint8), (2, 2))


@lru_cache
def _picture(kind: str, shrink: int) -> Image.Image:
    return Image.fromarray(tile(kind)).reduce(shrink)


def texture(kind: str, size: int, x: float, y: float, span: float) -> np.ndarray:
    """Resize f32 [size size], in 0..1, of the `span` (at most 512) tile pixels at tile position (x, y), resized."""
    shrink = 4 if span > 3.6 * size else 2 if span > 1.8 * size else 1
    x, y, span = x % TILE / shrink, y % TILE / shrink, span / shrink
    out = _picture(kind, shrink).resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + span, y + span))
    return np.asarray(out, np.float32) * np.float32(1 / 255)


def grain(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop f32 [height width], in 0..1, of the tile at full resolution. Sizes above the tile's repeat it."""
    x, y = (int(v * TILE) for v in rng.random(2))
    source = tile(kind)
    repeats = (-(-height // TILE), -(-width // TILE))
    crop = source[y : y + min(height, TILE), x : x + min(width, TILE)]
    if repeats != (1, 1):
        crop = np.tile(crop, repeats)[:height, :width]
    return crop * np.float32(1 / 255)
