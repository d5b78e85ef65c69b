"""Predictions of classifiers, regressors and forecasts for photographs, printed as a table and written as a CSV."""

from __future__ import annotations

import argparse
import csv
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import track
from rich.table import Table

from data_pipelines.images.decode import load
from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.transforms.steps import preprocess
from fundax.encoders.backbone import BackboneWithHead
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import read_run
from fundax.objectives.classify import Classify, MultiModality
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.types import Extra, UserError

# launch.py predict uses this module for these objectives, and for others on a Backbone with `classes` or `names`
OBJECTIVE = (Classify, MultiModality, Regress, Forecast, BackboneWithHead)
SHOWN = 8  # number of columns in the console; the CSV has all of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs to predict")
    parser.add_argument("--modality", default="CFP", help="modality of the photographs: CFP, OCT, FFA, UWF, ...")
    parser.add_argument(
        "--days", nargs="+", type=float, help="forecast horizons in days (forecasts only); one row each"
    )
    parser.add_argument("--out", help="CSV file to write, with a column for each class, finding or value")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    model = read_run(path, given.checkpoint)
    if isinstance(model.objective, Forecast) != bool(given.days):
        raise UserError("--days is required for forecasting models and not allowed for others: how many days ahead")
    if given.out and Path(given.out).exists():
        raise UserError(f"{given.out} already exists; choose another --out")
    number = MODALITIES.index(modality_name(given.modality))
    names, first = names_of(model), ["image", *(["days"] if given.days else [])]
    rows: list[list[str]] = []
    for image in track(given.image, "predicting", transient=True):
        for days in given.days or [None]:
            values = predicted(model, image, number, days)
            rows.append([str(image), *([f"{days:g}"] if days is not None else []), *(f"{v:.4f}" for v in values)])
    if given.out:
        with Path(given.out).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[*first, *names], *rows])
    return _table(first, names, rows)


def names_of(model: Checkpoint) -> tuple[str, ...]:
    """Names of the predicted columns: classes, findings or values."""
    objective = model.objective
    names = tuple(objective.names if isinstance(objective, Regress) else objective.classes)
    count = 2 if isinstance(objective, Forecast) else objective.head.outputs
    if isinstance(objective, Classify) and count == 1:
        return names or ("0", "1")
    return names or tuple(str(k) for k in range(count))


def predicted(model: Checkpoint, image: str | Path, modality: int = 0, days: float | None = None) -> np.ndarray:
    """Probabilities, or values in their units, f32 [K]. Raises DataError naming an image that cannot be read."""
    seen = preprocess(load(Path(image)), model.preprocessing, modality)
    batch: dict[str, Any] = {"image": seen[None], "modality": np.array([modality], np.int32)}
    if days is not None:
        batch["days"] = np.array([days], np.float32)
    params = jax.tree.map(jax.numpy.asarray, model.params)
    out = _forward(model.objective, params, model.extra, batch)
    if "value" in out:
        return np.asarray(out["value"])[0]
    probability = np.asarray(out["probabilities"])[0]
    return np.array([1 - probability[0], probability[0]]) if len(probability) == 1 else probability


def _table(first: list[str], names: tuple[str, ...], rows: list[list[str]]) -> Table:
    """A console table of the first SHOWN columns; the caption counts the others."""
    left = len(names) - SHOWN
    table = Table(*first, *names[:SHOWN], caption=f"and {left} more columns: --out writes all" if left > 0 else None)
    for row in rows:
        table.add_row(*row[: len(first) + SHOWN])
    return table


@functools.partial(jax.jit, static_argnums=0)
def _forward(objective: Any, params: Any, extra: Extra, batch: dict[str, Any]) -> dict[str, jax.Array]:
    return objective.forward(params, extra, batch)
