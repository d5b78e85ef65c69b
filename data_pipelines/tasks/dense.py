"""Training and evaluation data with masks or landmarks at a fixed resolution."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.open import Data, joined, synthetic_parts
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.matching import places
from data_pipelines.synthetic.sources import Drawn
from data_pipelines.tasks.labelled import Parts, WithAttributes, attribute_names
from data_pipelines.transforms.dense import Prepared, Ready
from data_pipelines.transforms.steps import Step
from data_pipelines.words import Named

_log = logging.getLogger(__name__)


def masks(data: Data, seed: int, size: int, *, overlapping: bool, crop: bool, keep: bool) -> Parts:
    """Parts with masks of data.classes, at `size` pixels. Without --data, the images are synthetic eyes.

    Args:
        data: sources, classes and splits.
        seed: random seed.
        size: size of the images in pixels.
        overlapping: classes may overlap; each has its own channel.
        crop: crop photographs to the field of view first.
        keep: keep the prepared images in memory.

    Raises DataError if `overlapping` is set with fewer than two classes.
    """
    if overlapping and len(data.classes) < 2:
        raise DataError("--overlapping needs at least two --classes")
    drawn = lambda eyes: Drawn(eyes, data.classes, overlapping)  # noqa: E731
    fields = {"classes": data.classes, "overlapping": overlapping, "crop": crop}
    return _prepared(data, seed, size, drawn, keep, fields, mask="mask")


def points(data: Data, seed: int, size: int, *, missing: str, diameter: float, resize: str, keep: bool) -> Parts:
    """Parts with the coordinates of the landmarks data.classes. Without --data, the images are synthetic eyes.

    Args:
        data: sources, names of the landmarks and splits.
        seed: random seed.
        size: size of the images in pixels.
        missing: "allowed" if landmarks may be missing, otherwise "error".
        diameter: diameter of the disc in pixels of the original images, to report errors in disc diameters.
        resize: "longest" or "squash".
        keep: keep the prepared images in memory.

    Raises DataError for landmarks that synthetic eyes do not have.
    """
    landmarks = data.classes
    if not data.data and landmarks != ("fovea", "disc"):
        raise DataError(f"synthetic eyes have the landmarks fovea and disc, not {', '.join(landmarks)}; give --data")
    fields: dict[str, Any] = {"landmarks": landmarks, "missing": missing if data.data else "allowed"}
    fields |= {"diameter": diameter, "resize": resize}
    return _prepared(data, seed, size, Drawn, keep, fields, points="+".join(landmarks))


def _prepared(
    data: Data,
    seed: int,
    size: int,
    drawn: Callable[[Any], Source],
    keep: bool,
    fields: dict[str, Any],
    **columns: Any,
) -> Parts:
    counts: dict[str, Any] = {
        "val": max(data.patients // 5, 2),
        "test": max(data.patients // 4, 2) if len(data.fractions) > 2 else 0,
    }
    eyes = synthetic_parts(data.eyes(seed, max(size, 16), masks=True), keep=False, **counts)
    # The eyes themselves are not cached, only the prepared images.
    synthetic = {name: drawn(getattr(part, "source", part)) for name, part in eyes.items()}
    parts = data.parts(synthetic, seed, lambda record: 0, **columns)
    data.used["classes"] = list(data.classes)
    (target,) = columns
    made = []
    for group in (parts["train"], data.held_out(parts)):
        source = Prepared(joined([_by_name(named, target, data.classes) for named in group]), size, **fields)
        made.append(CachedSource(source) if keep else source)
    return Parts(made[0], made[1], data.part or "val")


def ready(source: Source, *targets: str) -> Step:
    """The first step of an evaluation: image, `targets` and the attributes of the patients (age, sex, ...)."""
    records = source
    while isinstance(records, CachedSource | Prepared):  # the underlying records do not read the images
        records = records.source
    return WithAttributes(Ready(targets), attribute_names(records))


@dataclass(frozen=True)
class Reordered:
    """A source with the masks or points of each record reordered; `order` [K] are the old positions."""

    source: Source
    target: str
    order: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        values = record.targets.get(self.target)
        if not isinstance(values, tuple | np.ndarray) or len(values) != len(self.order):
            return record
        moved = values[list(self.order)] if isinstance(values, np.ndarray) else tuple(values[k] for k in self.order)
        return replace(record, targets={**record.targets, self.target: moved})


def _by_name(named: Named, target: str, classes: Sequence[str]) -> Named:
    """Reorder the mask or point columns of a source (the option mask=A+B) to match the order of `classes`.

    A column belongs to the class whose name it contains ("disc_mask"). If the columns cannot be matched, their order is
    kept and a warning is logged.
    """
    columns = named.options.get(target, "").split("+")
    if len(columns) < 2 or "{" in named.options[target]:
        return named
    order = [_column(columns, name) for name in classes]
    if len(columns) != len(classes) or None in order or len(set(order)) < len(order):
        listed = f"{', '.join(columns)} are read as {', '.join(classes)}, in this order"
        _log.warning("%s: the columns %s, because their names do not match the classes", named.name, listed)
        return named
    moved = tuple(k for k in order if k is not None)
    return named if moved == tuple(range(len(moved))) else replace(named, source=Reordered(named.source, target, moved))


def _column(columns: Sequence[str], name: str) -> int | None:
    """The index of the only column that equals or contains the name of a class; None without such a column."""
    exact = np.flatnonzero(places(columns, [name]) >= 0)
    inside = [k for k, column in enumerate(columns) if name.casefold() in column.casefold()]
    matches = exact if len(exact) else inside
    return int(matches[0]) if len(matches) == 1 else None
