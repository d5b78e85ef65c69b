"""Mean and deviation of the modalities of a source, and the file that declares modalities which fundax does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.images.decode import load
from data_pipelines.records import MODALITIES, DataError, Source, modality_name
from data_pipelines.sources.modality_folders import Moments, moments

FORMAT = "fundax modalities 1"
_SIDE = 256  # images are decoded at about this size


class Stats(NamedTuple):
    """Mean and deviation of red, green and blue in [0, 1] over all pixels, and the number of images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int


def measure(source: Source, most: int = 2000) -> dict[str, Stats]:
    """The statistics of each modality of a source, over at most `most` records, evenly spaced. Each image counts once."""
    sums: dict[str, np.ndarray] = {}
    for row in range(0, len(source), max(-(-len(source) // most), 1)):
        record = source[row]
        for view in record.views:
            pixels = load(view.image, _SIDE).reshape(-1, 3).astype(np.float64) / 255
            here = np.stack([np.ones(3), pixels.mean(0), (pixels**2).mean(0)])
            sums[view.modality] = sums.get(view.modality, np.zeros((3, 3))) + here
    if not sums:
        raise DataError("the source has no images to measure")
    return {name: _stats(total) for name, total in sorted(sums.items())}


def _stats(total: np.ndarray) -> Stats:
    count, mean, square = int(total[0, 0]), total[1] / total[0], total[2] / total[0]
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-8))
    rounded = [tuple(round(float(x), 6) for x in row) for row in (mean, deviation)]
    return Stats(rounded[0], rounded[1], count)  # type: ignore[arg-type]


def as_json(found: Mapping[str, Stats]) -> dict[str, object]:
    """The content of a file of modalities."""
    return {"format": FORMAT, "modalities": {name: one._asdict() for name, one in found.items()}}


def write_stats(found: Mapping[str, Stats], path: str | Path) -> Path:
    """Write statistics as JSON; returns the path."""
    Path(path).write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def read_stats(path: str | Path) -> dict[str, Stats]:
    """The statistics in a file of `write_stats`. Raises DataError if it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {
            name: Stats(_three(one["mean"]), _three(one["std"]), int(one["images"]))
            for name, one in content["modalities"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected a file that launch.py data stats wrote ({error})") from None
    if content.get("format") != FORMAT or not found:
        raise DataError(f"{path}: format {content.get('format')!r} with {len(found)} modalities; expected {FORMAT!r}")
    return found


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def declared_names(found: Mapping[str, Stats]) -> tuple[str, ...]:
    """The modalities of a file that are not in MODALITIES."""
    return tuple(name for name in found if name not in MODALITIES)


def moments_of(names: Sequence[str], found: Mapping[str, Stats]) -> tuple[Moments, Moments]:
    """Mean and deviation, one row per name: those measured, else those of VisionFM. Raises DataError for other names."""
    known = [modality_name(name, declared_names(found)) for name in names]
    rows = [
        (found[name].mean, found[name].std) if name in found else tuple(one[0] for one in moments((name,)))
        for name in known
    ]
    return tuple(mean for mean, _ in rows), tuple(std for _, std in rows)
