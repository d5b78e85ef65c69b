"""FLAIR's steps: captions from categories, padding to a square, and augmentation.

An image is resized so that its longer side has the model's size, and padded with black at the right or at the bottom.
`flair_pixels` computes in floats and reproduces the original preprocessing exactly; the step `Canvas` computes in u8 for
training. `FlairAugment` rotates, scales and jitters images; put transforms.Flip before it.

Source: github.com/jusiro/FLAIR, which augments on the device with kornia.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from data_pipelines.geometry import fitted
from data_pipelines.language import knowledge
from data_pipelines.records import MODALITIES, DataError, Record
from data_pipelines.sources.flair import AS_THEY_ARE
from data_pipelines.transforms.steps import Squash, present
from data_pipelines.transforms.views import SingleView


@dataclass(frozen=True)
class CategoryCaption:
    """First step for records with categories: one view with a caption.

    The keys are image, text, category i32 [], status i32 [], modality and eye. One attribute and one category are drawn
    and inserted into the caption template of the view's modality. `category` is a hash of the category's name, equal in
    all processes, so that the loss can compare categories regardless of the wording. `status` is 0 for a normal eye, 1
    for an abnormal eye and -1 if unknown.

    Args:
        use_knowledge: replace the category by its name or one of its descriptions, drawn at random.
        as_they_are: folders of data sets whose categories are never replaced.
        by_synonym: also recognise a category by its synonyms; FLAIR only recognises exact names.
        known: the knowledge base; None uses the bundled knowledge base.

    Source: github.com/jusiro/FLAIR, its caption and domain-knowledge steps.
    """

    use_knowledge: bool = True
    as_they_are: tuple[str, ...] = AS_THEY_ARE
    by_synonym: bool = False
    size_hint: int | None = None
    known: knowledge.Knowledge | None = field(default=None, hash=False)

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        record = example
        out = SingleView(size_hint=self.size_hint, text=None, targets=(), choose="random")(record, rng)
        attributes = tuple(record.targets.get("attributes", ()))
        attribute = attributes[int(rng.integers(len(attributes)))] if attributes else ""
        category = record.findings[int(rng.integers(len(record.findings)))] if record.findings else ""
        known = self.known or knowledge.bundled()
        wording = category
        if self.use_knowledge and record.patient.split("/")[0] not in self.as_they_are:
            finding = known.find(category) if self.by_synonym else None
            wording = known.draw(finding.name if finding else category, rng)
        modality = MODALITIES[int(out["modality"])]
        text = known.caption(wording, attribute, modality if modality in known.templates else "CFP")
        return out | {"text": text, "category": category_id(category), "status": status(record.findings)}


def category_id(name: str) -> np.int32:
    """A number for a category's name: 31 bits of its BLAKE2 digest, so that collisions within a batch are negligible."""
    return np.int32(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") >> 1)


def status(categories: Sequence[str]) -> np.int32:
    """0 if all categories mean a healthy eye, 1 if any category is a disease, -1 if there are no categories."""
    if not categories:
        return np.int32(-1)
    return np.int32(any(category.strip().lower() not in ("normal", "healthy") for category in categories))


@dataclass(frozen=True)
class EliteReport:
    """First step for records with expert reports: one view with image, text, modality, eye and status i32 [].

    The status is the record's target "status". If it is missing, it is derived from the findings as in CategoryCaption.
    """

    size_hint: int | None = None

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        out = SingleView(size_hint=self.size_hint, targets=(), choose="random")(example, rng)
        return out | {"status": np.int32(example.targets.get("status", status(example.findings)))}


@dataclass(frozen=True)
class Diagnosed:
    """A labelled source in which the only finding of each record is the name of its class.

    Args:
        source: a source with labels and `classes`.
        noise: fraction of rows with the name of a wrong class, chosen by a hash of `seed` and the row.
        seed: seed of the noise.
    """

    source: Any
    noise: float = 0.0
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        names, label = self.source.classes, int(record.targets["label"])
        digest = hashlib.blake2b(f"{self.seed}/{index}".encode(), digest_size=8).digest()
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        if draw.random() < self.noise:
            label = (label + 1 + int(draw.integers(len(names) - 1))) % len(names)
        return replace(record, findings=(names[label],))


SIZE = 512  # image size of the published FLAIR model


def flair_pixels(image: np.ndarray, size: int = SIZE, *, antialias: bool = True, canvas: bool = True) -> np.ndarray:
    """Preprocess an image exactly as FLAIR's model does: f32 [size size 3] from 0 to 1.

    Args:
        image: u8 [H W 3].
        antialias: False reproduces FLAIR before 2025-11-27 with torchvision before 0.17.
        canvas: False resizes to a square without padding.
    Raises:
        DataError: `image` is any other array.

    Source: github.com/jusiro/FLAIR, preprocess_image; pixels are divided by 255 and not normalised further.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"FLAIR takes images u8 [H W 3], not {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    tall, wide = fitted(height, width, size) if canvas else (size, size)
    out = np.zeros((size, size, 3), np.float32)
    rows, columns = triangles(height, tall, antialias), triangles(width, wide, antialias)
    out[:tall, :wide] = np.einsum("ah,bw,hwc->abc", rows, columns, image / 255.0, optimize=True)
    return out


def triangles(old: int, new: int, antialias: bool) -> np.ndarray:
    """Weights f64 [new old] of bilinear resizing: triangles around pixel centres, wider when downsampling."""
    if antialias:
        reach, centres = max(old / new, 1.0), (np.arange(new) + 0.5) * (old / new) - 0.5
    else:  # torch computes the two neighbours in fp32, which is off by 1e-5 of a grey level at the right end
        reach, scale = 1.0, np.float32(old) / np.float32(new)
        centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    if reach == 1:
        centres = np.clip(centres, 0, old - 1)
    weights = np.maximum(0.0, 1 - np.abs(np.arange(old)[None] - centres[:, None]) / reach)
    return weights / weights.sum(1, keepdims=True)


# FLAIR's resize for training, in u8: resize the longer side to `size` and pad with black below or to the right.
Canvas = partial(Squash, interpolation="bilinear", mode="canvas")


GREY = np.array([0.299, 0.587, 0.114])
BRIGHTNESS, CONTRAST = 0, 1  # kornia's operation numbers; 2 (saturation) and 3 (hue) are not used by FLAIR


def rotate_and_scale(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """Rotate f32 [H W 3] around its centre and scale it, with bilinear interpolation and black outside.

    A point moves by [[s cos, -s sin], [s sin, s cos]] in pixels (x right, y down).
    """
    height, width = image.shape[:2]
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale  # the inverse: where an output pixel comes from
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    return _sampled(image, cos * y - sin * x + (height - 1) / 2, cos * x + sin * y + (width - 1) / 2)


def adjust_colors(image: np.ndarray, brightness: float, contrast: float, order: Sequence[int]) -> np.ndarray:
    """Multiply the brightness of f32 [H W 3] and scale its contrast around the mean grey, clipping to 0..1 after each.

    `order` lists kornia's operations, such as (2, 0, 1, 3).
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
    """Random rotation with scaling, and random brightness and contrast.

    With probability `affine`, the image is rotated by U(-degrees, degrees) and scaled by U(smallest, 1). With
    probability `jitter`, brightness and contrast change by U(1 - span, 1 + span) in random order. Input and output are
    u8, so each of the two operations rounds to grey levels; the original implementation computes in floats.
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
                out[key] = _bytes(rotate_and_scale(_floats(out[key]), angle, scale))
            if coins[1] < self.jitter:
                out[key] = _bytes(adjust_colors(_floats(out[key]), brightness, contrast, order.tolist()))
        return out


def _sampled(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear samples at fractional positions [H W]; pixels outside the image are 0."""
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
