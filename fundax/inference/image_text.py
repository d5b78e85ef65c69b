"""Image-text models, such as CLIP, as the starting point of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.language import tokenizers
from fundax.interop.read import load
from fundax.objectives.clip import MEAN, STD, clip
from fundax.types import Extra, Params, UserError


@dataclass(frozen=True)
class ImageText:
    """An image-text model, and what a Recipe needs to start from it.

    Attributes:
        objective: a model of single images and texts; its `embed` is the width of the features.
        preprocessing: image_size, mean, std, resize and interpolation.
        tokenizer: the tokenizer of the model.
        init_from, init_extra: fields of the Recipe that set the initial weights; () for random initialisation.
    """

    objective: Any
    preprocessing: Mapping[str, Any]
    tokenizer: Any
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Extra], Extra], ...] = ()


def image_text(init: str, checkpoint: int | str = "", *, smoke: bool = False) -> ImageText:
    """Load an image-text model from any path that interop.load supports.

    smoke: without `init`, create a tiny untrained model instead (smoke test). Raises UserError if `init` is empty, holds
    another kind of model or has no tokenizer.
    """
    if not init and smoke:
        words = tokenizers.bundled(48)
        objective = clip("smoke", vocab=words.vocab_size, context=words.context)
        facts = {"image_size": 32, "mean": MEAN, "std": STD, "resize": "squash", "interpolation": "bicubic"}
        return ImageText(objective, facts, words)
    if not init:
        raise UserError("--init is missing: a run, an exported folder or a weights file of an image-text model")
    model = load(init, checkpoint)
    if not {"image", "text"} <= set(model.objective.batch_spec(1)):
        kind = type(model.objective).__name__
        raise UserError(f"{init} holds {kind}; expected a model of single images and texts, such as CLIP")
    if model.tokenizer is None:
        raise UserError(f"{init} has no tokenizer, which is needed to describe the classes")
    start = (lambda fresh: model.params,), (lambda fresh: model.extra,)
    return ImageText(model.objective, dict(model.preprocessing), model.tokenizer, *start)
