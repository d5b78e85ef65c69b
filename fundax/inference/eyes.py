"""Zero-shot predictions of RET-CLIP for each eye and for the patient.

Each eye has its own head, and the patient-level head uses both eyes. One eye is enough."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import softmax

from data_pipelines.language.prompts import prompts
from fundax.evals.features import class_features
from fundax.inference.answers import check_out, write_rows
from fundax.inference.model import Image, Model, load
from fundax.inference.zero_shot import class_names
from fundax.objectives.ret_clip import IMAGE, LEVELS, SUFFIX, RetCLIP
from fundax.types import UserError

OBJECTIVE = RetCLIP  # launch.py predict uses this module for this objective
TITLES = {"left": "left eye", "right": "right eye", "patient": "patient"}


@dataclass(frozen=True)
class EyePrediction:
    """Probabilities f32 [K] for each predicted level ("left", "right", "patient"); each level sums to 1."""

    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]
    note: str  # how a missing eye was handled; "" if both eyes were given

    def rows(self) -> list[dict[str, Any]]:
        """One row per class with the probability of each level, in the order of the classes."""
        levels = [level for level in TITLES if level in self.probabilities]
        return [
            {"condition": name, **{level: self.probabilities[level][k] for level in levels}}
            for k, name in enumerate(self.classes)
        ]

    def table(self) -> Table:
        """A table with one row per class, sorted by descending probability at the patient level."""
        levels = [level for level in TITLES if level in self.probabilities]
        table = Table("condition", *(TITLES[level] for level in levels), caption=self.note or None)
        for k in np.argsort(-self.probabilities["patient"], kind="stable"):
            table.add_row(self.classes[k], *(f"{self.probabilities[level][k]:.3f}" for level in levels))
        return table


def predict_eyes(
    model: Model,
    classes: Sequence[str],
    *,
    left: Image | None = None,
    right: Image | None = None,
    image: Image | None = None,
    language: str = "",
) -> EyePrediction:
    """Zero-shot probabilities for each eye and for the patient.

    Args:
        model: a RET-CLIP model.
        classes: class names in English or Chinese.
        left, right: photographs (path, encoded bytes or u8 [H W 3]). If only one is given, the patient level uses it
            for both eyes, as the authors do.
        image: one photograph of an eye of unknown side. Only the patient level is predicted, with this image for both
            eyes.
        language: language of the prompts, "en" or "zh". By default, the prompt for each name uses the language of the
            name.
    Raises:
        UserError: the model is not a RET-CLIP, both images are missing, or fewer than two classes are given.
        DataError: an image cannot be read.

    Source of the duplication: the zero-shot protocol of RET-CLIP's authors in RET-CLIP-PLUS.
    """
    if not isinstance(model.objective, RetCLIP):
        raise UserError(f"--left and --right need a RET-CLIP model, this is {type(model.objective).__name__}")
    given = {"left": left, "right": right} if image is None else {"image": image}
    given = {name: value for name, value in given.items() if value is not None}
    if not given or (image is not None and (left is not None or right is not None)):
        raise UserError("give --left and --right, one of them, or --image alone")
    if len(set(classes)) < 2 or len(set(classes)) != len(classes):
        raise UserError(f"expected at least two different classes, got {', '.join(classes) or 'none'}")
    pixels = {name: model.preprocess(value)[None] for name, value in given.items()}
    out = model.forward(pixels)
    probabilities = {}
    for level in LEVELS:
        if f"{IMAGE[level]}_features" in out:
            heads = _class_features(model, classes, level, language)
            logits = out[f"{IMAGE[level]}_features"][0] @ heads.T * out[f"logit_scale{SUFFIX[level]}"]
            probabilities[level] = softmax(logits).astype(np.float32)
    return EyePrediction(tuple(classes), probabilities, _note(tuple(given)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument("--left", help="photograph of the left eye")
    parser.add_argument("--right", help="photograph of the right eye")
    parser.add_argument("--image", help="photograph of an eye of unknown side; only the patient level is predicted")
    parser.add_argument("--classes", required=True, help="class names in English or Chinese, separated by commas")
    parser.add_argument(
        "--language",
        choices=("en", "zh"),
        default="",
        help="language of the prompts; by default that of each class name",
    )
    parser.add_argument("--out", help="CSV or JSON file to write, with a row for each condition")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    check_out(given.out)
    model = load(path, given.checkpoint)
    eyes = {"left": given.left, "right": given.right, "image": given.image}
    found = predict_eyes(model, class_names(given.classes), **eyes, language=given.language)
    write_rows(given.out, found.rows())
    return found.table()


def _note(given: tuple[str, ...]) -> str:
    if given == ("image",):
        return "one image of unknown side: it stands for both eyes of the patient; no eye has a column of its own"
    if len(given) == 1:
        return f"only the {given[0]} eye was given: the patient column takes it for both eyes"
    return ""


def _class_features(model: Model, classes: Sequence[str], level: str, language: str) -> np.ndarray:
    """Class features f32 [K E] of a level's text head: the mean over the prompts of each class, L2-normalised again."""
    if model.tokenizer is None:
        raise UserError("this model came without a tokenizer, so it takes no class names; add its files to the folder")
    texts = [prompts(name, level, language) for name in classes]
    tokens = [np.asarray(model.tokenizer(one)) for one in texts]
    return class_features(model.forward, tokens, sum(map(len, tokens)), key=f"text_features{SUFFIX[level]}")
