"""`Checkpoint`, a model read from disk, and `Format`, a file format of another program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.geometry import INTERPOLATIONS, RESIZE_MODES
from data_pipelines.records import DataError
from fundax.encoders.backbone import preprocessing
from fundax.encoders.clip_text import TextTransformer
from fundax.interop.weights import State
from fundax.objectives.clip import CLIP
from fundax.types import Extra, Params, UserError

# what reading values of other types and sizes than those of a configuration happens to raise
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
LARGEST_SIDE = 2**14  # pixels of the images that a model takes
_log = logging.getLogger("fundax")


@dataclass(frozen=True)
class Checkpoint:
    """A model with everything that is needed to use it.

    Attributes:
        objective: the frozen dataclass of `fundax.objectives` (or `encoders.Encoder`) that computes with the parameters.
        params: nested fp32 parameters, layers stacked or not.
        preprocessing: image_size, mean, std, resize ("squash", "shortest", "longest" or "canvas"), resize_to where
            the centre is then cut out, interpolation; also classes, names or findings where the model has them.
        tokenizer: texts to ids i32 [N L], with `save(folder)`; None where the checkpoint has none.
        source: where the parameters came from, for the record (name, step, config_sha256, format).
        extra: arrays that are not trained by gradients: batch statistics, EMA teacher, centers.
        origin: the source in words, such as "run step 500" or "open_clip".
        assumed: the preprocessing in words, where nothing that was read says it; "" where something does.
    """

    objective: Any
    params: Params
    preprocessing: Mapping[str, Any]
    tokenizer: Any = None
    source: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra = field(default_factory=dict)
    origin: str = ""
    assumed: str = ""


def whole(checkpoint: Checkpoint) -> Checkpoint:
    """The `select` of a format that writes all of a model."""
    return checkpoint


def always(objective: Any) -> bool:
    """The `fits` of a format that holds every model of its classes."""
    del objective
    return True


def never_compared(path: str | Path, checkpoint: Checkpoint) -> float | None:
    """The `difference` of a format whose program is not a package that could be installed: golden tests hold it."""
    del path, checkpoint
    return None


@dataclass(frozen=True)
class Format:
    """A file format of another program, in both directions.

    Attributes:
        name: the NAME of `launch.py export --to NAME`; formats of one program that hold different models share a name.
        title: the format's name in messages.
        holds: classes of objectives that can be exported; () for a format that only gives initial weights.
        files: the weights' file name in a folder, then the configuration's where there is one.
        detect: whether a flat state dict has this format's keys.
        read: (path of the file or folder, its state dict, modality of the images) to the model.
        write: (model, folder, overwrite): write the folder; None where a format is only read.
        usage: Python code that opens the folder in the other program, for the model card.
        configured: whether shapes alone do not say which model it is, so that the configuration is needed.
        read_as: (objective, state dict, source) to the parameters and the extra state of a given objective, with position
            tables as long as they are stored: for files without configuration. None where `read` needs none.
        fills: classes of objectives that `read_as` gives parameters of, where they are not those that it holds.
        select: the part of a model that is written, such as the teacher's encoder of a pretraining.
        objective_of: maps a folder to the model that its configuration describes, without reading weights, or to None for
            a folder of another format. None if the configuration does not describe the model.
        narrow: whether the other program reads its weights in float16 and bfloat16, too.
        shards: whether it reads weights that are split into several files with an index.
        fits: whether it holds a model of these classes, where several formats of one program hold them.
        order: formats are tried in this order; one whose keys are among another's has the larger number.
        difference: largest difference of features between the other program and ours; None where it is not installed.
    """

    name: str
    title: str
    holds: tuple[type, ...]
    files: tuple[str, ...]
    detect: Callable[[State], bool]
    read: Callable[[Path, State, str], Checkpoint]
    write: Callable[[Checkpoint, str | Path, bool], None] | None
    usage: str = ""
    configured: bool = False
    read_as: Callable[[Any, State, str], tuple[Params, Extra]] | None = None
    fills: tuple[type, ...] = ()
    select: Callable[[Checkpoint], Checkpoint] = whole
    objective_of: Callable[[Path], Any] | None = None
    fits: Callable[[Any], bool] = always
    narrow: bool = False
    shards: bool = False
    order: int = 0
    difference: Callable[[str | Path, Checkpoint], float | None] = never_compared


def preprocessing_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's preprocessing with its defaults filled in. Raises UserError if it contradicts the model."""
    model = preprocessing(checkpoint.objective)
    found = stored_preprocessing(checkpoint.objective, checkpoint.preprocessing)
    if model and int(found["image_size"]) != model["image_size"]:
        size = model["image_size"]
        raise UserError(f"preprocessing.image_size is {found['image_size']}, but the model takes {size} pixels")
    for name in ("mean", "std") if model else ():
        one, other = (
            np.atleast_2d(np.asarray(facts[name], float)) for facts in (found, model)
        )  # a row, or one by modality
        if not np.array_equal(one, other):
            raise UserError(f"preprocessing.{name} is {found[name]}, but the model has {model[name]}")
    return found


