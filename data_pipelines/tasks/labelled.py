"""Labelled images: training and evaluation parts without common patients, and readers for encoders and classifiers.

Checkpoints are selected on the part `val`; `test` is for the final evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from data_pipelines.images.contrast import Contrast
from data_pipelines.open import Data, joined, synthetic_parts
from data_pipelines.pipeline import Data as Batches
from data_pipelines.pipeline import one_epoch
from data_pipelines.records import ATTRIBUTES, DataError, Record, Source
from data_pipelines.sources.matching import are_numbers, names_of
from data_pipelines.sources.splits import select
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.transforms import steps as t
from data_pipelines.transforms.photographs import photograph_changes
from data_pipelines.transforms.steps import IndependentFlip, Select, Step, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from data_pipelines.words import value_names

FRACTIONS = (0.7, 0.15, 0.15)
# Keys that an evaluation stores for each example in addition to its label.
EXTRA_KEYS = ("modality", "eye", "group", "picture")
_KEEP = "keep_"  # begins the keys of columns that keep= asked for


@dataclass(frozen=True)
class Parts:
    """Labelled sources for training and evaluation, with the same classes.

    Args:
        train: source for training.
        scored: source for evaluation.
        name: name of the evaluated part.
        in_order: whether the order of the classes was given; otherwise it is alphabetical.
        values: names of the values, if the target is `value`.
    """

    train: Source
    scored: Source
    name: str = "val"
    in_order: bool = True
    values: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; () if the source has none."""
        return tuple(getattr(self.train, "classes", ()))

    def kind(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the source is multi-label, and its class names (numbers if the source has no names)."""
        several = np.ndim(self.train[0].targets["label"]) == 1
        if self.classes:
            return several, self.classes
        labels = labels_of(self.train)
        count = labels.shape[1] if several else int(labels.max()) + 1
        return several, tuple(str(k) for k in range(count))

    def check_order(self, why: str = "--ordered") -> None:
        """Raise DataError if the classes are names whose order was not given."""
        if not self.in_order and not are_numbers(self.classes):
            raise DataError(
                f"{why}: the order of the classes is not given, and alphabetical order is {' < '.join(self.classes)}; "
                f"list all classes from the lowest to the highest: --classes {' '.join(map(repr, self.classes))}"
            )


def parts(
    data: Data,
    synthetic: Eyes | Patients,
    seed: int = 0,
    target: str = "label",
    share: float = 0.25,
    classes: Sequence[str] | None = None,
    selects: bool = True,
) -> Parts:
    """The training part and the evaluated part of a labelled source, stratified by label and matched by class names.

    Without --data, they are parts of synthetic patients.

    Args:
        data: sources, classes and splits.
        synthetic: the synthetic training part.
        seed: random seed.
        target: a target that every record must have. Values are named after their columns.
        share: size of the synthetic val and test parts, relative to train.
        classes: class names in order; None uses data.classes.
        selects: whether the part val selects a checkpoint; if not, cross-validation (--fold) trains on it, too, and
            evaluates the part test.

    Raises DataError as Data.parts and Data.matched do, and also if a record lacks the target or nothing is held out.
    """
    few = max(round(synthetic.n * share), 2)
    eyes = synthetic_parts(synthetic, keep=True, val=few, test=few, task=True)
    splits = data.parts(eyes, seed, lambda record: strata(record, target))
    for named in (*splits["train"], *data.held_out(splits)):
        strata(named.source[0], target)
    classes = data.classes if classes is None else classes
    names = tuple(classes) or (value_names(splits["train"][0]) if target == "value" else ())
    if data.fold and not selects:
        splits = splits | {"train": [*splits["train"], *splits.get("val", ())], "val": splits["test"]}
    train = data.matched(splits["train"], strict=True, target=target, names=names)
    names = names or (() if target == "value" else tuple(getattr(joined(train), "classes", ())))
    scored = data.matched(data.scored(splits), strict=False, target=target, names=names)
    given = bool(classes) or not data.data or all("classes" in named.options for named in train)
    values = names_of(names) if target == "value" else ()
    name = "test" if data.fold and not selects else data.part or "val"
    return Parts(joined(train), joined(scored), name, given, values)


def strata(record: Record, target: str = "label") -> np.ndarray:
    """The label by which a split is stratified: the class, the findings (missing counts as absent), or 0 without labels.

    Raises DataError for a record without the target.
    """
    if target not in record.targets:
        raise DataError(f"{record.where or record.patient}: has no {target}; name its column (FILE,{target}=...)")
    label = np.asarray(record.targets.get("label", 0))
    return np.nan_to_num(label).astype(np.float32) if label.ndim else label.astype(np.int32)


def labels_of(source: Source, target: str = "label") -> np.ndarray:
    """The target of every row, [N ...]. Image files are not read, but synthetic images are rendered."""
    return np.stack([np.asarray(source[row].targets[target]) for row in range(len(source))])


def by_class(source: Source, classes: int) -> list[Source]:
    """One source for each class that has rows, so that a mix can sample classes equally."""
    labels = labels_of(source)
    return [select(source, np.flatnonzero(labels == k)) for k in range(classes) if (labels == k).any()]


def repeated(source: Source, copies: int) -> Source:
    """The source repeated `copies` times. Copies have different positions, so they are augmented differently."""
    return source if copies == 1 else select(source, np.tile(np.arange(len(source)), copies))


@dataclass(frozen=True)
class Look:
    """The arguments of a config for how photographs are prepared.

    Args:
        crop_field: Crop photographs to the field of view first.
        contrast: Even out the light of photographs, by CLAHE or by subtracting the local average (graham).
        tiles: Cut each image into this many tiles on each side, every one of --image-size pixels.
        tile_pool: How the features of the tiles become one: their mean or their largest values.
        test_flips: Average the features of an image and of its mirror image, except in training.
    """

    crop_field: bool | None = None  # None: photographs of --data, unless the encoder comes from a run
    contrast: Contrast = "none"
    tiles: int = 1
    tile_pool: Literal["mean", "max"] = "mean"
    test_flips: bool = False

    @property
    def tiling(self) -> dict[str, Any]:
        """Arguments of fundax.interop.backbone."""
        return {"tiles": self.tiles, "tile_pool": self.tile_pool}

    def preprocessing(self, stored: Mapping[str, Any], data: Data, from_run: bool) -> dict[str, Any]:
        """The preprocessing of an encoder, `stored`, with these choices; photographs that are cropped keep their aspect."""
        crop = bool(data.data) and not from_run if self.crop_field is None else self.crop_field
        facts = dict(stored) | {"image_size": stored["image_size"] * self.tiles}
        facts |= {"contrast": self.contrast} if self.contrast != "none" else {}
        if not crop:
            return facts
        facts = {name: value for name, value in facts.items() if name not in ("resize_to", "round_down")}
        return facts | {"crop_field": True, "resize": "longest"}


@dataclass(frozen=True)
class Reader:
    """Read labelled images for an encoder: `image` u8 [H W 3], the targets and EXTRA_KEYS.

    Args:
        parts: sources of the images.
        preprocessing: image size and resize of the encoder (a run's preprocessing.json).
        targets: names of the targets to read.
        first: first step; by default SingleView, which in training decodes at twice the resolution of the encoder.
        workers: number of processes that read images.
    """

    parts: Parts
    preprocessing: Mapping[str, Any]
    targets: tuple[str, ...] = ("label",)
    first: Step | None = None
    workers: int = 0

    @functools.cached_property
    def attributes(self) -> tuple[str, ...]:
        """Names of the columns that describe the patients of the evaluated part, such as age and sex."""
        return attribute_names(self.parts.scored)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a pass that are not given to the encoder."""
        return (*self.targets, *EXTRA_KEYS, *self.attributes, "index")

    @property
    def view(self) -> Step:
        """The first step of training, which may decode a JPEG at a smaller scale."""
        return self._view(2 * int(self.preprocessing["image_size"]))

    def _view(self, hint: int | None) -> Step:
        first = self.first or Grouped(SingleView(size_hint=hint, text=None, targets=self.targets))
        return WithAttributes(first, self.attributes)

    def steps(self, *augment: Step) -> tuple[Step, ...]:
        """All preprocessing steps, with `augment` between the thumbnail and the resize.

        Without `augment`, as in evaluations, every pixel of a JPEG is decoded.
        """
        select_keys = Select(("image", *self.keys[:-1]))
        return (
            self.view if augment else self._view(None),
            Thumbnail(),
            *augment,
            eval_step(self.preprocessing),
            select_keys,
        )

    def once(self, source: Source, copies: int = 1, batch: int = 64) -> Batches:
        """One pass over `copies` copies of a source; with more than one copy, images are flipped at random."""
        source = repeated(source, copies)
        return one_epoch(source, self.steps(*(flips() if copies > 1 else ())), batch=batch, workers=self.workers)


def attribute_names(source: Source) -> tuple[str, ...]:
    """The keys under which the attributes of the source's records stand in batches: age, sex, ..., and keep_NAME for others."""
    own = getattr(source[0], "attributes", ()) if len(source) else ()
    return tuple(name if name in ATTRIBUTES else f"{_KEEP}{name}" for name in own)


def attributes(record: Record, names: Sequence[str]) -> dict[str, Any]:
    """The attributes of a record as str ("" if unknown), and the age as f32 [] (NaN if it is not a number).

    names: names from attribute_names.
    """
    given = getattr(record, "attributes", {})
    values: dict[str, Any] = {name: np.str_(given.get(name.removeprefix(_KEEP), "")) for name in names}
    if "age" in values:
        try:
            values["age"] = np.float32(values["age"])
        except ValueError:
            values["age"] = np.float32(np.nan)
    return values


@dataclass(frozen=True)
class WithAttributes:
    """A first step that adds the attributes `names` of a record to the output of `first`; evaluations store them."""

    first: Step
    names: tuple[str, ...]

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        return self.first(example, rng) | attributes(example, self.names)


def augmentation(recipe: str, preprocessing: Mapping[str, Any]) -> tuple[Step, ...]:
    """Augmentation of a fine-tuning recipe, with the resize to the side of the encoder's images.

    recipe: visionfm, retfound (without RandAugment), ret_clip, laptop or photographs. Photographs are cropped to their
    field of view first, and their contrast evened out, where the preprocessing says so.
    """
    side = int(preprocessing["image_size"])
    flip, jitter = t.IndependentFlip(), t.ColorJitter(0.1, 0.1, 0.0)
    chosen = any(name in preprocessing for name in ("crop_field", "contrast"))
    first = (eval_step({**preprocessing, "image_size": side * 5 // 4}),) if chosen else ()
    if recipe == "photographs":
        return *first, *photograph_changes(side)
    if recipe == "ret_clip":
        crop = t.RandomResizedCrop(side, (0.8, 1.0), (0.9, 1.1))
        return *first, t.Squash(side), t.RandomAffine(30.0), crop, flip, jitter, t.RandomErasing(0.2)
    if recipe == "retfound":
        return *first, t.RandomResizedCrop(side, (0.08, 1.0)), flip, t.RandomErasing(0.25)
    if recipe == "visionfm":
        return *first, t.RandomResizedCrop(side, (0.08, 1.0), interpolation="bilinear"), flip, FlipRows()
    return *first, t.RandomAffine(20.0), t.RandomResizedCrop(side, (0.7, 1.0)), flip, FlipRows(), jitter


def flips() -> tuple[Step, ...]:
    """VisionFM's augmentation for its decoders: horizontal and vertical flips with probability 1/2."""
    return IndependentFlip(), FlipRows()


@dataclass(frozen=True)
class FlipRows:
    """Vertical flip of `image` with `probability`; masks and points are not flipped."""

    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        return example | {"image": np.ascontiguousarray(example["image"][::-1])}


@dataclass(frozen=True)
class Thumbnail:
    """Add `picture` u8 [side side 3], a thumbnail of the current `image`, which evaluations may store."""

    side: int = 96

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        small = Image.fromarray(example["image"]).resize((self.side, self.side), Image.Resampling.LANCZOS)
        return example | {"picture": np.asarray(small)}
