"""Predictions of classifiers, regressors and forecasts for photographs, printed as a table and written as a CSV or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from data_pipelines.images.decode import ImageLike
from data_pipelines.records import MODALITIES, modality_name
from fundax.encoders.backbone import BackboneWithHead
from fundax.inference.answers import check_out, table_of, write_rows
from fundax.inference.photographs import compute_batches, files_of, forward, read_photograph
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import load
from fundax.objectives.adapter import Adapted
from fundax.objectives.classify import Classify, MultiModality
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.types import UserError

# launch.py predict uses this module for these objectives, and for others on a Backbone with `classes` or `names`
OBJECTIVE = (Classify, MultiModality, Regress, Forecast, Adapted, BackboneWithHead)
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs to predict, or folders of them")
    parser.add_argument("--modality", default="CFP", help="modality of the photographs: CFP, OCT, FFA, UWF, ...")
    parser.add_argument(
        "--days", nargs="+", type=float, help="forecast horizons in days (forecasts only); one row each"
    )
    parser.add_argument("--out", help="CSV or JSON file to write, with a column for each class, finding or value")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    check_out(given.out)
    model = load(path, given.checkpoint)
    if isinstance(model.objective, Forecast) != bool(given.days):
        raise UserError("--days is required for forecasting models and not allowed for others: how many days ahead")
    number = MODALITIES.index(modality_name(given.modality))
    names, images = names_of(model), files_of(given.image)
    answers = zip(*(predictions(model, images, number, days) for days in given.days or [None]), strict=True)
    rows = [
        {
            "image": str(image),
            **({"days": f"{days:g}"} if days is not None else {}),
            **dict(zip(names, values, strict=True)),
        }
        for image, each in zip(images, answers, strict=True)
        for days, values in zip(given.days or [None], each, strict=True)
    ]
    write_rows(given.out, rows)
    return table_of(rows, ("image", "days"))


def names_of(model: Checkpoint) -> tuple[str, ...]:
    """Names of the predicted columns: classes, findings or values."""
    objective = model.objective
    if isinstance(objective, Adapted):
        return tuple(model.preprocessing.get("classes", ())) or tuple(map(str, range(objective.adapter.classes)))
    names = tuple(objective.names if isinstance(objective, Regress) else objective.classes)
    count = 2 if isinstance(objective, Forecast) else objective.head.outputs
    if isinstance(objective, Classify) and count == 1:
        return names or ("0", "1")
    return names or tuple(str(k) for k in range(count))


def predicted(model: Checkpoint, image: ImageLike, modality: int = 0, days: float | None = None) -> np.ndarray:
    """Probabilities, or values in their units, f32 [K]. Raises DataError naming an image that cannot be read."""
    return next(predictions(model, [image], modality, days))


def predictions(
    model: Checkpoint, images: Sequence[ImageLike], modality: int = 0, days: float | None = None
) -> Iterator[np.ndarray]:
    """Probabilities, or values in their units, f32 [K], of each photograph.

    Raises DataError naming an image that cannot be read.
    """
    params = jax.tree.map(jax.numpy.asarray, model.params)

    def compute(pixels: np.ndarray) -> dict[str, jax.Array]:
        batch: dict[str, Any] = {"image": pixels, "modality": np.full(len(pixels), modality, np.int32)}
        if days is not None:
            batch["days"] = np.full(len(pixels), days, np.float32)
        out = forward(model.objective, params, model.extra, batch)
        return {"answer": out["value"] if "value" in out else out["probabilities"]}

    read = lambda image, number: read_photograph(image, model.preprocessing, f"image {number}")  # noqa: E731
    for out in compute_batches(images, read, compute, BATCH, "predicting"):
        for row in out["answer"]:
            single = len(row) == 1 and not isinstance(model.objective, Regress)
            yield np.array([1 - row[0], row[0]]) if single else row
