"""Image and text steps: frozen dataclasses called as step(example, rng). Images are u8 [H W 3].

Each step has its own random stream, which depends only on the seed, the position in the example stream, the class of the
step and the number of earlier steps of that class. Adding a step therefore does not change the random numbers of the
others. Geometric steps also transform the `mask` and `points` of `image`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from data_pipelines.geometry import INTERPOLATIONS, RESIZE_MODES, Crop, Mirror, Resize, Rotate, move, resize_moves
from data_pipelines.images.contrast import CONTRASTS, Contrast
from data_pipelines.records import DataError
from data_pipelines.transforms.field_of_view import FieldOfViewCrop
from data_pipelines.transforms.views import mirrored_order, present, swap_sides


class Step(Protocol):
    """A callable on examples. The first step takes a Record, the others the output of the previous step."""

    def __call__(self, example: Any, rng: np.random.Generator) -> dict[str, Any]: ...


def stream(seed: int, position: int, name: str, turn: int) -> np.random.Generator:
    """The random generator of one step at one position of the example stream."""
    words = f"{seed}/{position}/{name}/{turn}".encode()
    key = int.from_bytes(hashlib.blake2b(words, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def apply(steps: Sequence[Step], example: Any, seed: int, position: int) -> dict[str, Any]:
    """Apply all steps in order to an example, usually a Record. The result depends only on the arguments."""
    turns: Counter[str] = Counter()
    for step in steps:
        name = type(step).__name__
        rng: Any = _LazyGenerator(seed, position, name, turns[name])
        example = step(example, rng)
        turns[name] += 1
    return example


class _LazyGenerator:
    """The random generator of a step, created at the first draw: it costs 30 us, and many steps draw nothing."""

    def __init__(self, *words: Any) -> None:
        self._words = words

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_words":
            raise AttributeError(name)
        self._made = self.__dict__.get("_made") or stream(*self._words)
        return getattr(self._made, name)


@dataclass(frozen=True)
class Squash:
    """Resize to a square of `size`, ignoring the aspect ratio, with Pillow's antialiased resize (open_clip's `squash`).

    The other modes keep the aspect ratio: "shortest" crops the centre, "longest" pads with black around the image, and
    "canvas" pads below it or to its right.

    Args:
        size: width and height of the result.
        interpolation: a name in geometry.INTERPOLATIONS.
        mode: "squash", "shortest", "longest" or "canvas".
        resize_to: resize to this many pixels first, then crop or pad the centre to `size`; 0 resizes to `size`.
        round_down: round the position of that crop down, as transformers does.
        crop_field: crop fundus photographs to their field of view first (FieldOfViewCrop).
        contrast: how to even out the light of the result (images.contrast).
    """

    size: int
    interpolation: str = "bicubic"
    mode: str = "squash"
    resize_to: int = 0
    round_down: bool = False
    crop_field: bool = False
    contrast: Contrast = "none"

    def __post_init__(self) -> None:
        _choice("contrast", self.contrast, CONTRASTS)
        _choice("resize", self.mode, RESIZE_MODES)
        _choice("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        example = FieldOfViewCrop()(example, rng) if self.crop_field else example
        for key in present(example):
            rule = (self.size, self.mode, self.interpolation, self.resize_to, self.round_down)
            example = move(example, key, resize_moves(_size(example[key]), *rule))
            if self.contrast != "none":
                example = example | {key: CONTRASTS[self.contrast](example[key])}
        return example


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _choice(name: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise DataError(f"{name} must be one of {', '.join(known)}, not {value!r}")


_RULE = ("interpolation", "resize_to", "round_down", "crop_field", "contrast")


def preprocess(image: np.ndarray, preprocessing: Mapping[str, Any], modality: int = 0) -> np.ndarray:
    """Resize u8 [H W 3] to u8 [S S 3] by the preprocessing of a checkpoint (see eval_step); `modality` is its index."""
    example = {"image": image, "modality": np.int32(modality)}
    return eval_step(preprocessing)(example, np.random.default_rng(0))["image"]


def eval_step(preprocessing: Mapping[str, Any]) -> Squash:
    """The step that makes images square as a checkpoint's preprocessing does. Raises DataError without image_size."""
    if "image_size" not in preprocessing:
        raise DataError(f"preprocessing has no image_size, only {', '.join(preprocessing) or 'nothing'}")
    rule = {k: preprocessing[k] for k in _RULE if k in preprocessing}
    return Squash(int(preprocessing["image_size"]), mode=preprocessing.get("resize", "squash"), **rule)


