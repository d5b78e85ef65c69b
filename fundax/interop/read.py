"""Open a model: `load` reads a run, an exported folder or a file of weights in any format; `tokenizer` its tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipelines.language import tokenizers
from fundax.encoders import layers
from fundax.encoders.vit import SIZES
from fundax.interop import task_set
from fundax.interop.checkpoint import (
    Checkpoint,
    Format,
    check_preprocessing,
    reading,
    replace_preprocessing,
    say_once,
    stored_preprocessing,
)
from fundax.interop.folder import check_record
from fundax.interop.formats import format_of
from fundax.interop.pretrained import located
from fundax.interop.weights import State, existing, folder_of, read_state
from fundax.objectives.clip import CLIP, clip
from fundax.params import check_same, like
from fundax.runtime import serialize
from fundax.runtime.checkpoint import load_params, resolve
from fundax.runtime.remote import fetched
from fundax.runtime.shapes import Config, Preprocessing
from fundax.runtime.workdir import read_json, read_optional_json
from fundax.types import Extra, Params, UserError

ACTIVATIONS = {"quick_gelu": layers.quick_gelu, "gelu": layers.gelu_exact}


def load(
    path: str | Path,
    checkpoint: int | str = "",
    like: str = "",
    modality: str = "",
    *,
    activation: str = "",
    shown: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The model at `path`: a run, an exported folder, or a file of weights of another program.

    Args:
        path: named weights (interop.pretrained), a run of fundax or an import (its folder), a task set, which opens as its
            encoder, or TASK_SET/TASK, a folder of one of `all_formats()`, or one of its weights files (.safetensors, .pt, .pth,
            .bin, .npz); also at an address such as gs://bucket/run.
        checkpoint: which checkpoint of a run: "best", "latest" or a step; "" is the best one if the run selected one.
        like: the size ("H/14-378", a name of encoders.vit.SIZES) of a CLIP file without a configuration.
        modality: the modality of the images ("oct") whose mean and deviation an image encoder normalises by, where the
            file does not say; "" takes ImageNet's.
        activation: activation of a CLIP file without configuration: "quick_gelu" (OpenAI, DFN) or "gelu" (LAION).
        shown: mean, std and resize that replace those of the files.
    Returns:
        The model with fp32 parameters, which are bit-identical to those that were exported.
    Raises:
        UserError: nothing at `path`, an unknown format, a damaged or incomplete file; the message names the keys.
    """
    path, shown = located(fetched(path)), shown or {}
    if is_run(path):
        return read_run(path, checkpoint)
    if task_set.is_task(path):
        return task_set.read_task(path)
    if task_set.is_task_set(path):
        return task_set.read_encoder(path)
    state = read_state(path)
    check_record(path, state)
    found, folder = format_of(state, str(path)), folder_of(path)
    if like:
        model = _of_size(found, state, like, activation)
    elif found.configured and not has_configuration(found, path):
        sizes = f", or a size: {', '.join(SIZES)}" if found.read_as is not None and CLIP in found.holds else ""
        raise UserError(f"{path}: no {found.files[1]} in the folder of the weights{sizes}")
    else:
        with reading(found.title, path):
            model = found.read(path, state, modality)
    if model.assumed and not {"mean", "std", "resize"} <= set(shown):
        say_once(
            f"{path}: nothing there says how the model is shown photographs; assumed: {model.assumed} "
            "(import takes --mean, --std and --resize)"
        )
    model = replace_preprocessing(model, shown)
    source = {"name": path.resolve().name, "format": found.title}
    facts = stored_preprocessing(model.objective, model.preprocessing)
    check_preprocessing(facts, str(path))
    words = _tokenizer_in(folder, model.objective)
    return dataclasses.replace(model, preprocessing=facts, tokenizer=words, source=source, origin=found.title)


def is_run(path: str | Path) -> bool:
    """Whether `path` is the workdir of a run, or an imported model in the same format."""
    return (Path(path) / "checkpoints").is_dir()


def read_run(run: str | Path, checkpoint: int | str = "") -> Checkpoint:
    """The model of a run or an import. Raises UserError if a part is missing or damaged."""
    run = Path(run)
    if not is_run(run):
        raise UserError(f"{run} is not a run of fundax: it has no checkpoints")
    objective, step = read_objective(run), resolve(run, checkpoint)
    params, extra = load_params(run, step)
    extra = check_params(objective, params, extra, f"{run} step {step}")
    words = tokenizers.load(run / "tokenizer") if (run / "tokenizer").is_dir() else None
    digest = hashlib.sha256((run / "config.json").read_bytes()).hexdigest()
    source = {"name": run.resolve().name, "step": step, "config_sha256": digest}
    initial = read_optional_json(run / "config.json").get("origin", {})
    source |= {f"initial_{name}": value for name, value in initial.items()}
    return Checkpoint(objective, params, read_preprocessing(run, objective), words, source, extra, f"run step {step}")


