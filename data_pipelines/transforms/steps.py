"""Steps from a Record to an example: frozen dataclasses called as step(example, rng), images u8 [H W 3] throughout.

Every step draws from its own stream of random numbers, a function of (seed, position, the step's class, its turn among
the steps of that class), so that adding a step leaves the draws of the others as they were.
Steps that move pixels take `mask` and `points` of the `image` along."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from data_pipelines.geometry import INTERPOLATIONS, Crop, Mirror, Move, Resize, Rotate, move, resize_moves
from data_pipelines.records import MODALITIES, DataError
from data_pipelines.transforms.views import mirrored_order, swap_sides

IMAGES = ("image", "left", "right")


RESIZE_MODES = ("squash", "shortest", "longest")


class Step(Protocol):
    """The first step takes a Record, the others the example of the one before."""

    def __call__(self, example: Any, rng: np.random.Generator) -> dict[str, Any]: ...


def stream(seed: int, position: int, name: str, turn: int) -> np.random.Generator:
    """The random numbers of one step at one position of the example stream."""
    words = f"{seed}/{position}/{name}/{turn}".encode()
    key = int.from_bytes(hashlib.blake2b(words, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def apply(steps: Sequence[Step], example: Any, seed: int, position: int) -> dict[str, Any]:
    """All steps in turn, on a Record (or whatever the first step takes): a pure function of (seed, position)."""
    turns: Counter[str] = Counter()
    for step in steps:
        name = type(step).__name__
        later: Any = _Later(seed, position, name, turns[name])
        example = step(example, later)
        turns[name] += 1
    return example


class _Later:
    """A step's `stream`, made when something is drawn from it: many steps draw nothing, and it costs 30 us."""

    def __init__(self, *words: Any) -> None:
        self._words = words

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_words":
            raise AttributeError(name)
        self._made = self.__dict__.get("_made") or stream(*self._words)
        return getattr(self._made, name)


