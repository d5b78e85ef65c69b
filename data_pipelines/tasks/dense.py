"""Images with masks or landmarks at a fixed resolution, split into parts that share no patient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipelines.open import Data, joined, synthetic_parts
from data_pipelines.records import DataError, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.synthetic.sources import Drawn
from data_pipelines.transforms.dense import Prepared


def masks(
    data: Data, seed: int, size: int, classes: tuple[str, ...], *, overlapping: bool, crop: bool, keep: bool
) -> dict[str, Source]:
    """Each part with masks of `classes`, at `size` pixels; without --data, structures of synthetic eyes.

    crop: crop photographs to the field of view first. keep: keep the prepared images in memory. Raises DataError if
    `overlapping` is set with fewer than two classes.
    """
    if overlapping and len(classes) < 2:
        raise DataError("--overlapping needs at least two --classes")
    found = _parts(data, seed, size, lambda eyes: Drawn(eyes, classes, overlapping), mask="mask")
    prepared = {
        n: Prepared(part, size, classes=classes, overlapping=overlapping, crop=crop) for n, part in found.items()
    }
    return _kept(prepared, keep)


def points(
    data: Data,
    seed: int,
    size: int,
    landmarks: tuple[str, ...],
    *,
    missing: str,
    diameter: float,
    resize: str,
    keep: bool,
) -> dict[str, Source]:
    """Each part with the coordinates of `landmarks`, at `size` pixels; without --data, fovea and disc of synthetic eyes.

    missing: "allowed" if landmarks may have no coordinates. diameter: diameter of the disc in pixels of the original
    images, to report errors in disc diameters. resize: "longest" or "squash". keep: keep the prepared images in memory.
    Raises DataError for landmarks that synthetic eyes do not have.
    """
    if not data.data and landmarks != ("fovea", "disc"):
        raise DataError(f"synthetic eyes have the landmarks fovea and disc, not {', '.join(landmarks)}; give --data")
    found = _parts(data, seed, size, Drawn, points="+".join(landmarks))
    fields: dict[str, Any] = {"landmarks": landmarks, "missing": missing if data.data else "allowed"}
    fields |= {"diameter": diameter, "resize": resize}
    return _kept({name: Prepared(part, size, **fields) for name, part in found.items()}, keep)


def _parts(data: Data, seed: int, size: int, drawn: Callable[[Any], Source], **columns: str) -> dict[str, Source]:
    test = max(data.patients // 4, 2) if len(data.fractions) > 2 else 0
    counts: dict[str, Any] = {"val": max(data.patients // 5, 2), "test": test}
    eyes = synthetic_parts(data.eyes(seed, size, masks=True), keep=False, **counts)
    own = {
        name: drawn(getattr(part, "source", part)) for name, part in eyes.items()
    }  # the eyes themselves are not cached, only the prepared images
    parts = data.parts(own, seed, lambda record: 0, **columns)
    return {name: joined(part) for name, part in parts.items()}


def _kept(parts: dict[str, Any], keep: bool) -> dict[str, Source]:
    return {name: CachedSource(part) for name, part in parts.items()} if keep else parts
