"""The format of FLAIR and KeepFIT; RetiXfer's checkpoints with a ResNet are read too.

Key names are those of the public repositories jusiro/FLAIR, lxirich/MM-Retinal and lxirich/RetiXfer."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from fundax.encoders.bert import BERT
from fundax.encoders.resnet import ResNet
from fundax.interop import bert, folder, keymap, resnet
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.convolutional import STATISTICS, Norms, read_statistics, write_statistics
from fundax.interop.keymap import Row
from fundax.interop.weights import State, write_torch
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.keepfit import KeepFIT
from fundax.params import flatten, unstack_blocks
from fundax.runtime import serialize
from fundax.types import Extra, Params, UserError

NAME = "FLAIR"
WEIGHTS = "flair.pth"
USAGE = """
import torch

state = torch.load("FOLDER/flair.pth", weights_only=True)
model.load_state_dict(state)  # FLAIR's or KeepFIT's own class, with the same sizes
"""


VISION, TEXT = "vision_model", "text_model"
IMAGES = f"{VISION}.model."  # before the keys of the ResNet
IGNORED = bert.UNUSED
_log = logging.getLogger("fundax")
_RETIXFER = {f"{tower}.projection_head.": f"{tower}.projection_head_{word}."
             for tower, word in ((VISION, "vision"), (TEXT, "text"))}  # fmt: skip
_ATTENTION = re.compile(r"(attention|atte_TD2KD|atte_KD2TD)\.W_[qkvo]\.weight")


def detect(state: State) -> bool:
    """Whether these are the keys of a FLAIR or KeepFIT model."""
    return f"{VISION}.model.conv1.weight" in state and any(key.startswith(f"{TEXT}.model.") for key in state)


def to_fundax(
    state: State, *, image_size: int = 512, text_heads: int | None = None, **fields: Any
) -> tuple[FLAIR, Params, Extra]:
    """The objective, its parameters (fp32) and its batch statistics from a state dict of FLAIR, KeepFIT or RetiXfer.

    Texts are pooled over all positions, padding included, as those models were trained. KeepFIT's attention and
    fusion, which only training uses, are left out: `read_attention` gives them.

    Args:
        state: flat state dict (`weights.read_state`).
        image_size: side of the images; the encoder takes any.
        text_heads: number of attention heads; None takes width / 64.
        fields: further fields of FLAIR.
    Raises:
        UserError: missing or unknown keys, by name.
    """
    state = canonical(state)
    objective = _objective(state, image_size, text_heads, fields)
    return objective, *read(objective, state, NAME)


def from_fundax(objective: FLAIR, params: Params, extra: Extra) -> State:
    """FLAIR's state dict: fp32, counters int64. KeepFIT loads it strictly once `attention_state` is added.

    BERT's pooler, which those programs have and never use, is written as zeros.
    Raises UserError for parameters it has no place for.
    """
    _check(objective)
    state = keymap.write(table(objective), params, NAME) | write_statistics(norms_of(objective), extra, NAME)
    width = objective.text.width
    pooler = f"{TEXT}.model.pooler.dense"
    return state | {f"{pooler}.weight": np.zeros((width, width), np.float32),
                    f"{pooler}.bias": np.zeros((width,), np.float32)}  # fmt: skip


def write_checkpoint(objective: FLAIR, params: Params, extra: Extra, path: str | Path) -> None:
    """Write a .pth of the bare state dict, as both programs save and load it."""
    write_torch(from_fundax(objective, params, extra), path)


def norms_of(objective: Any) -> Norms:
    """Our path and their key of every batch norm of the image encoder."""
    return resnet.norms("image", IMAGES, objective.image)


def read(objective: FLAIR, state: State, source: str) -> tuple[Params, Extra]:
    """Parameters and batch statistics for `objective`. Raises UserError naming keys that do not fit."""
    _check(objective)
    state = canonical(state)
    shapes = keymap.shapes_of(objective)
    return _read_params(objective, state, shapes, source), read_statistics(norms_of(objective), state, shapes, source)


def _read_params(objective: FLAIR, state: State, shapes: keymap.Shapes, source: str) -> Params:
    weights = {k: v for k, v in state.items() if not k.endswith(STATISTICS) and not _ATTENTION.fullmatch(k)}
    return keymap.read(table(objective), weights, shapes, source, IGNORED)


def table(objective: FLAIR) -> list[Row]:
    """The table of every parameter."""
    rows = [Row("log_scale", ("logit_scale",), keymap.SAME)]
    rows += resnet.rows("image", IMAGES, cast(ResNet, objective.image))
    rows += bert.bert_rows("text", f"{TEXT}.model", objective.text.depth)
    if objective.project:
        rows += keymap.linear("project/image", f"{VISION}.projection_head_vision.projection", bias=False)
        rows += keymap.linear("project/text", f"{TEXT}.projection_head_text.projection", bias=False)
    return rows


# KeepFIT's attention: `reference` is the published model's, the others belong to its fusion ablations.
ATTENTION = {"reference": "attention", "fuse_public": "atte_TD2KD", "fuse_elite": "atte_KD2TD"}


def attention_rows(name: str) -> list[Row]:
    """Rows of one of ATTENTION: kernels [E E] of query, key, value and out, no bias."""
    key = ATTENTION[name]
    return [row for ours in ("query", "key", "value", "out")
            for row in keymap.linear(f"{name}/{ours}", f"{key}.W_{ours[0]}", bias=False)]  # fmt: skip


def read_attention(state: State) -> Params:
    """The attention modules that a KeepFIT state dict has, {name: {query {kernel}, ...}}; {} for FLAIR's."""
    found = {}
    for name, key in ATTENTION.items():
        if f"{key}.W_q.weight" in state:
            rows = attention_rows(name)
            weights = {k: v for k, v in state.items() if k.startswith(f"{key}.")}
            shape = weights[f"{key}.W_q.weight"].shape
            found |= keymap.read(rows, weights, {row.path: shape for row in rows}, f"KeepFIT's {key}")
    return found


