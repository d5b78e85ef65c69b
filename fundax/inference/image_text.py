"""A trained image-text model that classes can be described to, such as a CLIP, and how a run of it starts."""

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
    """An objective with `embed` (the width of its features), and what a Recipe needs to start from it.

    Attributes:
        objective: a model of single images and texts.
        preprocessing: image_size, mean, std, resize and interpolation.
        tokenizer: that of the model.
        init_from, init_extra: for the Recipe; () are fresh weights.
    """

    objective: Any
    preprocessing: Mapping[str, Any]
    tokenizer: Any
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Extra], Extra], ...] = ()


def image_text(init: str, checkpoint: int | str = "latest", *, smoke: bool = False) -> ImageText:
    """The image-text model of anything that interop.load opens; for a smoke test without `init` an untrained one.

    Raises UserError where `init` is empty, holds another kind of model or has no tokenizer.
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
