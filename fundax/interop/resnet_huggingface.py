"""The Hugging Face ResNetModel: the rows of a ResNet, its batch statistics, and its configuration.

Key names are those of the files that transformers' public repository reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fundax.encoders.resnet import EXPANSION, ResNet
from fundax.interop import keymap
from fundax.interop.keymap import Row
from fundax.interop.weights import State
from fundax.params import flatten, unflatten
from fundax.types import Extra, Params

NAME = "Hugging Face ResNetModel"


def rows(tower: ResNet) -> list[Row]:
    """The table of the parameters, whose paths begin with "image"."""
    found = [Row("image/conv1/kernel", ("embedder.embedder.convolution.weight",), keymap.CONV)]
    for path, key, projected in _units(tower):
        for i in range(2 if tower.basic else 3):
            found.append(Row(f"image/{path}/conv{i + 1}/kernel", (f"{key}.layer.{i}.convolution.weight",), keymap.CONV))
        if projected:
            found.append(Row(f"image/{path}/shortcut/kernel", (f"{key}.shortcut.convolution.weight",), keymap.CONV))
    for path, key in _norms(tower):
        found += keymap.norm(f"image/{path}", key)
    return found


def write(tower: ResNet, params: Params, extra: Extra) -> State:
    """The state dict (fp32, counters int64) of parameters {"image"} and batch statistics {"image"}."""
    flat = flatten({"image": extra["image"]})
    moments = unflatten({path: leaf for path, leaf in flat.items() if not path.endswith("/count")})
    state = keymap.write(rows(tower), params, NAME) | keymap.write(_moments(tower), moments, NAME)
    for norm, key in _norms(tower):
        state[f"{key}.num_batches_tracked"] = np.asarray(flat[f"image/{norm}/count"]).astype(np.int64)
    return state


def read(tower: ResNet, state: State, shapes: keymap.Shapes, source: str) -> tuple[Params, Extra]:
    """Parameters {"image"} and batch statistics {"image"}; `shapes` are those of the parameters.

    Raises UserError naming keys that do not fit.
    """
    ours = {path: shape for path, shape in shapes.items() if path.startswith("image/")}
    ends = ("running_mean", "running_var", "num_batches_tracked")
    weights = {key: value for key, value in state.items() if not key.endswith(ends)}
    moments = {key: value for key, value in state.items() if key.endswith(ends[:2])}
    wanted = {row.path: ours[f"{row.path.rpartition('/')[0]}/scale"] for row in _moments(tower)}
    flat = flatten(keymap.read(_moments(tower), moments, wanted, source))
    for path, key in _norms(tower):
        count = state.get(f"{key}.num_batches_tracked", np.zeros((), np.int64))
        flat[f"image/{path}/count"] = np.asarray(count, np.int32).reshape(())
    return keymap.read(rows(tower), weights, ours, source), unflatten(flat)


def config_of(tower: ResNet) -> dict[str, Any]:
    """config.json of the ResNetModel, whose strides are in the 3x3 convolutions, as in torchvision's."""
    widths = [tower.width_first * 2**stage * (1 if tower.basic else EXPANSION) for stage in range(len(tower.blocks))]
    return {
        "architectures": ["ResNetModel"], "model_type": "resnet", "dtype": "float32", "num_channels": 3,
        "embedding_size": tower.width_first, "hidden_sizes": widths, "depths": list(tower.blocks),
        "layer_type": "basic" if tower.basic else "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }  # fmt: skip


def _units(tower: ResNet) -> Iterator[tuple[str, str, bool]]:
    """Our path and their key of every unit, and whether it projects its shortcut."""
    for stage, units in enumerate(tower.blocks):
        for unit in range(units):
            projected = not unit and (stage > 0 or not tower.basic)
            yield f"stage{stage + 1}_unit{unit}", f"encoder.stages.{stage}.layers.{unit}", projected


def _norms(tower: ResNet) -> Iterator[tuple[str, str]]:
    """Our path and their key of every batch norm."""
    yield "norm1", "embedder.embedder.normalization"
    for path, key, projected in _units(tower):
        for i in range(2 if tower.basic else 3):
            yield f"{path}/norm{i + 1}", f"{key}.layer.{i}.normalization"
        if projected:
            yield f"{path}/shortcut_norm", f"{key}.shortcut.normalization"


def _moments(tower: ResNet) -> list[Row]:
    return [
        Row(f"image/{path}/{ours}", (f"{key}.running_{ours}",), keymap.SAME)
        for path, key in _norms(tower)
        for ours in ("mean", "var")
    ]