def read_preprocessing(run: str | Path, objective: Any) -> dict[str, Any]:
    """Read a run's preprocessing.json; the objective supplies missing entries."""
    path = Path(run) / "preprocessing.json"
    facts = stored_preprocessing(objective, read_optional_json(path, Preprocessing))
    check_preprocessing(facts, str(path))
    return facts


def read_objective(run: str | Path) -> Any:
    """The objective that a run's config.json holds. Raises UserError if it holds none."""
    path = Path(run) / "config.json"
    described = read_json(path, Config).get("objective")
    if described is None:
        raise UserError(f"{path} holds no objective, so the run opens only with its config file")
    try:
        return serialize.from_json(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_params(objective: Any, params: Params, extra: Extra, where: str) -> Extra:
    """The extra state with the branches that hold no arrays, which are not saved; nothing is computed.

    Raises UserError if the objective cannot be built, or if the parameters or the extra state are not its own.
    """
    if not hasattr(objective, "batch_spec"):
        return extra
    try:
        batch = {name: jax.ShapeDtypeStruct(one.shape, one.dtype) for name, one in objective.batch_spec(2).items()}
        wanted = jax.eval_shape(objective.init, jax.random.key(0), batch)
    except Exception as error:  # a model of impossible sizes raises what JAX and Flax happen to raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{where}: its {type(objective).__name__} cannot be built ({line})") from error
    check_same(where, "params", params, like(params, wanted[0]))
    check_same(where, "extra", extra, wanted[1])
    return jax.tree.unflatten(jax.tree.structure(wanted[1]), jax.tree.leaves(extra))


def tokenizer(
    path: str | Path, default: tokenizers.Tokenizer | None = None, context: int | None = None
) -> tokenizers.Tokenizer:
    """The tokenizer of a checkpoint, whose ids its text encoder needs.

    Args:
        path: a run, an exported folder, a file of weights with a tokenizer in its folder, a tokenizer's own folder, BERT's
            vocab.txt (or its folder), or OpenAI's merges file; "" takes `default`.
        default: the tokenizer of a model that starts from nothing.
        context: length of a text in tokens, where it is not the stored one (BERT's: 512).
    Raises:
        UserError: `path` does not hold a tokenizer.
    """
    if not str(path) and default is not None:
        return default
    path = existing(path)
    if path.is_file() and path.suffix in (".txt", ".gz"):
        if path.name.startswith("vocab"):
            return tokenizers.wordpiece(path, context or 512)
        return tokenizers.clip_bpe(path, context or 77)
    for folder in (path / "tokenizer", folder_of(path)):
        if (folder / "tokenizer_config.json").is_file():
            return tokenizers.load(folder, context)
        if (folder / "vocab.txt").is_file():
            return tokenizers.wordpiece(folder, context or 512)
    raise UserError(f"{path} holds no tokenizer; give --tokenizer with the folder or merges file its ids come from")


def has_configuration(found: Format, path: Path) -> bool:
    """Whether the folder of the weights at `path` has the format's configuration."""
    return len(found.files) > 1 and (folder_of(path) / found.files[1]).is_file()


def _of_size(found: Format, state: State, like: str, activation: str) -> Checkpoint:
    """The weights of a known size, whose tensors do not show which activation they were trained with."""
    if found.read_as is None or CLIP not in found.holds:
        raise UserError(f"{found.title} needs no size: --like is for CLIP files without configuration")
    clip(like)  # an unknown size is named first
    if activation not in ACTIVATIONS:
        raise UserError(
            f"the weights do not show the activation of their MLPs: give --activation {' or '.join(ACTIVATIONS)} "
            "(quick_gelu: OpenAI's, DFN's and MM-Fundus-CLIP's; gelu: LAION's and most others)"
        )
    objective = clip(like, activation=ACTIVATIONS[activation])
    assumed = "CLIP's mean and deviation, squashed to a square as DFN's"
    return Checkpoint(objective, found.read_as(objective, state, like)[0], {}, assumed=assumed)


def _tokenizer_in(folder: Path, objective: Any) -> tokenizers.Tokenizer | None:
    """The tokenizer in the folder of an image-text model's weights, or None."""
    text = getattr(objective, "text", None)
    if text is None:
        return None
    context = getattr(objective, "context", text.context)
    if (folder / "tokenizer_config.json").is_file():
        return tokenizers.load(folder, context)
    if (folder / "vocab.txt").is_file():  # BERT's, in the folder of a RET-CLIP file
        return tokenizers.wordpiece(folder, context)
    return None
