"""Images with masks or landmarks: checked, and resized to one size. The ground truth at original size is kept.

    source = Prepared(csv_source(...), size=512, classes=("disc", "cup"))     a mask's values are 0, 1 (disc), 2 (cup)
    train(source, (Ready(("mask",)), RandomCrop(256), Flip(), Select(("image", "mask"))), batch=8)

Geometric steps transform masks (nearest neighbour) and points (exactly) together with the image; see geometry.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.geometry import Affine, Crop, FlipRows, Mirror, Transpose, move
from data_pipelines.images.decode import StoredImage, exif_orientation, load_sized
from data_pipelines.images.masks import read_field_of_view, read_mask
from data_pipelines.notices import warn_once
from data_pipelines.records import EYES, MODALITIES, DataError, Record, Source, View, text_hash
from data_pipelines.transforms.field_of_view import FieldOfViewCrop
from data_pipelines.transforms.steps import eval_step, present

FRAME = np.array([[0, 0], [1000, 0], [0, 1000]], np.float32)  # maps predictions back to the original

_log = logging.getLogger(__name__)
_NO_DRAWS = np.random.default_rng(0)  # for steps without random numbers


@dataclass(frozen=True)
class Prepared:
    """The rows of `source`, with the image decoded and resized to a square of `size`, and masks and points checked.

    Args:
        source: records with one image each.
        size: size of the resized image.
        classes: class names of the mask values 1, 2, ... (0 is the background), or of the mask's channels if
            `overlapping`; () for no mask.
        overlapping: classes may overlap; the mask is then u8 [H W K] of 0 and 1.
        landmarks: names of the points; () for no points.
        missing: "error", or "allowed" if a landmark may be missing (NaN).
        resize: see transforms.steps.Squash.
        crop: crop to the field of view first.
        diameter: diameter of the optic disc in pixels of the original image; 0 if unknown, in which case a target
            `value` with one number is used.

    The targets of a record are mask, fov (if there is one) and points of the resized image; frame f32 [3 2]; truth and
    truth_fov, the masks at original size; size i32 [2], the original (height, width); and diameter f32 [].

    Raises DataError, naming the row and the file, if a file is missing, a mask differs in size from its image, a mask
    value is not a class, or a landmark is missing or outside its image.
    """

    source: Source
    size: int
    classes: tuple[str, ...] = ()
    overlapping: bool = False
    landmarks: tuple[str, ...] = ()
    missing: str = "error"
    resize: str = "squash"
    crop: bool = False
    diameter: float = 0.0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        try:
            return self._prepared(record)
        except DataError as error:
            place = record.where or f"patient {record.patient}"
            raise error if str(error).startswith(place) else DataError(f"{place}: {error}") from error

    def _prepared(self, record: Record) -> Record:
        view = record.views[0]
        image, size = load_sized(view.image)
        example: dict[str, Any] = {"image": image, "frame": FRAME}
        targets: dict[str, Any] = {"diameter": np.float32(self._diameter(record)), "size": np.array(size, np.int32)}
        if self.classes:
            example["mask"] = targets["truth"] = self._mask(record, size)
            if "fov" in record.targets:
                targets["truth_fov"] = read_field_of_view(record.targets["fov"], size, image=view.image) > 0
                example["fov"] = targets["truth_fov"].astype(np.uint8)
        if self.landmarks:
            example["points"] = self._points(record, size)
        if self.crop:
            example = FieldOfViewCrop()(example, _NO_DRAWS)
        step = eval_step({"image_size": self.size, "resize": self.resize, "interpolation": "bilinear"})
        example = step(example, _NO_DRAWS)
        targets |= {key: value for key, value in example.items() if key != "image"}
        views = (View(example["image"], view.modality, view.eye),)
        return Record(record.patient, views, targets=targets, where=record.where, attributes=record.attributes)

    def _mask(self, record: Record, size: tuple[int, int]) -> np.ndarray:
        """Mask i32 [H W] of classes, or u8 [H W K] of 0 and 1."""
        if "mask" not in record.targets:
            raise DataError(
                "has no mask; name its column with mask=COLUMN, or leave out rows without one with empty=drop"
            )
        mask, image = record.targets["mask"], record.views[0].image
        if not self.overlapping:
            if isinstance(mask, tuple):
                raise DataError(f"has {len(mask)} masks; several masks of one image are for overlapping classes")
            return _report_coverage(read_mask(mask, size, self.classes, image=image), mask, self.classes)
        channels = isinstance(mask, np.ndarray) and mask.ndim == 3
        parts = tuple(np.moveaxis(mask, -1, 0)) if channels else mask if isinstance(mask, tuple) else (mask,)
        if len(parts) != len(self.classes):
            raise DataError(f"has {len(parts)} masks for {len(self.classes)} classes ({', '.join(self.classes)})")
        none = np.zeros(size, np.uint8)  # an empty cell: the image does not have this lesion
        channels = [
            none if part is None else _report_coverage(read_mask(part, size, (name,), image=image), part, (name,))
            for part, name in zip(parts, self.classes, strict=True)
        ]
        return np.stack(channels, -1).astype(np.uint8)

    def _points(self, record: Record, size: tuple[int, int]) -> np.ndarray:
        if "points" not in record.targets:
            raise DataError(f"has no points; name their columns with points={'+'.join(self.landmarks)}")
        points = np.asarray(record.targets["points"], np.float32)
        if points.shape != (len(self.landmarks), 2):
            raise DataError(f"has points {list(points.shape)}; expected (x, y) of {', '.join(self.landmarks)}")
        if (turn := exif_orientation(record.views[0].image)) > 1:
            message = "%s: the image is rotated according to its EXIF orientation %d, and its landmarks are read as "
            message += "pixels of the rotated image; use orientation=stored if they are pixels of the image as stored"
            warn_once(_log, "landmarks of a turned image", message, record.views[0].image, turn)
        for name, (x, y) in zip(self.landmarks, points, strict=True):
            if np.isnan([x, y]).any():
                if self.missing == "error":
                    raise DataError(f"landmark {name} is missing ({x}, {y}); remove the row, or use missing=allowed")
            elif not (-0.5 <= x < size[1] - 0.5 and -0.5 <= y < size[0] - 0.5):
                raise DataError(f"landmark {name} at ({x:g}, {y:g}) is outside its image of {size[1]} x {size[0]}")
        return points

    def _diameter(self, record: Record) -> float:
        value = np.ravel(record.targets.get("value", ()))
        return float(value[0]) if len(value) == 1 and not self.diameter else self.diameter or float("nan")


def _report_coverage(array: np.ndarray, mask: Any, classes: tuple[str, ...]) -> np.ndarray:
    """Return `array`, and warn once if a single class covers most of an image, as in masks drawn in black on white."""
    mapped = isinstance(mask, StoredImage) and mask.reading.values
    if len(classes) == 1 and not isinstance(mask, np.ndarray) and not mapped and (share := (array > 0).mean()) > 0.5:
        name = classes[0]
        message = "mask %s: %s covers %.0f %% of the image; if it is drawn in black, use values=0:%s,255:background"
        warn_once(_log, ("coverage", name), message, mask, name, 100 * share, name)
    return array


@dataclass(frozen=True)
class Ready:
    """First step for rows of Prepared: image u8 [s s 3], modality, eye i32 [], group i32 [] (the patient), and `targets`.

    Targets in `optional` may be absent, because not every data set has a field of view.
    """

    targets: tuple[str, ...]
    optional: tuple[str, ...] = ("fov", "truth_fov")

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        view = example.views[0]
        out: dict[str, Any] = {
            "image": view.image,
            "modality": np.int32(MODALITIES.index(view.modality)),
            "eye": np.int32(EYES.index(view.eye)),
            "group": np.int32(text_hash(example.patient.encode()) >> 33),
        }
        for name in self.targets:
            if name in example.targets or name not in self.optional:
                value = np.asarray(example.targets[name])
                out[name] = value.astype(np.int32) if value.dtype == bool else value
        return out


@dataclass(frozen=True)
class RandomCrop:
    """Crop a random square of `size`. Raises DataError if the image is smaller."""

    size: int

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        for key in present(example):
            height, width = example[key].shape[:2]
            if min(height, width) < self.size:
                raise DataError(f"a crop of {self.size} pixels does not fit in an image of {width} x {height}")
            top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
            example = move(example, key, (Crop(int(top), int(left), self.size, self.size),))
        return example


@dataclass(frozen=True)
class RightAngles:
    """Flip horizontally, flip vertically and transpose, each with probability 1/2: the eight symmetries of a square.

    With `turn=False` there are only the two flips, as in VisionFM's augmentation for segmentation. Do not use this step
    for images whose texts or labels name sides.
    """

    turn: bool = True

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        moves = (Mirror(), FlipRows(), Transpose()) if self.turn else (Mirror(), FlipRows())
        chosen = [m for m, coin in zip(moves, rng.random(len(moves)), strict=True) if coin < 0.5]
        for key in present(example):
            example = move(example, key, chosen)
        return example


@dataclass(frozen=True)
class RandomMove:
    """Rotate by U(-degrees, degrees), shift by a fraction U(-shift, shift) of the sides and scale by U(scale).

    The defaults are VisionFM's for landmarks (torchvision's RandomAffine), here with bilinear interpolation.
    """

    degrees: float = 5.0
    shift: float = 0.05
    scale: tuple[float, float] = (1.0, 1.0)
    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        angle, right, down, scale = (
            rng.uniform(-1, 1),
            *rng.uniform(-self.shift, self.shift, 2),
            rng.uniform(*self.scale),
        )
        for key in present(example):
            height, width = example[key].shape[:2]
            moved = Affine(angle * self.degrees, float(scale), float(right * width), float(down * height))
            example = move(example, key, (moved,))
        return example
