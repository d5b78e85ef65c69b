"""FLAIR's and KeepFIT's checkpoints, both ways; RetiXfer's ResNet ones are read too.

Key names are those of the public repositories jusiro/FLAIR, lxirich/MM-Retinal and lxirich/RetiXfer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from fundax.encoders.bert import BERT
from fundax.encoders.resnet import ResNet
from fundax.interop import bert, keymap
from fundax.interop.keymap import Row
from fundax.interop.weights import State, read_state
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.params import flatten, stack_blocks, unflatten, unstack_blocks
from fundax.types import Extra, Params, UserError

NAME = "FLAIR"


VISION, TEXT = "vision_model", "text_model"


IGNORED = bert._POSITION_IDS


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
        state: as `fundax.weights.read_state` gives it.
        image_size: side of the images; the tower takes any.
        text_heads: where they are not width / 64.
        fields: of FLAIR.
    Raises:
        UserError: missing or unknown keys, by name.
    """
    state = canonical(state)
    objective = _objective(state, image_size, text_heads, fields)
    return objective, *read(objective, state, NAME)


def from_fundax(objective: FLAIR, params: Params, extra: Extra) -> State:
    """FLAIR's state dict: fp32, counters int64. KeepFIT loads it strictly once `attention_state` is added.

    BERT's pooler, which those programs have and do not use, is written as zeros.
    Raises UserError for parameters it has no place for.
    """
    _check(objective)
    flat = flatten(extra)
    moments = unflatten({path: leaf for path, leaf in flat.items() if not path.endswith("/count")})
    state = keymap.write(table(objective), params, NAME) | keymap.write(_moments(objective), moments, NAME)
    for norm, key in _norms(objective.image):
        state[f"{key}.num_batches_tracked"] = np.asarray(flat[f"image/{norm}/count"]).astype(np.int64)
    width = objective.text.width
    pooler = f"{TEXT}.model.pooler.dense"
    return state | {f"{pooler}.weight": np.zeros((width, width), np.float32),
                    f"{pooler}.bias": np.zeros((width,), np.float32)}  # fmt: skip


def write_checkpoint(objective: FLAIR, params: Params, extra: Extra, path: str | Path) -> None:
    """A .pth of the bare state dict, as both programs save and load it; needs torch."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: writing a .pth file needs torch: pip install 'fundax[torch]'") from error
    state = from_fundax(objective, params, extra)
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)


def read(objective: FLAIR, state: State, source: str) -> tuple[Params, Extra]:
    """Parameters and batch statistics for `objective`. Raises UserError naming keys that do not fit."""
    _check(objective)
    state = canonical(state)
    shapes = keymap.shapes_of(objective)
    weights = {k: v for k, v in state.items() if not k.endswith(_STATISTICS) and not _ATTENTION.fullmatch(k)}
    params = keymap.read(table(objective), weights, shapes, source, IGNORED)
    return params, _read_statistics(objective, state, shapes, source)


def table(objective: FLAIR) -> list[Row]:
    """Every parameter of ours with the peer's key and layout."""
    rows = [Row("log_scale", ("logit_scale",), keymap.SAME)]
    rows += resnet_rows("image", f"{VISION}.model", cast(ResNet, objective.image))
    rows += bert.bert_rows("text", f"{TEXT}.model", objective.text.depth)
    if objective.project:
        rows += keymap.linear("project/image", f"{VISION}.projection_head_vision.projection", bias=False)
        rows += keymap.linear("project/text", f"{TEXT}.projection_head_text.projection", bias=False)
    return rows


def resnet_rows(ours: str, theirs: str, tower: ResNet) -> list[Row]:
    """Rows of a torchvision ResNet of bottlenecks, without its last linear layer."""
    rows = [Row(f"{ours}/conv1/kernel", (f"{theirs}.conv1.weight",), keymap.CONV)]
    for path, key in _units(tower):
        for i in (1, 2, 3):
            rows.append(Row(f"{ours}/{path}/conv{i}/kernel", (f"{theirs}.{key}.conv{i}.weight",), keymap.CONV))
        if key.endswith(".0"):
            rows.append(Row(f"{ours}/{path}/shortcut/kernel", (f"{theirs}.{key}.downsample.0.weight",), keymap.CONV))
    for path, key in _norms(tower, theirs):
        rows += keymap.norm(f"{ours}/{path}", key)
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
    """The same tensors under FLAIR's names, from RetiXfer's."""

    def renamed(key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in _RETIXFER.items() if key.startswith(old)), key)

    return {renamed(key): value for key, value in state.items()}


