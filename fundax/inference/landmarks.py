"""Predict landmarks of photographs: a CSV of coordinates in pixels of the photographs."""

from __future__ import annotations

import argparse
import csv
import functools
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
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import read_run
from fundax.objectives.dense import Landmark
from fundax.runtime.checkpoint import load_params
from fundax.types import Extra, UserError

OBJECTIVE = Landmark  # launch.py predict uses this module for this objective


def points(
    model: Checkpoint, extra: Extra, images: Iterable[str | Path], read: str = "points"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each photograph the landmarks (x, y) f64 [n 2] in its pixels, and their confidence f32 [n].

    The confidence is the largest probability in the heat map. read: "points" takes the position of that maximum,
    "points_expected" the expected position. Raises DataError naming an image that cannot be read.
    """
    facts, params = model.preprocessing, jax.tree.map(jax.numpy.asarray, model.params)
    for path in images:
        seen = Prepared(wrap([{"image": Path(path)}]), int(facts["image_size"]), resize=facts["resize"])[0]
        image = seen.views[0].image
        assert isinstance(image, np.ndarray)
        out = _forward(model.objective, params, extra, image[None])
        yield original_points(np.asarray(out[read]), seen.targets["frame"][None])[0], np.asarray(out["confidence"])[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs to predict")
    parser.add_argument("--out", help="CSV file to write, with x, y and confidence of each landmark")
    parser.add_argument(
        "--read",
        choices=("points", "points_expected"),
        default="points",
        help="take the maximum of each heat map (points) or its expected position (points_expected)",
    )


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints.

    The columns NAME_x and NAME_y of --out have the names that training reads.
    """
    model, extra = read_run(path, given.checkpoint), load_params(path, given.checkpoint)[1]
    names = model.objective.names
    if given.out and Path(given.out).exists():
        raise UserError(f"{given.out} already exists; choose another --out")
    columns = ["image", *(f"{name}_{what}" for name in names for what in ("x", "y", "confidence"))]
    predictions = points(model, extra, given.image, given.read)
    rows = []
    progress = track(predictions, "predicting", len(given.image), transient=True)
    for image, (xy, confidence) in zip(given.image, progress, strict=True):
        numbers = [
            value for k in range(len(names)) for value in (f"{xy[k, 0]:.1f}", f"{xy[k, 1]:.1f}", f"{confidence[k]:.3f}")
        ]
        rows.append([str(image), *numbers])
    if given.out:
        with Path(given.out).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


@functools.partial(jax.jit, static_argnums=0)
def _forward(objective: Landmark, params: Any, extra: Extra, image: np.ndarray) -> dict[str, jax.Array]:
    return objective.forward(params, extra, {"image": image})
