"""Generate the report of a photograph or angiogram."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.text import Text

from data_pipelines.images import decode as files
from data_pipelines.language.findings import vocabulary
from data_pipelines.transforms.steps import preprocess
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.read import read_run
from fundax.objectives.report import Report
from fundax.runtime.checkpoint import load_params
from fundax.types import Extra, UserError

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
    size = int(model.preprocessing["image_size"])
    pixels = np.stack([preprocess(files.load(one, at_least=size), model.preprocessing) for one in images])
    ids = np.asarray(_write(objective, model.params, extra, pixels))
    find = vocabulary()
    return [WrittenReport(text, tuple(sorted(find(text)))) for text in model.tokenizer.decode(ids)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, help="the photograph or angiogram to describe")
    parser.add_argument("--beams", type=int, help="beam width of the search; by default the value set in training")


def run(path: str | Path, given: argparse.Namespace) -> WrittenReport:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    model = read_run(path, given.checkpoint)
    extra = load_params(path, given.checkpoint)[1]
    return write_reports(model, extra, [given.image], given.beams)[0]


@functools.partial(jax.jit, static_argnums=0)
def _write(objective: Report, params: Any, extra: Extra, image: np.ndarray) -> jax.Array:
    return objective.forward(params, extra, {"image": image})["report"]