def _units(tower: ResNet) -> Iterator[tuple[str, str]]:
    """Our path and their key of every bottleneck."""
    for stage, units in enumerate(tower.blocks, 1):
        for unit in range(units):
            yield f"stage{stage}_unit{unit}", f"layer{stage}.{unit}"


def _norms(tower: ResNet | Any, theirs: str = f"{VISION}.model") -> Iterator[tuple[str, str]]:
    """Our path and their key of every batch norm."""
    yield "norm1", f"{theirs}.bn1"
    for path, key in _units(tower):
        for i in (1, 2, 3):
            yield f"{path}/norm{i}", f"{theirs}.{key}.bn{i}"
        if key.endswith(".0"):
            yield f"{path}/shortcut_norm", f"{theirs}.{key}.downsample.1"


def _moments(objective: FLAIR) -> list[Row]:
    return [
        Row(f"image/{path}/{ours}", (f"{key}.running_{ours}",), keymap.SAME)
        for path, key in _norms(objective.image)
        for ours in ("mean", "var")
    ]


def _read_statistics(objective: FLAIR, state: State, shapes: keymap.Shapes, source: str) -> Extra:
    moments = {k: v for k, v in state.items() if k.endswith(_STATISTICS[:2])}
    wanted = {row.path: shapes[re.sub("(mean|var)$", "scale", row.path)] for row in _moments(objective)}
    flat = flatten(keymap.read(_moments(objective), moments, wanted, source))
    for path, key in _norms(objective.image):
        count = state.get(f"{key}.num_batches_tracked", np.zeros((), np.int64))  # old files have none
        flat[f"image/{path}/count"] = np.asarray(count, np.int32).reshape(())
    return unflatten(flat)


def _check(objective: Any) -> None:
    if not isinstance(objective, FLAIR) or not isinstance(objective.image, ResNet):
        raise UserError(f"{NAME} checkpoints hold a FLAIR with a ResNet; got {type(objective).__name__}")


def _objective(
    state: Mapping[str, np.ndarray], image_size: int, text_heads: int | None, fields: Mapping[str, Any]
) -> FLAIR:
    """What the shapes of a state dict say, and what they do not say from the arguments."""
    embeddings, first = f"{TEXT}.model.embeddings", f"{TEXT}.model.encoder.layer.0.intermediate.dense.weight"
    tables = [f"{embeddings}.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    needed = [f"{VISION}.model.conv1.weight", f"{VISION}.model.layer1.0.conv1.weight", *tables, first]
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{NAME}: the checkpoint lacks {', '.join(missing)}")
    stages = [
        _count(state, rf"{VISION}\.model\.layer{stage}\.(\d+)\.")
        for stage in range(1, 1 + _count(state, rf"{VISION}\.model\.layer(\d+)\.") - 1)
    ]
    vocab, width = state[tables[0]].shape
    positions, types = len(state[tables[1]]), len(state[tables[2]])
    text = BERT(vocab, positions, width, _count(state, rf"{TEXT}\.model\.encoder\.layer\.(\d+)\."),
                text_heads or max(width // 64, 1), len(state[first]), types,
                pool="unmasked_mean", pool_layers=POOL_LAYERS)  # fmt: skip
    image = ResNet(image_size, state[needed[0]].shape[0], tuple(stages))
    head = state.get(f"{VISION}.projection_head_vision.projection.weight")
    given = {"project": head is not None, "context": min(77, positions)}
    if head is not None:
        given["embed"] = len(head)
    return FLAIR(image, text, **given | dict(fields))


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """1 + the largest number that stands in the keys."""
    found = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return 1 + max(found, default=-1)


def initial(path: str | Path) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: towers, projections and log scale from a FLAIR, KeepFIT or RetiXfer checkpoint.

    KeepFIT's attention is taken where the model has one and the file too. Batch statistics start anew and are those of
    the new images after some fifty steps. Raises UserError (when called) for parameters of another shape, by path.
    """

    def fill(params: Params) -> Params:
        state = read_state(path)
        found = to_fundax(state)[1] | read_attention(state)
        ours = flatten(unstack_blocks(params))
        loaded = {key: leaf for key, leaf in flatten(found).items() if key.split("/")[0] in params}
        wrong = [key for key, leaf in loaded.items() if key not in ours or np.shape(ours[key]) != leaf.shape]
        towers = [key for key in ours if key.split("/")[0] in ("image", "text", "project") and key not in loaded]
        if wrong or towers:
            raise UserError(f"{path}: does not fit the model: {', '.join((wrong + towers)[:5])}")
        filled = unflatten(ours | loaded)
        return {name: stack_blocks(tree) if isinstance(tree, dict) and "blocks" in params[name] else tree
                for name, tree in filled.items()}  # fmt: skip

    return fill
