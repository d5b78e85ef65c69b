"""Generate the report of a photograph or angiogram."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from data_pipelines.images import decode as files
from data_pipelines.language.findings import vocabulary
from fundax.inference.answers import check_out, table_of, write_rows
from fundax.inference.photographs import compute_batches, files_of, forward, read_photograph
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import load
from fundax.objectives.report import Report
from fundax.types import Extra, UserError

BATCH = 16
OBJECTIVE = Report  # launch.py predict uses this module for this objective


@dataclass(frozen=True)
class WrittenReport:
    """The text of a report, and the findings it mentions (data_pipelines.language.findings)."""

    text: str
    findings: tuple[str, ...]

    def __rich__(self) -> Text:
        return Text(f"{self.text}\nfindings: {', '.join(self.findings) or 'none named'}")


def write_reports(
    model: Checkpoint, extra: Extra, images: list[files.ImageLike], beams: int | None = None
) -> list[WrittenReport]:
    """Generate one report for each image; images are paths, encoded bytes, or u8 [H W 3] of any size.

    beams: beam width; by default the value that the model was trained with. Raises DataError naming an image that cannot
    be read, and UserError if the model has no tokenizer or the beam width is out of range.
    """
    if model.tokenizer is None:
        raise UserError(
            "this model came without a tokenizer, so its reports have no words; add its files to the folder"
        )
    if beams is not None and not 1 <= beams <= model.objective.decoder.vocab:
        raise UserError(f"--beams {beams}: expected 1 (the likeliest word at each step) or a few more")
    objective = replace(model.objective, beams=beams or model.objective.beams)

    def read(image: files.ImageLike, number: int) -> np.ndarray:
        return read_photograph(image, model.preprocessing, f"image {number}")

    def compute(pixels: np.ndarray) -> dict[str, jax.Array]:
        return {"ids": forward(objective, model.params, extra, {"image": pixels})["report"]}

    ids = np.concatenate([out["ids"] for out in compute_batches(images, read, compute, BATCH, "writing")])
    find = vocabulary()
    return [WrittenReport(text, tuple(sorted(find(text)))) for text in model.tokenizer.decode(ids)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs or angiograms, or folders of them")
    parser.add_argument("--beams", type=int, help="beam width of the search; by default the value set in training")
    parser.add_argument("--out", help="CSV or JSON file to write, with the report and its findings")


def run(path: str | Path, given: argparse.Namespace) -> WrittenReport | Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    check_out(given.out)
    model, images = load(path, given.checkpoint), files_of(given.image)
    found = write_reports(model, model.extra, list(images), given.beams)
    rows = [
        {"image": str(image), "report": one.text, "findings": "; ".join(one.findings)}
        for image, one in zip(images, found, strict=True)
    ]
    write_rows(given.out, rows)
    return found[0] if len(found) == 1 else table_of(rows)
