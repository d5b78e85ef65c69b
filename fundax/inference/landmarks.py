"""Landmarks of photographs, by a model of `objectives.landmark`: a CSV in pixels of the photographs."""

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

from data_pipelines.sources.csv import wrap
from data_pipelines.transforms.dense import Prepared
from fundax.evals.original_grid import original_points
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import read_run
from fundax.objectives.dense import Landmark
from fundax.runtime.checkpoint import load_params
from fundax.types import Extra, UserError

OBJECTIVE = Landmark  # what launch.py predict hands to this file


def points(
    model: Checkpoint, extra: Extra, images: Iterable[str | Path], read: str = "points"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each photograph, f64 [n 2] (x, y) in its pixels, and f32 [n], the probability of the model's highest pixel.

    read: "points", that pixel, or "points_expected", the mean place. Raises DataError naming an image that cannot be read.
    """
    facts, params = model.preprocessing, jax.tree.map(jax.numpy.asarray, model.params)
    for path in images:
        seen = Prepared(wrap([{"image": Path(path)}]), int(facts["image_size"]), resize=facts["resize"])[0]
        image = seen.views[0].image
        assert isinstance(image, np.ndarray)
        out = _forward(model.objective, params, extra, image[None])
        yield original_points(np.asarray(out[read]), seen.targets["frame"][None])[0], np.asarray(out["confidence"])[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of launch.py predict."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs")
    parser.add_argument("--out", help="a CSV to write: image, and x, y and confidence of each landmark")
    parser.add_argument("--read", choices=("points", "points_expected"), default="points", help="how a map is read")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """What launch.py predict prints. The columns of --out are those training reads: NAME_x, NAME_y."""
    model, extra = read_run(path, given.checkpoint), load_params(path, given.checkpoint)[1]
    names = model.objective.names
    if given.out and Path(given.out).exists():
        raise UserError(f"{given.out} is there already; choose another --out")
    columns = ["image", *(f"{name}_{what}" for name in names for what in ("x", "y", "confidence"))]
    found = points(model, extra, given.image, given.read)
    rows = []
    for image, (xy, sure) in zip(given.image, track(found, "looking", len(given.image), transient=True), strict=True):
        numbers = [
            value for k in range(len(names)) for value in (f"{xy[k, 0]:.1f}", f"{xy[k, 1]:.1f}", f"{sure[k]:.3f}")
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
