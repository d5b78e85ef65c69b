"""Zero-shot predictions for photographs: probabilities over classes that are named in words (CLIP, FLAIR, KeepFIT)."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from fundax.inference.answers import check_out, table_of, write_rows
from fundax.inference.model import load
from fundax.inference.photographs import files_of
from fundax.objectives.clip import CLIP
from fundax.objectives.flair import FLAIR
from fundax.objectives.keepfit import KeepFIT

OBJECTIVE = (CLIP, FLAIR, KeepFIT)  # launch.py predict uses this module for these objectives


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--image", required=True, nargs="+", help="photographs, or folders of them")
    parser.add_argument("--classes", required=True, help="class names, separated by commas")
    parser.add_argument("--knowledge", action="store_true", help="describe the classes in the words of experts")
    parser.add_argument("--template", nargs="+", default=["{}"], help="sentences with {} in place of a class name")
    parser.add_argument("--modality", default="CFP", help="modality of the photographs: CFP, OCT, FFA, UWF, ...")
    parser.add_argument("--out", help="CSV or JSON file to write, with a column for each class")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    check_out(given.out)
    images, classes = files_of(given.image), class_names(given.classes)
    model = load(path, given.checkpoint, modality=given.modality)
    probabilities = model.zero_shot(images, classes, given.template, knowledge=given.knowledge)
    rows = [
        {"image": str(image), **dict(zip(classes, row, strict=True))}
        for image, row in zip(images, probabilities, strict=True)
    ]
    write_rows(given.out, rows)
    return table_of(rows)


def class_names(words: str) -> list[str]:
    """The names in a list that is separated by commas, Chinese commas included."""
    return [name.strip() for name in words.replace("，", ",").split(",") if name.strip()]