def attention_state(params: Params) -> State:
    """KeepFIT's keys of the attention modules in a tree of parameters: the inverse of `read_attention`."""
    present = [name for name in ATTENTION if name in params]
    rows = [row for name in present for row in attention_rows(name)]
    return keymap.write(rows, {name: params[name] for name in present}, "KeepFIT")


def canonical(state: State) -> State:
    """Rename the tensors of RetiXfer to FLAIR's names."""

    def renamed(key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in _RETIXFER.items() if key.startswith(old)), key)

    return {renamed(key): value for key, value in state.items()}


def _check(objective: Any) -> None:
    if not isinstance(objective, FLAIR) or not isinstance(objective.image, ResNet):
        raise UserError(f"{NAME} checkpoints hold a FLAIR with a ResNet; got {type(objective).__name__}")


def _objective(
    state: Mapping[str, np.ndarray], image_size: int, text_heads: int | None, fields: Mapping[str, Any]
) -> FLAIR:
    """The objective that the shapes of a state dict show, with what they do not show from the arguments."""
    embeddings, first = f"{TEXT}.model.embeddings", f"{TEXT}.model.encoder.layer.0.intermediate.dense.weight"
    tables = [f"{embeddings}.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    needed = [f"{VISION}.model.conv1.weight", f"{VISION}.model.layer1.0.conv1.weight", *tables, first]
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{NAME}: the checkpoint lacks {', '.join(missing)}")
    vocab, width = state[tables[0]].shape
    positions, types = len(state[tables[1]]), len(state[tables[2]])
    text = BERT(vocab, positions, width, keymap.count_modules(state, rf"{TEXT}\.model\.encoder\.layer\.(\d+)\."),
                text_heads or max(width // 64, 1), len(state[first]), types,
                pool="unmasked_mean", pool_layers=POOL_LAYERS)  # fmt: skip
    image = resnet.tower_of(state, IMAGES, image_size)
    head = state.get(f"{VISION}.projection_head_vision.projection.weight")
    given = {"project": head is not None, "context": min(77, positions)}
    if head is not None:
        given["embed"] = len(head)
    return FLAIR(image, text, **given | dict(fields))


# ------------------------------------------------------------------------------------------------------- folders


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False, weights: str = WEIGHTS) -> None:
    """Write a folder with flair.pth (keepfit.pth), the state dict that FLAIR and KeepFIT save and load.

    Parts of a KeepFIT that only training uses and that the original program does not have (the decoder of reports, a
    reference by cosine) are left out and listed in the record. Raises UserError for another model, and for a folder that
    is not empty.
    """
    base = getattr(model.objective, "base", model.objective)
    _check(base)
    if (base.mean, base.std) != (FLAIR.mean, FLAIR.std):
        raise UserError(
            f"{NAME} divides images by 255 and nothing more; this model has mean {base.mean}, std {base.std}"
        )
    if base.text.pool != "unmasked_mean":
        _log.warning("%s's program averages padding into a text's features; this model was trained without", NAME)
    shared, attention, left_out = parts_of(model.params)
    state = from_fundax(base, shared, model.extra) | attention_state(attention)
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch(state, temporary / weights)
        folder.write_record(temporary, state, model, left_out)
        folder.write_card(temporary, model, "fundax", USAGE.replace(WEIGHTS, weights))


def parts_of(params: Params) -> tuple[Params, Params, dict[str, Any]]:
    """FLAIR's parameters, KeepFIT's attention modules, and path -> shape of what the format has no place for."""
    shared = {name: tree for name, tree in params.items() if name in ("image", "text", "project", "log_scale")}
    attention = {name: params[name] for name in ATTENTION if "query" in params.get(name, {})}
    others = {name: tree for name, tree in params.items() if name not in (*shared, *attention)}
    shapes = {path: list(np.shape(leaf)) for path, leaf in flatten(unstack_blocks(others)).items()}
    return shared, attention, shapes


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a state dict. A folder that fundax wrote has a record, which says what shapes do not show.

    Without it a KeepFIT file is read as the FLAIR that it holds. Raises UserError naming keys that do not fit.
    """
    record = folder.read_record(path)
    if not record:
        objective, params, extra = to_fundax(state)
        return Checkpoint(objective, params, {}, extra=extra)
    objective = serialize.from_json(record["objective"])
    params, extra = read(getattr(objective, "base", objective), state, str(path))
    left_out = {key.split("/")[0] for key in record.get("left_out", {})}
    without = {"caption": "caption", "reference": "reference"}
    objective = replace(objective, **{field: None for part, field in without.items() if part in left_out})
    return Checkpoint(objective, params | read_attention(state), record["preprocessing"], extra=extra)


def read_as(objective: Any, state: State, source: str) -> tuple[Params, Extra]:
    """Parameters and batch statistics of a FLAIR or KeepFIT of the same sizes; KeepFIT's attention where there is one."""
    base, state = getattr(objective, "base", objective), canonical(state)
    _check(base)
    shapes = keymap.stored_positions(table(base), state, keymap.shapes_of(base))
    params = _read_params(base, state, shapes, source) | read_attention(state)
    return params, read_statistics(norms_of(base), state, shapes, source)


FORMAT = Format(
    "flair", NAME, (FLAIR, KeepFIT), (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE, read_as=read_as, order=4,
)  # fmt: skip
KEEPFIT = Format(  # the same keys; --to flair also writes a KeepFIT
    "keepfit", "KeepFIT", (KeepFIT,), ("keepfit.pth", folder.RECORD), detect, read_model,
    partial(write_folder, weights="keepfit.pth"), USAGE.replace(WEIGHTS, "keepfit.pth"), read_as=read_as, order=5,
)  # fmt: skip
