"""FLAIR's augmentation of a training image: turned and shrunk a little, brighter or darker, after transforms.Flip.

Source: github.com/jusiro/FLAIR, which lets kornia do it on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.transforms import present

GREY = np.array([0.299, 0.587, 0.114])
BRIGHTNESS, CONTRAST = 0, 1  # kornia's numbers of the operations; 2 and 3, saturation and hue, are left as they are


def turned(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """f32 [H W 3] turned about its middle and scaled: bilinear, black outside.

    A point moves by [[s cos, -s sin], [s sin, s cos]] in pixels (x right, y down).
    """
    height, width = image.shape[:2]
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale  # of the inverse: where an output pixel comes from
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    return _sampled(image, cos * y - sin * x + (height - 1) / 2, cos * x + sin * y + (width - 1) / 2)


def jittered(image: np.ndarray, brightness: float, contrast: float, order: Sequence[int]) -> np.ndarray:
    """f32 [H W 3] from 0 to 1: brightness multiplies, contrast draws from the mean grey; cut to 0..1 after each.

    order: of kornia's operations, such as (2, 0, 1, 3).
    """
    for operation in order:
        if operation == BRIGHTNESS:
            image = np.clip(image * brightness, 0, 1)
        elif operation == CONTRAST:
            mean = (image @ GREY).mean()
            image = np.clip(image * contrast + (1 - contrast) * mean, 0, 1)
    return image.astype(np.float32)


@dataclass(frozen=True)
class FlairAugment:
    """With a chance of `affine` turned by U(-degrees, degrees) and scaled by U(smallest, 1); with one of `jitter` brightness
    and contrast by U(1 - span, 1 + span), in random order.

    u8 in and out, so each of the two rounds to grey levels, where the peer stays in floats.
    """

    affine: float = 0.25
    jitter: float = 0.25
    degrees: float = 5.0
    smallest: float = 0.9
    span: float = 0.2

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        out = dict(example)
        for key in present(example):
            coins, order = rng.random(2), rng.permutation(2)
            angle, scale = rng.uniform(-self.degrees, self.degrees), rng.uniform(self.smallest, 1.0)
            brightness, contrast = rng.uniform(1 - self.span, 1 + self.span, 2)
            if coins[0] < self.affine:
                out[key] = _bytes(turned(_floats(out[key]), angle, scale))
            if coins[1] < self.jitter:
                out[key] = _bytes(jittered(_floats(out[key]), brightness, contrast, order.tolist()))
        return out


def _sampled(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values at fractional places [H W], where pixels outside are 0."""
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    y, x = np.clip(y, -1, image.shape[0]) + 1, np.clip(x, -1, image.shape[1]) + 1
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[..., None], (x - left)[..., None]
    above = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    below = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return (above * (1 - down) + below * down).astype(np.float32)


def _floats(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
