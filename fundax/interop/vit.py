"""ViTs under timm's key names, which DINO, iBOT, VisionFM and RETFound share: the table of keys, and encoders built from shapes.

Source: the layouts in the public repositories huggingface/pytorch-image-models, facebookresearch/dino, bytedance/ibot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.backbone import Encoder, owner_of
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.vit import ViT, init_dino
from fundax.interop import keymap
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.keymap import Layout, Row, Shapes
from fundax.interop.weights import State, strip_prefixes
from fundax.params import flatten, unstack_blocks
from fundax.types import Params, UserError

NAME = "timm"
ONE = Layout(lambda t: t[0][0], lambda x: [x[None]])  # stored with a leading axis of 1
TWO = Layout(lambda t: t[0][0, 0], lambda x: [x[None, None]])
GAMMA = ("gamma_1", "ls1.gamma")  # names of a layer scale in iBOT, and in timm and DINOv2
PARTS = ("teacher", "student", "model")  # where pretraining programs keep an encoder, the better one first
_NEEDED = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
# Left out when an encoder is read: heads of the pretraining or of a fine-tuning, MAE's decoder, mask tokens.
DROPPED = ("head.", "dino_head.", "ibot_head.", "decoder_", "mask_token", "masked_embed")
_RENAMED = (
    ("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."),  # as RETFound's loader of its DINOv2 variant
    ("register_tokens", "reg_token"),  # DINOv2's name of timm's registers
)  # fmt: skip
ACTIVATIONS = {"gelu": layers.gelu_exact, "quick_gelu": layers.quick_gelu, "gelu_tanh": layers.gelu_tanh}
_QKV = Layout(  # q [D D], and k, v [2D D]
    lambda t: keymap.PACKED_KERNEL.read([np.concatenate(t)]),
    lambda x: np.split(keymap.PACKED_KERNEL.write(x)[0], [x.shape[0]]),
)
_QKV_BIAS = Layout(
    lambda t: keymap.PACKED_BIAS.read([np.concatenate(t)]),
    lambda x: np.split(keymap.PACKED_BIAS.write(x)[0], [x.shape[1]]),
)


def detect(state: State) -> bool:
    """Whether a flat state dict holds a ViT under these names, at its top or in one of PARTS."""
    return set(_NEEDED) <= encoder_state(state).keys()


def rows(tower: ViT, ours: str = "", theirs: str = "", gamma: str = GAMMA[0]) -> list[Row]:
    """The table of an encoder. `ours` and `theirs` go before every path and key ("image/", "backbone."); `gamma`: of GAMMA."""
    found = [
        Row(f"{ours}position", (f"{theirs}pos_embed",), ONE),
        Row(f"{ours}patch/kernel", (f"{theirs}patch_embed.proj.weight",), keymap.CONV),
        *keymap.norm(f"{ours}norm", f"{theirs}{'fc_norm' if tower.norm_after_pool else 'norm'}"),
        *(keymap.norm(f"{ours}pre_norm", f"{theirs}norm_pre") if tower.pre_norm else []),
        *(_pool(f"{ours}pool", f"{theirs}attn_pool") if tower.pool == "attention" else []),
    ]
    if tower.class_token:
        found.append(Row(f"{ours}class_token", (f"{theirs}cls_token",), TWO))
    if tower.registers:
        found.append(Row(f"{ours}registers", (f"{theirs}reg_token",), ONE))
    if tower.patch_bias:
        found.append(Row(f"{ours}patch/bias", (f"{theirs}patch_embed.proj.bias",), keymap.SAME))
    if tower.mask_token:
        found.append(Row(f"{ours}mask_token", (f"{theirs}masked_embed",), ONE))
    for i in range(tower.depth):
        found += _block(f"{ours}block_{i}", f"{theirs}blocks.{i}", tower.qkv_bias)
        if tower.layer_scale is not None:
            found += keymap.layer_scale(f"{ours}block_{i}", f"{theirs}blocks.{i}.{gamma.replace('1', '{n}')}")
    return found


def _pool(here: str, there: str) -> list[Row]:
    """The rows of an attention pooling."""
    names = ("q", "kv")
    return [
        Row(f"{here}/probe", (f"{there}.latent",), ONE),
        Row(f"{here}/attention/qkv/kernel", tuple(f"{there}.{name}.weight" for name in names), _QKV),
        Row(f"{here}/attention/qkv/bias", tuple(f"{there}.{name}.bias" for name in names), _QKV_BIAS),
        *keymap.linear(f"{here}/attention/out", f"{there}.proj"),
        *keymap.norm(f"{here}/norm", f"{there}.norm"),
        *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
        *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
    ]


def _block(here: str, there: str, qkv_bias: bool) -> list[Row]:
    return [
        *keymap.norm(f"{here}/norm1", f"{there}.norm1"),
        *keymap.packed_attention(f"{here}/attention", f"{there}.attn", "qkv.")[: 1 + qkv_bias],
        *keymap.linear(f"{here}/attention/out", f"{there}.attn.proj"),
        *keymap.norm(f"{here}/norm2", f"{there}.norm2"),
        *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
        *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
    ]


def gamma_of(state: State, theirs: str = "") -> str | None:
    """The name out of GAMMA of a state dict's layer scales, or None where it has none."""
    return next((name for name in GAMMA if f"{theirs}blocks.0.{name}" in state), None)


