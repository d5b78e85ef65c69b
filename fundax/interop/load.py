"""Start from a checkpoint of another program or run: `init_from` finds out which, and fits it to the model at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fundax.encoders.bert import BERT
from fundax.encoders.positions import resize_positions
from fundax.interop import huggingface, keymap, open_clip, ret_clip
from fundax.interop.bert import read_tower
from fundax.interop.bundle import read_json
from fundax.interop.keymap import Row
from fundax.interop.weights import State, find_file, read_state
from fundax.params import flatten, like, unstack_blocks
from fundax.runtime import serialize
from fundax.runtime.checkpoint import load_params
from fundax.types import Objective, Params, UserError

FAMILIES = (
    ret_clip,
    open_clip,
    huggingface,
)  # each: NAME, CONFIG, IGNORED, detect, table, objective_of, to_fundax, folders


# Fields that change what the same tensors compute, by tower. Shapes do not show them, so the configuration must.
_MEANING = {
    "image": ("heads", "activation", "epsilon", "pool", "norm_after_pool"),
    "text": ("heads", "activation", "epsilon", "pool", "causal"),
}


_log = logging.getLogger("fundax")


def init_from(path: str | Path, objective: Objective) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: every parameter of `objective` from a checkpoint.

    Args:
        path: an open_clip or Hugging Face CLIP folder or file (.safetensors, .pt, .bin, .npz), or a run of fundax
            ("runs/x", its latest step).
        objective: the model to fill; its image size and text length may differ from the checkpoint's: image
            positions are resized by open_clip's rule, text positions are cut (a shorter text never used the rest).
    Raises (when the result is called):
        UserError: keys that are missing or unknown, by name; another shape, by key; a configuration that computes
            something else (QuickGELU for GELU, heads, pooling).
    """

    def fill(params: Params) -> Params:
        shapes = keymap.shapes_of(objective)
        if is_run(path):
            rows, state, ignored = own_rows(shapes), own_state(load_params(path)[0]), ()
            theirs = read_objective(path)
        else:
            state = read_state(path)
            family = family_of(state, str(path))
            rows, ignored = family.table(objective, state), family.IGNORED
            theirs = _configured(family, path)
        _same_meaning(theirs, objective, str(path))
        fitted = fit_positions(rows, state, shapes)
        return like(params, keymap.read(rows, fitted, shapes, str(path), ignored))

    return fill


def text_from(path: str | Path, tower: BERT) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: the text tower alone, from a run that has one or from a file or folder with a BERT.

    That is how stage 1 of KeepFIT starts from its stage 0. Raises UserError (when called) where it does not fit, by key.
    """
    if is_run(path):
        return parts_from(path, ("text",))

    def fill(params: Params) -> Params:
        text = read_tower(read_state(path), tower, str(path))
        return {**params, "text": like(params["text"], text)}

    return fill


def parts_from(run: str | Path, names: Sequence[str]) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: the named top parts ("image", "text", "project", ...) of a run of fundax.

    Raises UserError (when called) where the run lacks one or it is of another shape, by path.
    """

    def fill(params: Params) -> Params:
        stored = load_params(run)[0]
        if missing := [name for name in names if name not in stored]:
            raise UserError(f"{run}: the run has no {', '.join(missing)}; it has {', '.join(sorted(stored))}")
        found = unstack_blocks({name: stored[name] for name in names})
        ours, theirs = flatten(unstack_blocks({name: params[name] for name in names})), flatten(found)
        wrong = sorted(
            k for k in ours.keys() | theirs if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape
        )
        if wrong:
            raise UserError(f"{run}: does not fit the model: {', '.join(wrong[:5])}")
        return params | {name: like(params[name], found[name]) for name in names}

    return fill


def is_run(path: str | Path) -> bool:
    """Whether `path` is a workdir of fundax, or an imported model in the same form."""
    return (Path(path) / "checkpoints").is_dir()


def read_objective(run: str | Path) -> Any:
    """The objective that a run's config.json holds. Raises UserError where it holds none."""
    path = Path(run) / "config.json"
    described = read_json(path).get("objective")
    if described is None:
        raise UserError(f"{path} holds no objective, so the run opens only with its config file")
    return serialize.from_json(described)


def family_of(state: State, source: str) -> ModuleType:
    """The file of interop/ that knows these keys. Raises UserError naming a few of them if none does."""
    for family in FAMILIES:
        if family.detect(state):
            return family
    known = " or ".join(family.NAME for family in FAMILIES)
    raise UserError(f"{source}: the keys are not those of {known}; it has {', '.join(sorted(state)[:5])}, ...")


def config_beside(family: ModuleType, path: str | Path) -> dict[str, Any] | None:
    """The model's configuration in the folder of its weights, or None."""
    config = find_file(path).parent / family.CONFIG
    return read_json(config) if config.is_file() else None


def fit_positions(rows: list[Row], state: State, shapes: keymap.Shapes) -> State:
    """The same tensors with the position tables moved to the model's image size and text length.

    Source: open_clip's resize_pos_embed (bicubic, antialiased) for images.
    """
    keys = {row.path: row.keys[0] for row in rows if row.path.endswith("position")}
    fitted = dict(state)
    for path, key in keys.items():
        if key not in state or state[key].ndim != 2:
            continue
        count = shapes[path][0]
        if path.startswith("text"):
            fitted[key] = state[key][:count]
        else:
            # with a class token, one row more than a square
            class_row = "image/class_token" in shapes
            fitted[key] = resize_positions(np.asarray(state[key], np.float32), count, class_row=class_row)
    return fitted


def own_rows(shapes: keymap.Shapes) -> list[Row]:
    """The table of a checkpoint of our own: the paths are the keys."""
    return [Row(path, (path,), keymap.SAME) for path in shapes]


def own_state(params: Params) -> State:
    """Parameters as a state dict whose keys are their paths, layers unstacked."""
    return {path: np.asarray(leaf) for path, leaf in flatten(unstack_blocks(params)).items()}


def _configured(family: ModuleType, path: str | Path) -> Any:
    config = config_beside(family, path)
    if config is None:
        _log.warning(
            "%s: no %s beside the weights, so activation, heads and pooling are taken to be the model's own", path, family.CONFIG
        )  # fmt: skip
        return None
    return family.objective_of(config)


def _same_meaning(theirs: Any, ours: Any, source: str) -> None:
    """UserError if equal tensors would compute something else here than where they come from."""
    if theirs is None:
        return
    for tower, names in _MEANING.items():
        for name in names:
            found, expected = (_plain(getattr(getattr(x, tower), name)) for x in (theirs, ours))
            if found != expected:
                raise UserError(f"{source}: the checkpoint has {tower}.{name} = {found}, the model {expected}")


def _plain(value: Any) -> Any:
    """A function by its name; both ways to find the end of a text as one."""
    value = getattr(value, "__name__", value)
    return "argmax" if value == "eot" else value
