"""What else a ViT knows than its last tokens: the outputs of its last blocks, and where its tokens look.

Pure functions of a tower and its parameters (layers unstacked or stacked); the arithmetic is the tower's own.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.vit import ViT
from fundax.errors import UserError
from fundax.types import Params


def intermediate_layers(tower: ViT, params: Params, image: jax.Array, last: int) -> tuple[jax.Array, ...]:
    """The outputs of the `last` last blocks, the oldest first, each through the one final norm; `last` times [B N D].

    A tower that norms after pooling has no norm for tokens, and its outputs are as the blocks leave them. The form of
    DINO's get_intermediate_layers, which VisionFM's decoders read. Raises UserError for more blocks than there are.
    """
    if not 0 < last <= tower.depth:
        raise UserError(f"the last {last} blocks of a ViT that has {tower.depth}")
    return chosen_layers(tower, params, image, tuple(range(tower.depth - last, tower.depth)))


def chosen_layers(
    tower: ViT, params: Params, image: jax.Array, blocks: tuple[int, ...], rngs: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, ...]:
    """The outputs of the named blocks (from 0), each as intermediate_layers gives them; one [B N D] for each.

    rngs: "drop_path" where layers shall be left out. Raises UserError for a block that is not there.
    """
    if wrong := [block for block in blocks if not 0 <= block < tower.depth]:
        raise UserError(f"block {wrong[0]} of a ViT that has {tower.depth}, 0 to {tower.depth - 1}")
    hidden = tower.apply({"params": params}, image, hidden=True, rngs=rngs)["hidden"]  # type: ignore[index]
    if tower.norm_after_pool:
        return tuple(hidden[block] for block in blocks)
    norm = layers.LayerNorm(tower.epsilon)
    return tuple(norm.apply({"params": params["norm"]}, hidden[block]) for block in blocks)  # type: ignore[misc]


def attention_maps(
    tower: ViT, params: Params, image: jax.Array, last: int = 1, masked: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """The softmax attention of the `last` last blocks, the oldest first, each f32 [B H N N]; row 0 is the class token's.

    Raises UserError for more blocks than there are.
    """
    if not 0 < last <= tower.depth:
        raise UserError(f"the attention of the last {last} blocks of a ViT that has {tower.depth}")
    params = layers.unstack_blocks(params)
    flat = tower.clone(scan=False)
    out = flat.apply({"params": params}, image, hidden=True, masked=masked)
    inputs = (out["embedded"], *out["hidden"][:-1])  # type: ignore[index]
    return tuple(_weights(flat, params[f"block_{i}"], inputs[i]) for i in range(tower.depth - last, tower.depth))


def rollout(maps: tuple[jax.Array, ...]) -> jax.Array:
    """Attention rollout (arXiv:2005.00928, section 3) of all blocks' maps [B H N N], first block first; f32 [B N N].

    Heads are averaged, half of every token stays where it is (the residual), and the blocks are multiplied.
    """
    total = None
    for weights in maps:
        step = 0.5 * weights.mean(1) + 0.5 * jnp.eye(weights.shape[-1])[None]
        step = step / step.sum(-1, keepdims=True)
        total = step if total is None else jnp.einsum("bij,bjk->bik", step, total)
    if total is None:
        raise UserError("rollout needs the attention of at least one block")
    return total


def _weights(tower: ViT, block: Params, x: jax.Array) -> jax.Array:
    """The attention of one block, given its input [B N D]."""
    initial = tower.init_blocks(tower.width, int(tower.width * tower.mlp_ratio), tower.depth)
    y = layers.LayerNorm(tower.epsilon).apply({"params": block["norm1"]}, x)
    qkv = layers.PackedProjection(tower.width, tower.qkv_bias, initial.qkv, tower.dtype)
    packed = qkv.apply({"params": block["attention"]["qkv"]}, y, 0, 2)
    q, k = (z.reshape(*z.shape[:2], tower.heads, -1) for z in jnp.moveaxis(packed, 2, 0))  # type: ignore[arg-type]
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * (q.shape[-1] ** -0.5), k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits, axis=-1)