@dataclass(frozen=True)
class RandomAffine:
    """Rotate by U(-degrees, degrees) around the centre: nearest pixel, 0 outside, same canvas.

    Source: torchvision `RandomAffine(degrees)` for Pillow images, as in --extra-aug of MM-Fundus-CLIP.
    """

    degrees: float = 30.0

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            example = move(example, key, (Rotate(float(rng.uniform(-self.degrees, self.degrees))),))
        return example


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random box and resize it to a square of `size`. `scale` and `ratio` are the ranges of area and aspect.

    Source: torchvision `RandomResizedCrop.get_params`: ten attempts, then the largest box in the centre.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def box(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """Draw a box."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < tall <= height:
                top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
                return Crop(int(top), int(left), tall, wide)
        wide, tall = width, height
        if width / height < self.ratio[0]:
            tall = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            wide = round(height * self.ratio[1])
        return Crop((height - tall) // 2, (width - wide) // 2, tall, wide)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            box = self.box(*_size(example[key]), rng)
            example = move(example, key, (box, Resize(self.size, self.size, self.interpolation)))
        return example


def adjust(image: np.ndarray, operation: str, factor: float) -> np.ndarray:
    """Change the "brightness", "contrast" or "color" (saturation) of u8 [H W 3] with Pillow; factor 1 changes nothing."""
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "color": ImageEnhance.Color}
    return np.asarray(enhance[operation](Image.fromarray(image)).enhance(factor))


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation by factors U(max(0, 1 - x), 1 + x) in random order; 0 disables one.

    Source: torchvision `ColorJitter` for Pillow images, without hue.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.0

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        spans = {"brightness": self.brightness, "contrast": self.contrast, "color": self.saturation}
        names = [name for name, span in spans.items() if span]
        out = dict(example)
        for key in present(example):
            for name in rng.permutation(np.asarray(names, dtype=str)):
                span = spans[name]
                out[key] = adjust(out[key], name, float(rng.uniform(max(0.0, 1 - span), 1 + span)))
        return out


def extra_aug(size: int, interpolation: str = "bicubic", jitter: bool = True) -> tuple[Step, ...]:
    """MM-Fundus-CLIP's --extra-aug: rotate the full image, crop to `size`, and jitter the colours.

    With `jitter=False`, the colour jitter is omitted, because it runs on the device.

    Source: MM-Fundus-CLIP's training transform, as open_clip 2.30 builds it.
    """
    cut = RandomResizedCrop(size, (0.9, 1.0), (3 / 4, 4 / 3), interpolation)
    return (RandomAffine(30.0), cut, *((ColorJitter(0.2, 0.2),) if jitter else ()))


@dataclass(frozen=True)
class Flip:
    """Mirror images horizontally and keep all statements about left and right correct.

    A mirrored left eye is a right eye, so `eye` changes, and so do the words for sides in the text (left/right, OD/OS,
    左/右): a lesion left of the disc is now right of it. Nasal and temporal remain correct. If the example has two eyes,
    both are mirrored and exchanged.

    Args:
        probability: probability of mirroring.
        landmarks: names of `points`; those with a side in their name, such as "left_angle", are exchanged.

    Raises DataError after Tokenize, because the text can no longer be changed.
    """

    probability: float = 0.5
    landmarks: tuple[str, ...] = ()

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        for key in present(example):
            example = move(example, key, (Mirror(),))
        if self.landmarks and "points" in example:
            example = example | {"points": example["points"][list(mirrored_order(self.landmarks))]}
        for first, second in (("left", "right"), ("left_present", "right_present")):
            if first in example:
                example = example | {first: example[second], second: example[first]}
        if "eye" in example:
            example = example | {"eye": np.int32((1, 0, 2)[int(example["eye"])])}
        if "text" in example:
            if not isinstance(example["text"], str):
                raise DataError("Flip changes left and right in the text: put it before Tokenize")
            example = example | {"text": swap_sides(example["text"])}
        return example


@dataclass(frozen=True)
class IndependentFlip:
    """Mirror each image independently and change nothing else, so statements about sides become wrong.

    It reproduces RET-CLIP and timm, which draw RandomHorizontalFlip for each eye.
    """

    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            if rng.random() < self.probability:
                example = move(example, key, (Mirror(),))
        return example


@dataclass(frozen=True)
class RandomErasing:
    """Set a random box to `fill`. `area` is the range of its fraction of the image, `aspect` of its aspect ratio.

    The original fills with 0 after normalisation, so `fill` is the mean colour, rounded to grey levels.
    Source: timm `RandomErasing` with mode const, count 1 and ten attempts, as in RET-CLIP's --use-augment.
    """

    probability: float = 0.1
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: tuple[int, int, int] = (123, 117, 104)  # round(255 * CLIP's mean)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Crop | None:
        """Draw a box; None if ten attempts do not fit."""
        for _ in range(10):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
                return Crop(int(top), int(left), tall, wide)
        return None

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        out = dict(example)
        for key in present(example):
            box = None if rng.random() >= self.probability else self.box(*_size(out[key]), rng)
            if box is not None:
                out[key] = out[key].copy()
                out[key][box.top : box.top + box.height, box.left : box.left + box.width] = self.fill
        return out


def ret_clip_aug(size: int, fill: tuple[int, int, int] = (123, 117, 104), parity: bool = False) -> tuple[Step, ...]:
    """RET-CLIP's --use-augment. With `parity`, each eye is flipped independently, as in the original implementation.

    Source: RET-CLIP's training transform (timm 1.0 `create_transform`).
    """
    return (
        RandomResizedCrop(size),
        IndependentFlip() if parity else Flip(),
        ColorJitter(0.2, 0.2, 0.2),
        RandomErasing(fill=fill),
    )


@dataclass(frozen=True)
class Tokenize:
    """Replace `text` by token ids i32 [L]. The tokenizer is any callable from texts to ids [N L]."""

    tokenizer: Callable[[Sequence[str]], np.ndarray]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        text = example.get("text")
        if not isinstance(text, str):
            raise DataError(
                "Tokenize: the example has no text" if text is None else "Tokenize: the text is already tokenized"
            )
        return example | {"text": np.asarray(self.tokenizer([text]), np.int32)[0]}


@dataclass(frozen=True)
class Select:
    """Keep only the named keys, so that examples of different sources fit in one batch. Raises DataError."""

    keys: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        missing = [key for key in self.keys if key not in example]
        if missing:
            raise DataError(f"Select: the example has no {', '.join(missing)}, only {', '.join(sorted(example))}")
        return {key: example[key] for key in self.keys}