def stored_preprocessing(objective: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing from preprocessing.json or another program's file; the objective supplies missing entries.

    A model that has one rule for resizing alone is resized by it: runs of FLAIR and KeepFIT made before the rule had a
    name hold another one.
    """
    own = preprocessing(objective)
    fixed = ("resize", "interpolation") if hasattr(getattr(objective, "base", objective), "resize") else ()
    return own | dict(stored) | {name: own[name] for name in fixed}


def check_preprocessing(facts: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming a value of a preprocessing that no image can be prepared with."""
    size, longest = facts.get("image_size", 1), facts.get("resize_to") or 1
    if not 1 <= size <= LARGEST_SIDE or not 1 <= longest <= LARGEST_SIDE:
        raise UserError(f"{where}: image_size {size}, resize_to {longest}; expected 1 to {LARGEST_SIDE} pixels")
    for name, known in (("resize", RESIZE_MODES), ("interpolation", tuple(INTERPOLATIONS))):
        if facts.get(name, known[0]) not in known:
            raise UserError(f"{where}: {name} is {facts[name]!r}; expected {', '.join(known)}")
    for name in ("mean", "std"):
        values = np.asarray(facts.get(name, (1, 1, 1)), np.float64)
        if values.shape[-1:] != (3,) or not np.isfinite(values).all() or (name == "std" and not values.all()):
            raise UserError(f"{where}: {name} is {facts[name]}; expected three numbers, of red, green and blue")


@contextlib.contextmanager
def reading(title: str, path: str | Path) -> Iterator[None]:
    """Raise UserError for a configuration of a format whose values are of other types and sizes than they should be."""
    try:
        yield
    except (UserError, DataError):
        raise
    except _MALFORMED as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: its configuration is not that of {title} ({type(error).__name__}: {line})") from error


OPENAI = "CLIP's mean and deviation, the shortest edge and a centre crop"
IMAGENET = "ImageNet's mean and deviation, squashed to a square"


def replace_preprocessing(checkpoint: Checkpoint, shown: Mapping[str, Any]) -> Checkpoint:
    """Replace mean, std or resize of a model. Raises UserError for an unknown resize or another number of channels."""
    if not shown:
        return checkpoint
    if shown.get("resize", "squash") not in RESIZE_MODES:
        raise UserError(f"resize is {shown['resize']!r}; expected {', '.join(RESIZE_MODES)}")
    moments = {name: tuple(map(float, shown[name])) for name in ("mean", "std") if name in shown}
    if wrong := [name for name, value in moments.items() if len(value) != 3]:
        raise UserError(f"{wrong[0]} is {shown[wrong[0]]}; expected three numbers, of red, green and blue")
    objective = checkpoint.objective
    if moments:
        rows = isinstance(objective.mean[0], tuple)
        objective = dataclasses.replace(objective, **{k: (v,) if rows else v for k, v in moments.items()})
    facts = dict(checkpoint.preprocessing) | {name: shown[name] for name in shown}
    dropped = ("resize_to", "round_down") if "resize" in shown else ()
    return dataclasses.replace(
        checkpoint, objective=objective, preprocessing={k: v for k, v in facts.items() if k not in dropped}
    )


@functools.cache
def say_once(message: str) -> None:
    """Log a warning once, because a model is often read more than once."""
    _log.warning("%s", message)


def clip_text(objective: CLIP, title: str) -> TextTransformer:
    """The text transformer of a CLIP. Raises UserError, naming the format `title`, for one that reads texts with a BERT."""
    if not isinstance(objective.text, TextTransformer):
        raise UserError(f"{title} has CLIP's text transformer; this model has a {type(objective.text).__name__}")
    return objective.text


def probe(checkpoint: Checkpoint, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Noise to compare two programs with: normalised images f32 [B h w 3] and texts i32 [B L]."""
    objective, rng = checkpoint.objective, np.random.default_rng(0)
    size, text = objective.image.image_size, objective.text
    ends = getattr(text, "eot_id", None)
    end = ends if ends is not None else getattr(checkpoint.tokenizer, "end", text.vocab - 1)
    image = rng.standard_normal((count, size, size, 3), np.float32)
    ids = rng.integers(1, max(end, 2), (count, text.context), dtype=np.int32)
    for row, length in zip(ids, rng.integers(1, text.context, count), strict=True):
        row[length:] = 0
        row[length - 1] = end
    return image, ids


def largest_difference(
    checkpoint: Checkpoint, image: np.ndarray, text: np.ndarray, image_features: np.ndarray, text_features: np.ndarray
) -> float:
    """The largest absolute difference of unit features [B E] between another program's and ours in fp32."""
    objective = checkpoint.objective
    towers = {name: dataclasses.replace(getattr(objective, name), dtype="float32") for name in ("image", "text")}
    objective = dataclasses.replace(objective, **towers)
    ours = jax.jit(objective.forward)(checkpoint.params, {}, {"image": image, "text": text})
    theirs = {"image_features": image_features, "text_features": text_features}
    return max(float(np.abs(np.asarray(ours[name]) - value).max()) for name, value in theirs.items())
