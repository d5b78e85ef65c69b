"""Predict landmarks of photographs: a CSV or JSON of coordinates in pixels of the photographs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import track
from rich.table import Table

from data_pipelines.sources.wrap import wrap
from data_pipelines.transforms.dense import Prepared
from fundax.evals.original_grid import original_points
from fundax.inference.answers import check_out, table_of, write_rows
from fundax.inference.photographs import files_of, forward
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import load
from fundax.objectives.dense import Landmark
from fundax.types import Extra

OBJECTIVE = Landmark  # launch.py predict uses this module for this objective


def points(
    model: Checkpoint, extra: Extra, images: Iterable[str | Path | np.ndarray], read: str = "points_refined"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each photograph, a file or u8 [H W 3], the landmarks (x, y) f64 [n 2] in its pixels, and their confidence f32 [n].

    The confidence is the largest probability in the heat map. read: the output of Landmark.forward that has the positions.
    Raises DataError naming an image that cannot be read.
    """
    facts, params = model.preprocessing, jax.tree.map(jax.numpy.asarray, model.params)
    for photograph in images:
        seen = Prepared(wrap([{"image": photograph}]), int(facts["image_size"]), resize=facts["resize"])[0]
        image = seen.views[0].image
        assert isinstance(image, np.ndarray)
        out = forward(model.objective, params, extra, {"image": image[None]})
        yield original_points(np.asarray(out[read]), seen.targets["frame"][None])[0], np.asarray(out["confidence"])[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs to predict, or folders of them")
    parser.add_argument("--out", help="CSV or JSON file to write, with x, y and confidence of each landmark")
    parser.add_argument(
        "--read",
        choices=("points", "points_expected", "points_refined"),
        default="points_refined",
        help="position in each heat map: its maximum (points), its expected position (points_expected), or the expected "
        "position near the maximum (points_refined)",
    )


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints.

    The columns NAME_x and NAME_y of --out have the names that training reads.
    """
    check_out(given.out)
    model, images = load(path, given.checkpoint), files_of(given.image)
    rows = []
    progress = track(points(model, model.extra, images, given.read), "predicting", len(images), transient=True)
    for image, (xy, confidence) in zip(images, progress, strict=True):
        row: dict[str, Any] = {"image": str(image)}
        for name, (x, y), sure in zip(model.objective.names, xy, confidence, strict=True):
            row |= {f"{name}_x": float(x), f"{name}_y": float(y), f"{name}_confidence": float(sure)}
        rows.append(row)
    write_rows(given.out, rows)
    return table_of(rows)
