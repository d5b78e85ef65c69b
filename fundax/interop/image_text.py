"""Former names, until the configs use `interop.load` (fundax/interop/read.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop.read import is_run, read_objective
from fundax.objectives.clip import CLIP, MEAN, STD
from fundax.runtime.checkpoint import load_params
from fundax.runtime.workdir import read_json
from fundax.types import Params, UserError


@dataclass(frozen=True)
class ImageText:
    """An image-text model, its preprocessing, and the steps that fill it."""

    objective: Any
    facts: dict[str, Any]
    tokenizer: str = ""
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Any], Any], ...] = ()


def opened(model: str, checkpoint: int | str = "latest") -> ImageText:
    """The image-text model of a run."""
    if not model:
        raise UserError("--model is missing: a run, or an import of weights")
    run = Path(model)
    if not is_run(run):
        raise UserError(f"{model} is no run; bring other weights in by: launch.py import {model} --workdir RUN")
    if not (run / "tokenizer").is_dir():
        raise UserError(f"{model} came without a tokenizer, and classes are told by their names")
    objective = read_objective(run)
    if not {"image", "text"} <= set(objective.batch_spec(1)):
        raise UserError(f"{model} holds {type(objective).__name__}; expected a model of single images and texts")
    start = (lambda fresh: load_params(model, checkpoint)[0],), (lambda fresh: load_params(model, checkpoint)[1],)
    return ImageText(objective, read_json(run / "preprocessing.json"), str(run / "tokenizer"), *start)


def tiny(vocabulary: int, context: int) -> ImageText:
    """Fresh weights."""
    towers = ViT(32, 8, 32, 1, 2), TextTransformer(vocabulary, context, 32, 1, 2)
    facts = {"image_size": 32, "mean": MEAN, "std": STD, "resize": "squash", "interpolation": "bicubic"}
    return ImageText(CLIP(*towers, embed=32), facts)
