"""The layouts of ConvNeXt: torchvision's and timm's.

Source: the layouts in the public repositories pytorch/vision and huggingface/pytorch-image-models."""

from __future__ import annotations

import re
from pathlib import Path

from fundax.encoders.convnext import ConvNeXt
from fundax.interop import convolutional, keymap
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Layout, Row
from fundax.interop.weights import State

_GAMMA = Layout(lambda t: t[0].reshape(-1), lambda x: [x[:, None, None]])  # torchvision stores [C 1 1]
TIMM = {"depthwise": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "layer_scale": "gamma"}
TORCHVISION = {
    "depthwise": "block.0",
    "norm": "block.2",
    "fc1": "block.3",
    "fc2": "block.5",
    "layer_scale": "layer_scale",
}


def rows(tower: ConvNeXt, timm: bool) -> list[Row]:
    """The table of an encoder without its classifier."""
    ends = ("stem.0", "stem.1", "head.norm") if timm else ("features.0.0", "features.0.1", "classifier.0")
    found = [*_conv("stem", ends[0]), *keymap.norm("image/stem_norm", ends[1]), *keymap.norm("image/norm", ends[2])]
    block, names = 0, TIMM if timm else TORCHVISION
    for stage, count in enumerate(tower.blocks):
        if stage:
            theirs = f"stages.{stage}.downsample" if timm else f"features.{2 * stage}"
            found += [*keymap.norm(f"image/reduce{stage}_norm", f"{theirs}.0"), *_conv(f"reduce{stage}", f"{theirs}.1")]
        for unit in range(count):
            theirs = f"stages.{stage}.blocks.{unit}" if timm else f"features.{2 * stage + 1}.{unit}"
            here, keys = f"image/block_{block}", {name: f"{theirs}.{key}" for name, key in names.items()}
            found += [*_conv(f"block_{block}/depthwise", keys["depthwise"]), *keymap.norm(f"{here}/norm", keys["norm"])]
            found += [row for name in ("fc1", "fc2") for row in keymap.linear(f"{here}/{name}", keys[name])]
            gamma = keymap.SAME if timm else _GAMMA
            found.append(Row(f"{here}/layer_scale/gamma", (keys["layer_scale"],), gamma))
            block += 1
    return found


def _conv(path: str, key: str) -> list[Row]:
    return [Row(f"image/{path}/kernel", (f"{key}.weight",), keymap.CONV),
            Row(f"image/{path}/bias", (f"{key}.bias",), keymap.SAME)]  # fmt: skip


def detect(state: State) -> bool:
    """Whether these are the keys of a ConvNeXt, in either layout."""
    timm = {"stem.0.weight", "stages.0.blocks.0.gamma"} <= state.keys()
    return timm or {"features.0.0.weight", "features.1.0.layer_scale"} <= state.keys()


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of a file or folder. Raises UserError naming keys and shapes that do not fit."""
    timm = "stem.0.weight" in state
    tower = _tower(state, timm)
    # torchvision's head is classifier.0 (a norm) and classifier.2, timm's is head.norm and head.fc
    classifier = "head.fc." if timm else "classifier.2."
    return convolutional.read_encoder(
        tower, rows(tower, timm), (), state, path, classifier=classifier, modality=modality
    )


def _tower(state: State, timm: bool) -> ConvNeXt:
    pattern = r"stages\.(\d+)\.blocks\.(\d+)\.gamma" if timm else r"features\.(\d+)\.(\d+)\.layer_scale"
    places = [(int(m[1]), int(m[2])) for key in state if (m := re.fullmatch(pattern, key))]
    stages = sorted({stage for stage, _ in places})
    blocks = tuple(sum(stage == one for stage, _ in places) for one in stages)
    name = "stages.{}.blocks.0.gamma" if timm else "features.{}.0.layer_scale"
    widths = tuple(len(state[name.format(stage)]) for stage in stages)
    return ConvNeXt(widths=widths, blocks=blocks)


FORMAT = Format("convnext", "ConvNeXt", (), (), detect, read_model, None, order=13)
