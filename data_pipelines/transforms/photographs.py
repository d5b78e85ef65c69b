"""Random changes of fundus photographs while an encoder is trained on a few hundred of them.

They imitate what differs between cameras and archives: focus, compression, light and rotation."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.transforms.steps import ColorJitter, Flip, RandomAffine, RandomResizedCrop, Step
from data_pipelines.transforms.views import present


@dataclass(frozen=True)
class RandomBlur:
    """Blur with a Gaussian of U(0, largest) pixels, with `probability`."""

    probability: float = 0.2
    largest: float = 1.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        blur = ImageFilter.GaussianBlur(float(rng.uniform(0, self.largest)))
        return example | {key: np.asarray(Image.fromarray(example[key]).filter(blur)) for key in present(example)}


@dataclass(frozen=True)
class RandomJPEG:
    """Compress as a JPEG of a random quality, with `probability`."""

    probability: float = 0.2
    quality: tuple[int, int] = (50, 95)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        return example | {key: _compressed(example[key], quality) for key in present(example)}


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=quality)
    return np.asarray(Image.open(written).convert("RGB"))


def photograph_changes(side: int) -> tuple[Step, ...]:
    """Random changes for a few hundred photographs: rotation, a mild crop to `side`, flip, colour, blur and JPEG.

    The flip keeps sides and eyes correct (Flip).
    """
    crop = RandomResizedCrop(side, (0.8, 1.0), (0.95, 1.05))
    return RandomAffine(20.0), crop, Flip(), ColorJitter(0.2, 0.2, 0.2), RandomBlur(), RandomJPEG()