def tower_of(
    state: State, source: str, theirs: str = "", heads: int | None = None, activation: layers.Activation | None = None
) -> ViT:
    """The ViT for the shapes of a state dict, with `positions_of` its table.

    Shapes show neither the heads nor the activation: None takes 64 channels per head, and exact GELU.
    Raises UserError if a key is missing, or the positions are no square grid.
    """
    for key in _NEEDED:
        if f"{theirs}{key}" not in state:
            raise UserError(f"{source}: '{theirs}{key}' is missing; expected a ViT under timm's names")
    state = positions_of(state, source, theirs)
    width, _, patch, _ = state[f"{theirs}patch_embed.proj.weight"].shape
    has = lambda key: f"{theirs}{key}" in state  # noqa: E731
    side = math.isqrt(state[f"{theirs}pos_embed"].shape[-2] - has("cls_token"))
    pattern = re.compile(re.escape(theirs) + r"blocks\.(\d+)\.")
    depth = 1 + max(int(found[1]) for key in state if (found := pattern.match(key)))
    pooled, pre_norm = has("fc_norm.weight"), has("norm_pre.weight")
    pool = "mean" if pooled or not has("cls_token") else "token"
    hidden = state.get(f"{theirs}blocks.0.mlp.fc1.weight", np.empty((4 * width, width))).shape[0]
    return ViT(
        image_size=side * patch, patch=patch, width=width, depth=depth, heads=heads or max(width // 64, 1),
        mlp_ratio=hidden / width, activation=activation or layers.gelu_exact, epsilon=1e-5 if pre_norm else 1e-6,
        class_token=has("cls_token"), pre_norm=pre_norm,
        qkv_bias=has("blocks.0.attn.qkv.bias"), patch_bias=has("patch_embed.proj.bias"),
        pool="attention" if has("attn_pool.latent") else pool, norm_after_pool=pooled, any_size=True, init_std=0.02,
        registers=state[f"{theirs}reg_token"].shape[-2] if has("reg_token") else 0,
        layer_scale=None if gamma_of(state, theirs) is None else 1e-5,
        mask_token=has("masked_embed"), init_blocks=init_dino,
    )  # fmt: skip


def positions_of(state: State, source: str, theirs: str = "") -> State:
    """The same tensors with a position table of the class token, if there is one, and the patches [1 N D].

    timm's tables may have no row for the class token (`no_embed_class`), or rows for registers, which are added to these.
    Raises UserError for a table that is not a square grid, or could be two.
    """
    key, registers = f"{theirs}pos_embed", state.get(f"{theirs}reg_token")
    first, count = int(f"{theirs}cls_token" in state), state[key].shape[-2]
    extra = 0 if registers is None else registers.shape[-2]
    fits = [
        n for n in dict.fromkeys((first, first + extra, 0)) if count > n and math.isqrt(count - n) ** 2 == count - n
    ]
    if len(fits) != 1:
        words = "two grids" if fits else f"{count - first} patches, not a square grid and a class token"
        raise UserError(f"{source}: '{key}' has {words}")
    table = np.asarray(state[key], np.float32).reshape(count, -1)
    if fits[0] == first:
        return state
    if not fits[0]:
        return state | {key: np.concatenate([np.zeros_like(table[:1]), table])[None]}
    added = np.asarray(registers, np.float32) + table[None, first : first + extra]
    kept = np.concatenate([table[:first], table[first + extra :]])
    return state | {key: kept[None], f"{theirs}reg_token": added}


def shapes_of(tower: ViT, ours: str = "") -> Shapes:
    """Path -> shape of an encoder's parameters, layers unstacked; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, 3), jnp.float32)
    params = jax.eval_shape(tower.clone(scan=False).init, jax.random.key(0), image)["params"]
    return {f"{ours}{path}": tuple(leaf.shape) for path, leaf in flatten(params).items()}


def read(tower: ViT, state: State, source: str, theirs: str = "") -> Params:
    """The encoder's parameters from the keys that begin with `theirs`; positions are moved to its grid (pixel_centres).

    Raises UserError for keys that are missing or unknown and for other shapes, by name.
    """
    state = {key: value for key, value in state.items() if key.startswith(theirs)}
    state = positions_of(state, source, theirs) if f"{theirs}pos_embed" in state else state
    state = fit_positions(state, tower.patches + tower.class_token, theirs, bool(tower.class_token))
    table = rows(tower, "", theirs, gamma_of(state, theirs) or GAMMA[0])
    return keymap.read(table, state, shapes_of(tower), source)


def fit_positions(state: State, rows: int, theirs: str = "", class_row: bool = True) -> State:
    """Resize the position table [1 N D] of a state dict to `rows` rows by the rule of these programs."""
    key = f"{theirs}pos_embed"
    if key not in state or state[key].ndim != 3:
        return state
    return state | {key: resize_positions(state[key][0], rows, pixel_centres, class_row=class_row)[None]}


# ------------------------------------------------------------------------------------------------ encoders alone


def encoder_state(state: Mapping[str, Any]) -> State:
    """Select the tensors of an encoder: the first of PARTS that is present, without wrapper prefixes and keys in DROPPED."""
    part = next((f"{name}." for name in PARTS if any(key.startswith(f"{name}.") for key in state)), "")
    state = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
    found: State = {}
    for key, value in strip_prefixes(state).items():
        key = key.replace("module.", "").removeprefix("backbone.")
        for old, new in _RENAMED:
            key = key.replace(old, new)
        if not key.startswith(DROPPED):
            found[key] = np.asarray(value)
    return found


def to_fundax(
    state: State, source: str, heads: int | None = None, activation: layers.Activation | None = None, **fields: Any
) -> tuple[Encoder, Params]:
    """The encoder for the shapes of a state dict, and its parameters; `fields` are further fields of Encoder.


    heads, activation: see `tower_of`.
    Raises UserError naming keys that are missing or unknown, and tensors of another shape.
    """
    state = encoder_state(state)
    tower = tower_of(state, source, heads=heads, activation=activation)
    return Encoder(tower, **fields), {"image": read(tower, state, source)}


def from_fundax(objective: Encoder, params: Params) -> State:
    """The bare state dict (fp32). Raises UserError for a ViT of another kind (pre_norm, no biases, ...)."""
    tower = bare(objective.image)
    _check(tower)
    tree = {name: leaf for name, leaf in unstack_blocks(params["image"]).items() if name != "mask_token"}
    state = keymap.write(rows(tower, gamma=GAMMA[1]), tree, NAME)  # named as in timm
    if tower.registers:  # timm adds a row of the table to each of them
        table, first = state["pos_embed"], int(tower.class_token)
        blank = np.zeros((1, tower.registers, tower.width), np.float32)
        state["pos_embed"] = np.concatenate([table[:, :first], blank, table[:, first:]], axis=1)
    return state


def encoder_of(model: Checkpoint) -> Checkpoint:
    """The encoder of a model: below a head, or the teacher's of a pretraining. An Encoder is returned unchanged.

    Raises UserError for a model with several encoders or with one that is not a ViT.
    """
    objective, owner = model.objective, owner_of(model.objective)
    if isinstance(objective, Encoder) and isinstance(objective.image, ViT):
        return model
    if not isinstance(owner.image, ViT) or getattr(owner, "modalities", ()):
        raise UserError(f"{NAME} holds one ViT; this {type(objective).__name__} has another image encoder, or several")
    moments = (value if isinstance(value[0], tuple) else (tuple(value),) for value in (owner.mean, owner.std))
    encoder = Encoder(bare(owner.image), *moments)
    params = {"image": model.extra.get("teacher", model.params)["image"]}
    return replace(model, objective=encoder, params=params, extra={})


def bare(tower: Any) -> ViT:
    """A ViT as it computes features: no mask token, nothing dropped, layers not stacked. Raises UserError for another."""
    if not isinstance(tower, ViT):
        raise UserError(f"this format holds a ViT, and the encoder is {type(tower).__name__}")
    return tower.clone(mask_token=False, drop_path=0.0, scan=False)


def _check(tower: ViT) -> None:
    """Raise UserError for what timm's ViT does not have."""
    wrong = {
        "rotary positions": tower.rotary is not None,
        "a norm before the blocks and a bias of the patches": tower.pre_norm and tower.patch_bias,
        "neither a norm before the blocks nor a bias of the patches": not (tower.pre_norm or tower.patch_bias),
        f"epsilon {tower.epsilon}": tower.epsilon != (1e-5 if tower.pre_norm else 1e-6),
        "another activation": tower.activation not in ACTIVATIONS.values(),
        "a pooled class token that is normalised once more": tower.pool == "token" and tower.norm_after_pool,
    }
    if any(wrong.values()):
        raise UserError(f"{NAME}'s ViT cannot hold {', '.join(words for words, yes in wrong.items() if yes)}")


def unit_difference(model: Checkpoint, program: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest difference of unit vectors between our features and those of another program.

    `program` takes normalised images f32 [2 3 h w], as torch lays them out, to features [2 D].
    """
    side = model.objective.image.image_size
    image = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    theirs = program(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    objective = replace(model.objective, image=bare(model.objective.image).clone(dtype="float32"))
    params = {"image": {k: v for k, v in unstack_blocks(model.params["image"]).items() if k != "mask_token"}}
    ours = np.asarray(jax.jit(objective.forward)(params, {}, {"image": image})["image_raw"])
    ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (ours, theirs))
    return float(np.abs(ours - theirs).max())
