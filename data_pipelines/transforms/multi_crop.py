"""iBOT's multi-crop augmentation: global and local crops with colour augmentation, and patch masks for the global ones.

Masks are sampled on the host, where rejection sampling is cheap. With the same generators they equal those of the
original loaders bit for bit, because random numbers are drawn in the same order. The operations and their parameters
are those of github.com/ABILab-CUHK/VisionFM, also with Pillow. Normalisation happens later, on the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from data_pipelines.records import DataError
from data_pipelines.transforms.steps import RandomResizedCrop

ATTEMPTS = 10  # for each rectangle
ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Ratio:
    """The fraction of patches to mask: a random (mean, spread) of `choices`, then U(mean - spread, mean + spread).

    ((0, 0), (0.3, 0.2)), as in VisionFM and iBOT, leaves half of the crops unmasked. Raises DataError for fractions
    outside 0..1.
    """

    choices: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.3, 0.2))

    def __post_init__(self) -> None:
        if not self.choices or any(not 0 <= m - v <= m + v <= 1 for m, v in self.choices):
            raise DataError(f"mask ratios are pairs (mean, spread) within 0..1, got {self.choices}")

    def draw(self, draw: random.Random) -> float:
        """Draw a value for each choice, then choose one of them, with the random calls of the original loaders."""
        values = [draw.uniform(m - v, m + v) if v > 0 else m for m, v in self.choices]
        return values[0] if len(values) == 1 else draw.choice(values)


def block_mask(rows: int, columns: int, budget: float, draw: random.Random) -> np.ndarray:
    """Mask rectangles until `budget` patches are masked or no rectangle fits: bool [rows columns], True if masked.

    Rectangles have at least (min(rows, columns) // 3)^2 patches if the budget allows it, and are smaller than the grid in
    both directions. Source: BEiT's blockwise masking (arXiv:2106.08254, algorithm 1) as implemented in iBOT's loader.
    """
    mask = np.zeros((rows, columns), bool)
    least = (min(rows, columns) // 3) ** 2
    while (count := int(mask.sum())) < budget:
        if not any(_add_rectangle(mask, least, budget - count, draw) for _ in range(ATTEMPTS)):
            break
    return mask


def _add_rectangle(mask: np.ndarray, least: float, room: float, draw: random.Random) -> bool:
    """Try one rectangle; True if it masked at least one new patch and no more than `room`."""
    rows, columns = mask.shape
    area = draw.uniform(least, room)
    aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if width >= columns or height >= rows:
        return False
    top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
    box = mask[top : top + height, left : left + width]
    if not 0 < box.size - box.sum() <= room:
        return False
    box[:] = True
    return True


def random_mask(rows: int, columns: int, budget: float, rng: np.random.RandomState | np.random.Generator) -> np.ndarray:
    """Mask exactly int(budget) random patches: bool [rows columns]."""
    flat = np.arange(rows * columns) >= rows * columns - int(budget)  # the original loader's order before the shuffle
    rng.shuffle(flat)
    return flat.reshape(rows, columns)


def masks(shape: Sequence[int], ratio: Ratio, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Sample the masks bool [crops rows columns] of one example; `kind` is "block" or "random". Raises DataError."""
    if kind not in ("block", "random"):
        raise DataError(f'mask is "block" or "random", not {kind!r}')
    crops, rows, columns = shape
    draw = random.Random(int(rng.integers(2**63)))
    out = np.zeros((crops, rows, columns), bool)
    for crop in out:
        budget = ratio.draw(draw) * rows * columns
        crop[:] = (
            block_mask(rows, columns, budget, draw) if kind == "block" else random_mask(rows, columns, budget, rng)
        )
    return out


@dataclass(frozen=True)
class Colours:
    """Colour jitter, greyscale, Gaussian blur and solarisation of one crop, in this order, each with its own probability.

    The jitter changes brightness, contrast and saturation by factors U(1 - x, 1 + x) and hue by U(-x, x) of a full turn,
    in random order; x is the entry of `spans`. The blur has a standard deviation of U(radii) pixels. Solarisation
    inverts values above 127.
    """

    jitter: float = 0.8
    spans: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blur: float = 0.5
    radii: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < self.jitter:
            for k in rng.permutation(4):
                span = self.spans[k]
                amount = rng.uniform(-span, span) if k == 3 else rng.uniform(max(0.0, 1 - span), 1 + span)
                picture = _CHANGES[k](picture, float(amount))
        if rng.random() < self.grey:
            picture = picture.convert("L").convert("RGB")
        if rng.random() < self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.radii)))
        if rng.random() < self.solarize:
            picture = ImageOps.solarize(picture, 128)
        return picture


