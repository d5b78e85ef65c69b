"""The layout of torchvision's and timm's ResNets: the table of keys, and encoders built from shapes.

Source: the layouts in the public repositories pytorch/vision and huggingface/pytorch-image-models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fundax.encoders.resnet import ResNet
from fundax.interop import convolutional, keymap
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Row
from fundax.interop.weights import State


def rows(ours: str, theirs: str, tower: ResNet) -> list[Row]:
    """Rows of a ResNet without its last linear layer; keys begin with `theirs`, which ends in a dot or is empty."""
    found = [Row(f"{ours}/conv1/kernel", (f"{theirs}conv1.weight",), keymap.CONV)]
    for path, key, projected in _units(tower):
        for i in range(1, 3 if tower.basic else 4):
            found.append(Row(f"{ours}/{path}/conv{i}/kernel", (f"{theirs}{key}.conv{i}.weight",), keymap.CONV))
        if projected:
            found.append(Row(f"{ours}/{path}/shortcut/kernel", (f"{theirs}{key}.downsample.0.weight",), keymap.CONV))
    for path, key in norms(ours, theirs, tower):
        found += keymap.norm(path, key)
    return found


def norms(ours: str, theirs: str, tower: ResNet) -> list[tuple[str, str]]:
    """Our path and the stored key of every batch norm."""
    found = [(f"{ours}/norm1", f"{theirs}bn1")]
    for path, key, projected in _units(tower):
        found += [(f"{ours}/{path}/norm{i}", f"{theirs}{key}.bn{i}") for i in range(1, 3 if tower.basic else 4)]
        if projected:
            found.append((f"{ours}/{path}/shortcut_norm", f"{theirs}{key}.downsample.1"))
    return found


def _units(tower: ResNet) -> Iterator[tuple[str, str, bool]]:
    """Our path and their key of every unit, and whether it projects its shortcut."""
    for stage, units in enumerate(tower.blocks, 1):
        for unit in range(units):
            projected = not unit and (stage > 1 or not tower.basic)
            yield f"stage{stage}_unit{unit}", f"layer{stage}.{unit}", projected


def tower_of(state: Mapping[str, Any], theirs: str, image_size: int) -> ResNet:
    """The ResNet for the shapes of a state dict, under keys that begin with `theirs`."""
    basic = f"{theirs}layer1.0.conv3.weight" not in state
    width = len(state[f"{theirs}conv1.weight"])
    last = keymap.count_modules(state, rf"{re.escape(theirs)}layer(\d+)\.") - 1
    blocks = tuple(
        keymap.count_modules(state, rf"{re.escape(theirs)}layer{stage}\.(\d+)\.") for stage in range(1, last + 1)
    )
    return ResNet(image_size, width, blocks, basic=basic)


def detect(state: State) -> bool:
    """Whether these are the keys of a ResNet by itself."""
    return {"conv1.weight", "bn1.running_mean", "layer1.0.conv2.weight"} <= state.keys()


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of a file or folder. Raises UserError naming keys and shapes that do not fit."""
    tower = tower_of(state, "", 224)
    tables = rows("image", "", tower), norms("image", "", tower)
    return convolutional.read_encoder(tower, *tables, state, path, classifier="fc.", modality=modality)


FORMAT = Format("resnet", "ResNet (torchvision, timm)", (), (), detect, read_model, None, order=11)
