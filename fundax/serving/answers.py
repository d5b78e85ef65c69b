"""Answers of a served model: probabilities, values or a report for named photographs, and maps.

The answers are those of fundax/inference; this file only chooses the function by the class of the model's objective."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fundax.inference import eyes, labels, reports, visits, zero_shot
from fundax.inference.explain import overlay
from fundax.inference.model import Model
from fundax.inference.saliency import saliency_maps
from fundax.interop.checkpoint import Checkpoint
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.types import UserError

SHOWN = 640  # pixels of the longer side of a picture that is sent back
MOST_CLASSES = 200
Photographs = Mapping[str, np.ndarray]  # u8 [H W 3] by the name of their place


@dataclass(frozen=True)
class Question:
    """A request: photographs by name, class names, whether to use expert descriptions, and days ahead."""

    images: Photographs
    classes: tuple[str, ...] = ()
    knowledge: bool = False
    days: float = 365.0


@dataclass(frozen=True)
class Kind:
    """The inputs and the prediction function of models with some objectives.

    objectives: their classes. places: the names of a model's photographs. in_words: whether the client names the classes.
    ask: numbers f32 [K] or a text by what they are about ("left eye", "visit").
    """

    objectives: tuple[type, ...]
    places: Callable[[Model], tuple[str, ...]]
    in_words: bool
    ask: Callable[[Model, Question], Mapping[str, Any]]


def kind_of(model: Model) -> Kind:
    """The Kind of a model. Raises UserError for a model whose answers the page cannot show."""
    for kind in KINDS:
        if isinstance(model.objective, kind.objectives):
            return kind
    known = ", ".join(one.__name__ for kind in KINDS for one in kind.objectives)
    raise UserError(f"serve: the model is a {type(model.objective).__name__}; a page shows the answers of {known}")


def names_of(model: Model, question: Question) -> tuple[str, ...]:
    """The names of the classes or values of an answer."""
    return question.classes if kind_of(model).in_words else labels.names_of(_checkpoint(model))


def check_question(model: Model, places: Collection[str], classes: Sequence[str]) -> None:
    """Raise UserError for places that the model does not have, no photograph, or classes with the same name."""
    kind = kind_of(model)
    known = kind.places(model)
    if unknown := [name for name in places if name not in known]:
        raise UserError(f"{unknown[0]} is not a photograph of this model; expected {', '.join(known)}")
    if not places:
        raise UserError("no photograph was given")
    if kind.in_words and not 2 <= len(set(classes)) == len(classes) <= MOST_CLASSES:
        raise UserError(f"name 2 to {MOST_CLASSES} different conditions; {len(classes)} were given")


def maps_of(model: Model, question: Question, name: str) -> dict[str, str]:
    """Saliency maps of the answer `name` for each photograph, as data URIs by title; {} without any."""
    kind, found = kind_of(model), {}
    for place, photograph in question.images.items():
        shown = smaller(photograph)
        try:
            texts, target = ((name,), "") if kind.in_words else ((), name)
            maps = saliency_maps(model, photograph, texts, target)
        except UserError:  # no projection of patches, or several images at once
            continue
        for title, one in maps.items():
            heat = one - one.min() if title.startswith("similarity") else one
            found[title if len(question.images) == 1 else f"{place}: {title}"] = data_uri(
                overlay(shown, heat, model.preprocessing)
            )
    return found


def smaller(photograph: np.ndarray, side: int = SHOWN) -> np.ndarray:
    """Shrink a photograph u8 [H W 3] so that its longer side has at most `side` pixels."""
    factor = side / max(photograph.shape[:2])
    if factor >= 1:
        return photograph
    height, width = (max(round(length * factor), 1) for length in photograph.shape[:2])
    return np.asarray(Image.fromarray(photograph).resize((width, height), Image.Resampling.LANCZOS))


def data_uri(picture: np.ndarray) -> str:
    """Encode a picture u8 [H W 3] as a JPEG data URI."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# ---------------------------------------------------------------------------------------- how each is asked


def _checkpoint(model: Model) -> Checkpoint:
    """The model as the functions of `launch.py predict` take it."""
    return Checkpoint(model.objective, model.params, model.preprocessing, model.tokenizer, extra=model.extra)


def _one(model: Model) -> tuple[str, ...]:
    del model
    return ("image",)


def _in_words(model: Model, question: Question) -> dict[str, np.ndarray]:
    (image,) = question.images.values()
    return {"image": model.zero_shot([image], question.classes, knowledge=question.knowledge)[0]}


def _labelled(model: Model, question: Question) -> dict[str, np.ndarray]:
    (image,) = question.images.values()
    days = question.days if isinstance(model.objective, Forecast) else None
    return {"image": labels.predicted(_checkpoint(model), image, model.row, days)}


def _eyes(model: Model, question: Question) -> dict[str, np.ndarray]:
    left, right, image = (question.images.get(name) for name in ("left", "right", "image"))
    found = eyes.predict_eyes(model, question.classes, left=left, right=right, image=image)
    return {
        eyes.TITLES[level]: found.probabilities[level]
        for level in reversed(eyes.TITLES)
        if level in found.probabilities
    }


def _visit(model: Model, question: Question) -> dict[str, np.ndarray]:
    return visits.predict_visit(model, question.images, question.classes).probabilities


def _places_of_a_visit(model: Model) -> tuple[str, ...]:
    return tuple(f"{name.lower()}_{side}" for name in model.objective.modalities for side in ("right", "left"))


def _report(model: Model, question: Question) -> dict[str, str]:
    (image,) = question.images.values()
    (found,) = reports.write_reports(_checkpoint(model), model.extra, [image])
    return {"report": found.text, "findings": ", ".join(found.findings) or "none named"}


KINDS = (
    Kind(zero_shot.OBJECTIVE, _one, True, _in_words),
    Kind((eyes.OBJECTIVE,), lambda model: ("right", "left", "image"), True, _eyes),
    Kind((visits.OBJECTIVE,), _places_of_a_visit, True, _visit),
    Kind((reports.OBJECTIVE,), _one, False, _report),
    Kind(labels.OBJECTIVE, _one, False, _labelled),
)


def holds_probabilities(model: Model) -> bool:
    """Whether the numbers of an answer are probabilities; otherwise they are values in their own units."""
    return not isinstance(model.objective, Regress)