def present(example: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of an example that hold images."""
    keys = tuple(key for key in IMAGES if key in example)
    for key in keys:
        if example[key].dtype != np.uint8:
            raise DataError(f"{key}: the steps take uint8 images, this one is {example[key].dtype}")
    return keys


@dataclass(frozen=True)
class Squash:
    """To a square of `size` without keeping the aspect: Pillow's resize, antialiased (CLIP-family `squash`)."""

    size: int
    interpolation: str = "bicubic"
    mode: str = "squash"  # or "shortest" (crop the middle), "longest" (pad with black)

    def __post_init__(self) -> None:
        _choice("resize", self.mode, RESIZE_MODES)
        _choice("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            moves = resize_moves(_size(example[key]), self.size, self.mode, self.interpolation)
            example = move(example, key, moves)
        return example


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _choice(what: str, given: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if given not in known:
        raise DataError(f"{what} must be one of {', '.join(known)}, not {given!r}")


def preprocess(image: np.ndarray, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """u8 [H W 3] to u8 [S S 3] as a checkpoint's preprocessing.json says (image_size, resize, interpolation)."""
    return eval_step(preprocessing)({"image": image}, np.random.default_rng(0))["image"]


def eval_step(preprocessing: Mapping[str, Any]) -> Squash:
    """The deterministic resize a preprocessing mapping asks for, as a step."""
    if "image_size" not in preprocessing:
        raise DataError(f"preprocessing has no image_size, only {', '.join(preprocessing) or 'nothing'}")
    resize, interpolation = preprocessing.get("resize", "squash"), preprocessing.get("interpolation", "bicubic")
    return Squash(int(preprocessing["image_size"]), interpolation, resize)


@dataclass(frozen=True)
class RandomAffine:
    """Rotation by U(-degrees, degrees) about the middle: nearest pixel, 0 outside, same canvas.

    Source: torchvision `RandomAffine(degrees)` on Pillow images, as --extra-aug of MM-Fundus-CLIP uses it.
    """

    degrees: float = 30.0

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            example = move(example, key, (Rotate(float(rng.uniform(-self.degrees, self.degrees))),))
        return example


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of `scale` of the area and aspect within `ratio`, resized to `size` square, bicubic and antialiased.

    Source: torchvision `RandomResizedCrop.get_params`: ten tries, then the largest box in the middle.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def box(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """The box of one draw."""
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


def adjust(image: np.ndarray, what: str, factor: float) -> np.ndarray:
    """Pillow's `brightness`, `contrast` or `color` (saturation) enhancement of u8 [H W 3] by a factor (1 keeps)."""
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "color": ImageEnhance.Color,
    }
    return np.asarray(enhance[what](Image.fromarray(image)).enhance(factor))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation, each by U(max(0, 1 - x), 1 + x), in random order; 0 leaves one out.

    Source: torchvision `ColorJitter` on Pillow images, without hue.
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
    """MM-Fundus-CLIP's --extra-aug in its order: rotation of the full image, crop to `size`, jitter (or left to the device).

    Source: spec 2.2 of MM-Fundus-CLIP (its train transform as open_clip 2.30 builds it).
    """
    cut = RandomResizedCrop(size, (0.9, 1.0), (3 / 4, 4 / 3), interpolation)
    return (RandomAffine(30.0), cut, *((ColorJitter(0.2, 0.2),) if jitter else ()))


@dataclass(frozen=True)
class Flip:
    """Mirrors, and keeps left and right true: a mirrored left eye is a right eye.

    One view: the image (with mask and points) is mirrored, `eye` changes from left to right or back, and so does every
    word of the text that tells the sides apart (left/right, OD/OS, 左/右), since a lesion left of the disc is now right
    of it. Nasal and temporal stay true by themselves. Two eyes: both are mirrored and change places.
    landmarks: the names of `points`; those told apart by left and right ("left_angle") change places.
    Raises DataError after Tokenize, when the text can no longer be changed.
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
    """Mirrors each image by its own coin and changes nothing else: parity only, it makes the sides untrue.

    Source: RET-CLIP's and timm's RandomHorizontalFlip, drawn for each eye.
    """

    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            if rng.random() < self.probability:
                example = move(example, key, (Mirror(),))
        return example


@dataclass(frozen=True)
class RandomErasing:
    """With `probability` one box is set to `fill`: area U(.02, 1/3) of the image, aspect log-uniform in .3..1/.3.

    `fill` is 0 after normalisation, so it is the mean colour before it (to the next of 256 levels).
    Source: timm `RandomErasing`, mode const, count 1, ten tries, as RET-CLIP's --use-augment sets it up.
    """

    probability: float = 0.1
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: tuple[int, int, int] = (123, 117, 104)  # round(255 * CLIP's mean)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Crop | None:
        """The box of one draw; None after ten that do not fit."""
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
    """RET-CLIP's --use-augment in its order; `parity` flips each eye by its own coin, as the peer does.

    Source: spec 1.2 (timm 1.0 `create_transform`).
    """
    return (
        RandomResizedCrop(size),
        IndependentFlip() if parity else Flip(),
        ColorJitter(0.2, 0.2, 0.2),
        RandomErasing(fill=fill),
    )


@dataclass(frozen=True)
class Tokenize:
    """`text` to i32 [L] by a tokenizer of data_pipelines.text (or any callable from texts to ids [N L])."""

    tokenizer: Callable[[Sequence[str]], np.ndarray]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        text = example.get("text")
        if not isinstance(text, str):
            raise DataError("Tokenize: the example has no text" if text is None else "Tokenize: text is tokens already")
        return example | {"text": np.asarray(self.tokenizer([text]), np.int32)[0]}


@dataclass(frozen=True)
class Select:
    """Only the named keys: what a batch shall hold where sources differ in what they know."""

    keys: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        missing = [key for key in self.keys if key not in example]
        if missing:
            raise DataError(f"Select: the example has no {', '.join(missing)}, only {', '.join(sorted(example))}")
        return {key: example[key] for key in self.keys}


@dataclass(frozen=True)
class FieldOfViewCrop:
    """Crops to the field of view (the lit disc of a fundus photograph), padded with black to a square.

    The largest connected bright region counts, so that a printed date or a logo beside it does not. An image stays as
    it is when nothing is bright, when that region fills less than half of its box (a disc fills pi/4), or when its
    `modality` is known and not one of `modalities`: OCT has no field of view.
    `threshold`: of the brightest channel, in grey levels; `margin`: added on each side, as a part of the diameter.
    """

    threshold: int = 20
    margin: float = 0.0
    square: bool = True
    modalities: tuple[str, ...] = ("CFP", "FFA", "UWF", "ICGA", "FAF")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if "modality" in example and MODALITIES[int(example["modality"])] not in self.modalities:
            return example
        for key in present(example):
            example = move(example, key, self.moves(example[key]))
        return example

    def moves(self, image: np.ndarray) -> tuple[Move, ...]:
        """The crop of one image, or none."""
        box = field_of_view(image, self.threshold)
        if box is None:
            return ()
        side = max(box.height, box.width)
        extra = round(self.margin * side)
        tall, wide = (side, side) if self.square else (box.height, box.width)
        tall, wide = tall + 2 * extra, wide + 2 * extra
        return (Crop(box.top + (box.height - tall) // 2, box.left + (box.width - wide) // 2, tall, wide),)


def field_of_view(image: np.ndarray, threshold: int = 20) -> Crop | None:
    """The bounding box of the lit disc in u8 [H W 3], to about one pixel in 256; None where there is none."""
    from scipy import ndimage  # slow to import, and only needed here

    height, width = _size(image)
    step = max(1, min(height, width) // 256)
    small = image[::step, ::step]
    lit = np.maximum(np.maximum(small[..., 0], small[..., 1]), small[..., 2]) > threshold
    around = np.pad(lit, 1, mode="edge")  # erosion by 3 x 3 takes away sensor noise and thin print
    across = around[:, :-2] & around[:, 1:-1] & around[:, 2:]
    regions = np.empty(lit.shape, np.int32)
    if not ndimage.label(across[:-2] & across[1:-1] & across[2:], output=regions):
        return None
    areas = np.bincount(regions.ravel())[1:]
    rows, columns = ndimage.find_objects(regions)[int(areas.argmax())]
    if areas.max() < 0.5 * (rows.stop - rows.start) * (columns.stop - columns.start):
        return None
    top, left = max(rows.start - 1, 0) * step, max(columns.start - 1, 0) * step  # the pixel that erosion took
    bottom, right = min((rows.stop + 1) * step, height), min((columns.stop + 1) * step, width)
    return Crop(top, left, bottom - top, right - left)
