"""Labelled images in three parts that share no patient, by one word of the command line.

Selection is on `val` and never on `test`; several of the published pipelines choose their best epoch on the test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.open import named
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.csv import image_folder
from data_pipelines.sources.splits import read_split, select, stratified, write_split
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.transforms.steps import IndependentFlip

NAMES = ("train", "val", "test")


STARTS = {"train": 2_000_000, "val": 3_000_000, "test": 4_000_000}  # patients that no pretraining has seen


@dataclass(frozen=True)
class Parts:
    """The three parts of a labelled source."""

    train: Source
    val: Source
    test: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, () where the source knows none."""
        return tuple(getattr(self.train, "classes", ()))

    def kind(self) -> tuple[bool, tuple[str, ...]]:
        """Whether rows have several labels at once, and the names of the classes: numbers where the source has none."""
        several = np.ndim(self.train[0].targets["label"]) == 1
        if self.classes:
            return several, self.classes
        labels = labels_of(self.train)
        count = labels.shape[1] if several else int(labels.max()) + 1
        return several, tuple(str(k) for k in range(count))


def synthetic_parts(eyes: Eyes | Patients, share: float = 0.25) -> Parts:
    """Three sets of synthetic patients: `eyes.n` to learn from, and `share` times as many in each of the others."""
    few = max(round(eyes.n * share), 2)
    made = [replace(eyes, start=STARTS[name], n=eyes.n if name == "train" else few) for name in NAMES]
    return Parts(*(CachedSource(one) for one in made))


def parts(data: str, split: str = "", seed: int = 0, target: str = "label") -> Parts:
    """The parts of a source by a word (named_sources): by the file `split` where it exists; else 70, 15 and 15 % of the
    patients, stratified by label, which are written to `split` if it is given; a folder train|val|test/<class>/ as it is.

    target: what every record must have. Raises DataError for a record without it, and parts that would stay empty.
    """
    folder = Path(data.split(",")[0])
    if folder.is_dir() and all((folder / name).is_dir() for name in NAMES):
        return Parts(*(image_folder(folder, split=name, **_modality(data)) for name in NAMES))
    source = named(data).source
    if split and Path(split).is_file():
        found = read_split(split, source)
        if missing := [name for name in NAMES if name not in found]:
            raise DataError(f"{split} has no part {missing[0]!r}, only {', '.join(found)}")
        return Parts(*(found[name] for name in NAMES))
    records = [source[row] for row in range(len(source))]
    for row, record in enumerate(records):
        if target not in record.targets:
            raise DataError(
                f"{record.where or f'{data} row {row + 1}'}: has no {target}; name its column (data,{target}=...)"
            )
    patients = [record.patient for record in records]
    rows = stratified(patients, np.stack([strata(record) for record in records]), seed=seed)
    if split:
        write_split(split, patients, rows, seed=seed, source=data)
    return Parts(*(select(source, rows[name]) for name in NAMES))


def strata(record: Record) -> np.ndarray:
    """What a split should divide evenly: the class, or the findings (a gap counts as absent), or nothing."""
    label = np.asarray(record.targets.get("label", 0))
    return np.nan_to_num(label).astype(np.float32) if label.ndim else label.astype(np.int32)


def _modality(data: str) -> dict[str, Any]:
    options = dict(part.split("=", 1) for part in data.split(",")[1:] if "=" in part)
    return {name: value for name, value in options.items() if name == "modality"}


def labels_of(source: Source, target: str = "label") -> np.ndarray:
    """The target of every row, [N ...]; images stay unread, but synthetic ones are drawn."""
    return np.stack([np.asarray(source[row].targets[target]) for row in range(len(source))])


def by_class(source: Source, classes: int) -> list[Source]:
    """A part for each class that has rows, so that a mix can give each its turn."""
    labels = labels_of(source)
    return [select(source, np.flatnonzero(labels == k)) for k in range(classes) if (labels == k).any()]


def repeated(source: Source, copies: int) -> Source:
    """The source `copies` times in a row: each copy is another position, and so augmented in another way."""
    return source if copies == 1 else select(source, np.tile(np.arange(len(source)), copies))


def flips() -> tuple[Any, ...]:
    """VisionFM's augmentation of its decoders: left and right, up and down, each every other time."""
    return IndependentFlip(), FlipRows()


@dataclass(frozen=True)
class FlipRows:
    """Up and down exchanged with `probability`, of `image` alone (masks and points stay: not for those)."""

    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        return example | {"image": np.ascontiguousarray(example["image"][::-1])}


@dataclass(frozen=True)
class Picture:
    """Adds `picture` u8 [96 96 3], a thumbnail of `image` as it is now, for what an eval keeps to look at."""

    side: int = 96

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        small = Image.fromarray(example["image"]).resize((self.side, self.side), Image.Resampling.LANCZOS)
        return example | {"picture": np.asarray(small)}
