"""ViTs under timm's key names, which DINO, iBOT, VisionFM and RETFound share: the table, and a tower read off shapes.

Source: the layouts in the public repositories huggingface/pytorch-image-models, facebookresearch/dino, bytedance/ibot."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.vit import ViT, init_dino
from fundax.interop import keymap
from fundax.interop.keymap import Layout, Row, Shapes
from fundax.interop.weights import State
from fundax.params import flatten
from fundax.types import Params, UserError

ONE = Layout(lambda t: t[0][0], lambda x: [x[None]])  # a leading axis of 1 there


TWO = Layout(lambda t: t[0][0, 0], lambda x: [x[None, None]])


GAMMA = ("gamma_1", "ls1.gamma")  # how iBOT calls a layer scale, and timm and DINOv2


_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")


def detect(state: State) -> bool:
    """Whether a bare state dict holds a ViT of this layout at its top."""
    return all(key in state for key in _NEEDED)


def rows(tower: ViT, ours: str = "", theirs: str = "", gamma: str = GAMMA[0]) -> list[Row]:
    """The table of a tower. `ours` and `theirs` go before every path and key ("image/", "backbone."); `gamma`: of GAMMA."""
    found = [
        Row(f"{ours}class_token", (f"{theirs}cls_token",), TWO),
        Row(f"{ours}position", (f"{theirs}pos_embed",), ONE),
        Row(f"{ours}patch/kernel", (f"{theirs}patch_embed.proj.weight",), keymap.CONV),
        Row(f"{ours}patch/bias", (f"{theirs}patch_embed.proj.bias",), keymap.SAME),
        *keymap.norm(f"{ours}norm", f"{theirs}{'fc_norm' if tower.norm_after_pool else 'norm'}"),
    ]
    if tower.mask_token:
        found.append(Row(f"{ours}mask_token", (f"{theirs}masked_embed",), ONE))
    for i in range(tower.depth):
        found += _block(f"{ours}block_{i}", f"{theirs}blocks.{i}")
        if tower.layer_scale is not None:
            for n in "12":
                key = f"{theirs}blocks.{i}.{gamma.replace('1', n)}"
                found.append(Row(f"{ours}block_{i}/layer_scale{n}/gamma", (key,), keymap.SAME))
    return found


def _block(here: str, there: str) -> list[Row]:
    return [
        *keymap.norm(f"{here}/norm1", f"{there}.norm1"),
        Row(f"{here}/attention/qkv/kernel", (f"{there}.attn.qkv.weight",), keymap.PACKED_KERNEL),
        Row(f"{here}/attention/qkv/bias", (f"{there}.attn.qkv.bias",), keymap.PACKED_BIAS),
        *keymap.linear(f"{here}/attention/out", f"{there}.attn.proj"),
        *keymap.norm(f"{here}/norm2", f"{there}.norm2"),
        *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
        *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
    ]


def gamma_of(state: State, theirs: str = "") -> str | None:
    """Which of GAMMA the layer scales of a state dict are called, or None where it has none."""
    return next((name for name in GAMMA if f"{theirs}blocks.0.{name}" in state), None)


def tower_of(state: State, source: str, theirs: str = "", heads: int | None = None) -> ViT:
    """The ViT whose shapes a state dict has. Shapes do not show the heads: None takes 64 channels in each.

    Raises UserError where a key is missing, or the positions are no square grid.
    """
    for key in _NEEDED:
        if f"{theirs}{key}" not in state:
            raise UserError(f"{source}: '{theirs}{key}' is missing; expected a ViT under timm's names")
    width, _, patch, _ = state[f"{theirs}patch_embed.proj.weight"].shape
    count = state[f"{theirs}pos_embed"].shape[-2] - 1
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise UserError(f"{source}: '{theirs}pos_embed' has {count} patches, not a square grid and a class token")
    pattern = re.compile(re.escape(theirs) + r"blocks\.(\d+)\.")
    depth = 1 + max(int(found[1]) for key in state if (found := pattern.match(key)))
    pooled = f"{theirs}fc_norm.weight" in state
    hidden = state.get(f"{theirs}blocks.0.mlp.fc1.weight", np.empty((4 * width, width))).shape[0]
    return ViT(
        image_size=side * patch, patch=patch, width=width, depth=depth, heads=heads or max(width // 64, 1),
        mlp_ratio=hidden / width, activation=layers.gelu_exact, epsilon=1e-6, patch_bias=True, pre_norm=False,
        pool="mean" if pooled else "token", norm_after_pool=pooled, any_size=True, init_std=0.02,
        layer_scale=None if gamma_of(state, theirs) is None else 1e-5,
        mask_token=f"{theirs}masked_embed" in state, init_blocks=init_dino,
    )  # fmt: skip


def shapes_of(tower: ViT, ours: str = "") -> Shapes:
    """Path -> shape of a tower's parameters, layers unstacked; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
    params = jax.eval_shape(tower.clone(scan=False).init, jax.random.key(0), image)["params"]
    return {f"{ours}{path}": tuple(leaf.shape) for path, leaf in flatten(params).items()}


def read(tower: ViT, state: State, source: str, theirs: str = "") -> Params:
    """The tower's parameters from the keys that begin with `theirs`; positions are moved to its grid (pixel_centres).

    Raises UserError for keys that are missing or unknown and for other shapes, by name.
    """
    state = {key: value for key, value in state.items() if key.startswith(theirs)}
    state = fit_positions(state, tower.patches + 1, theirs)
    table = rows(tower, "", theirs, gamma_of(state, theirs) or GAMMA[0])
    return keymap.read(table, state, shapes_of(tower), source)


def fit_positions(state: State, rows: int, theirs: str = "") -> State:
    """The same tensors with the position table [1 N D] moved to `rows` rows by the rule of these programs."""
    key = f"{theirs}pos_embed"
    if key not in state or state[key].ndim != 3:
        return state
    return state | {key: resize_positions(state[key][0], rows, pixel_centres)[None]}