def adjust_hue(picture: Image.Image, amount: float) -> Image.Image:
    """Shift the hue by `amount` of a full turn, in steps of 1/256. Source: torchvision `adjust_hue` for Pillow images."""
    hue, saturation, value = picture.convert("HSV").split()
    moved = np.asarray(hue) + np.uint8(int(amount * 255) % 256)  # wraps
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")


_CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    adjust_hue,
)

PUBLISHED_MASKS = Ratio()
FIRST, OTHER, LOCAL = Colours(blur=1.0), Colours(blur=0.1, solarize=0.2), Colours(blur=0.5)


def published_colours(size: int, strength: float = 1.0) -> tuple[Colours, Colours, Colours]:
    """The published colour augmentation of the first global crop, the other global crops and the local crops.

    Args:
        size: size of the global crops; the published blur is for 224 pixels and is scaled in proportion.
        strength: factor for the jitter and for the probabilities of greyscale and solarisation; 1 is the published value.
    """

    def scaled(colours: Colours) -> Colours:
        low, high = colours.radii
        brightness, contrast, saturation, hue = (strength * span for span in colours.spans)
        return replace(
            colours, radii=(low * size / 224, high * size / 224), spans=(brightness, contrast, saturation, hue),
            grey=strength * colours.grey, solarize=strength * colours.solarize,
        )  # fmt: skip

    return scaled(FIRST), scaled(OTHER), scaled(LOCAL)


@dataclass(frozen=True)
class MultiCrop:
    """Replace `image` by `global` u8 [q S S 3], `masked` bool [q S/p S/p] and, if requested, `local` u8 [n s s 3].

    Args:
        size, local_size: S and s, the sizes of global and local crops.
        patch: p, the patch size of the model.
        global_crops, local_crops: q and n, how many crops to make.
        scale, local_scale: range of a crop's fraction of the image area.
        ratio, local_ratio: range of a crop's aspect ratio.
        colours: colour augmentation of the first global crop, the other global crops and the local crops.
        ratio_masked: fraction of patches to mask.
        mask: "block" or "random".

    Raises DataError for sizes that are not a multiple of the patch size.
    """

    size: int = 224
    patch: int = 16
    global_crops: int = 2
    local_crops: int = 0
    local_size: int = 96
    scale: tuple[float, float] = (0.32, 1.0)
    ratio: tuple[float, float] = (0.8, 1.2)
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    colours: tuple[Colours, Colours, Colours] = (FIRST, OTHER, LOCAL)
    ratio_masked: Ratio = PUBLISHED_MASKS
    mask: str = "block"

    def __post_init__(self) -> None:
        for name in ("size", "local_size"):
            if getattr(self, name) % self.patch or getattr(self, name) < self.patch:
                raise DataError(f"MultiCrop: {name}={getattr(self, name)} is not a multiple of the patch, {self.patch}")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = example["image"]
        first, other, small = self.colours
        large = RandomResizedCrop(self.size, self.scale, self.ratio)
        crops = [self._crop(image, large, first if q == 0 else other, rng) for q in range(self.global_crops)]
        out = {key: value for key, value in example.items() if key != "image"} | {"global": np.stack(crops)}
        if self.local_crops:
            cut = RandomResizedCrop(self.local_size, self.local_scale, self.local_ratio)
            out["local"] = np.stack([self._crop(image, cut, small, rng) for _ in range(self.local_crops)])
        side = self.size // self.patch
        out["masked"] = masks((self.global_crops, side, side), self.ratio_masked, self.mask, rng)
        return out

    def _crop(
        self, image: np.ndarray, cut: RandomResizedCrop, colours: Colours, rng: np.random.Generator
    ) -> np.ndarray:
        box = cut.box(image.shape[0], image.shape[1], rng)
        picture = Image.fromarray(np.ascontiguousarray(box.pixels(image)))
        picture = picture.resize((cut.size, cut.size), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(colours(picture, rng))
