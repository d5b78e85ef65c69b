"""Zero-shot predictions of a model of visits for a visit whose views are named: cfp_left, oct_right, ..."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import softmax

from data_pipelines.images import decode as files
from data_pipelines.records import EYES, MODALITIES
from data_pipelines.sources.visit_columns import Slot, slot_of
from data_pipelines.transforms.steps import preprocess
from fundax.evals.features import class_features
from fundax.inference.model import Image, Model, load
from fundax.objectives.visit import Visit
from fundax.types import UserError

OBJECTIVE = Visit  # launch.py predict uses this module for this objective
SIDES = ("left", "right")


@dataclass(frozen=True)
class VisitPrediction:
    """Probabilities f32 [K] of the visit, of each eye that has a view, and of each view, by name; each sums to 1.

    missing: names of the model's views that were not given.
    """

    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]
    missing: tuple[str, ...]

    def table(self) -> Table:
        """A table with a row for each class, by descending probability of the visit."""
        note = f"not given: {', '.join(self.missing)}" if self.missing else None
        table = Table("condition", *self.probabilities, caption=note)
        for k in np.argsort(-self.probabilities["visit"], kind="stable"):
            table.add_row(self.classes[k], *(f"{found[k]:.3f}" for found in self.probabilities.values()))
        return table


def predict_visit(
    model: Model, views: Mapping[str, Image], classes: Sequence[str], templates: Sequence[str] = ("{}.",)
) -> VisitPrediction:
    """Zero-shot probabilities of a visit, its eyes and its views.

    Args:
        model: a model of visits (objectives.visit.Visit).
        views: images by the name of their view, such as cfp_left, oct_right or ffa_left_2.
        classes: class names.
        templates: sentences with {} in place of a name; each is a prompt of each class.

    Raises UserError for another model, for a view that it does not know, without a view, for more views than it has places,
    and for fewer than two classes; DataError for an image that cannot be read.
    """
    objective = model.objective
    if not isinstance(objective, Visit):
        raise UserError(f"named views need a model of visits, this is {type(objective).__name__}")
    if len(set(classes)) < 2 or len(set(classes)) != len(classes):
        raise UserError(f"expected at least two different classes, got {', '.join(classes) or 'none'}")
    slots = _slots(objective, views)
    images = [preprocess(files.load(image), model.preprocessing) for image in views.values()]
    out = _outputs(model, objective, slots, np.stack(images))
    prompts = [np.asarray(_tokens(model, [template.replace("{}", name) for template in templates])) for name in classes]
    heads = class_features(model.forward, prompts, sum(map(len, prompts)))
    features = {"visit": out["image_features"][0]}
    for k, side in enumerate(SIDES):
        if any(slot.eye == side for slot in slots):
            features[f"{side} eye"] = out["eye_features"][0, k]
    features |= {slot.name: out["view_features"][k] for k, slot in enumerate(slots)}
    logits = {name: found @ heads.T * out["logit_scale"] for name, found in features.items()}
    given = {(slot.modality, slot.eye) for slot in slots}
    every = [Slot(modality, side) for modality in objective.modalities for side in SIDES]
    missing = tuple(slot.name for slot in every if (slot.modality, slot.eye) not in given)
    return VisitPrediction(tuple(classes), {name: softmax(x).astype(np.float32) for name, x in logits.items()}, missing)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `launch.py predict` for this kind of model."""
    parser.add_argument(
        "--view", nargs="+", required=True, metavar="NAME=FILE", help="views: cfp_left=a.png oct_right=b.png"
    )
    parser.add_argument("--classes", required=True, help="class names, separated by commas")
    parser.add_argument("--template", nargs="+", default=["{}."], help="sentences with {} in place of a class name")


def run(path: str | Path, given: argparse.Namespace) -> Table:
    """Predict from the parsed arguments; returns what `launch.py predict` prints."""
    views: dict[str, str] = {}
    for word in given.view:
        name, equals, file = word.partition("=")
        if not equals or not file or name in views:
            raise UserError(f"--view {word}: expected NAME=FILE with different names, such as cfp_left=eye.png")
        views[name] = file
    classes = [name.strip() for name in given.classes.replace("，", ",").split(",") if name.strip()]
    return predict_visit(load(path, given.checkpoint), views, classes, given.template).table()


def _slots(objective: Visit, views: Mapping[str, Any]) -> list[Slot]:
    """The places of the views. Raises UserError for a name that the model does not know."""
    if not 1 <= len(views) <= objective.most:
        raise UserError(f"{len(views)} views; expected 1 to {objective.most}")
    found: list[Slot] = []
    for name in views:
        slot = slot_of(name, [own for own in objective.modalities if own not in MODALITIES])
        if slot is None or slot.modality not in objective.modalities:
            known = ", ".join(f"{own.lower()}_left" for own in objective.modalities)
            raise UserError(f"{name} is not a view of this model; expected such as {known}, left or right")
        found.append(slot)
    return found


def _outputs(model: Model, objective: Visit, slots: Sequence[Slot], images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of one visit; absent places are filled, so that every visit has one shape."""
    count, most = len(slots), objective.most
    rest = [(0, most - count)]
    batch = {
        "images": np.pad(images, [*rest, (0, 0), (0, 0), (0, 0)]),
        "row": np.pad(np.zeros(count, np.int32), rest, constant_values=-1),
        "slot": np.pad(np.arange(count, dtype=np.int32), rest),
        "view_modality": np.pad(np.array([objective.modalities.index(s.modality) for s in slots], np.int32), rest),
        "view_eye": np.pad(np.array([EYES.index(s.eye) for s in slots], np.int32), rest, constant_values=2),
        "valid": np.ones(1, bool),
    }
    return model.forward(batch)


def _tokens(model: Model, texts: Sequence[str]) -> np.ndarray:
    if model.tokenizer is None:
        raise UserError("this model came without a tokenizer, so it takes no class names; add its files to the folder")
    return model.tokenizer(list(texts))
