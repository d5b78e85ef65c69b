"""Maps of what a model reads: attention of a ViT's class token, and Grad-CAM (arXiv:1610.02391) of any image encoder.

Grad-CAM shows which places of an image raise a number that the model computes. The feature map is the output of the last
unit of a convolutional network, and the input of the last attention layer of a ViT. After that layer, a ViT that returns its
class token does not use the patches, so their gradient is zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.backbone import VisionEncoder, with_encoder
from fundax.encoders.vit import ViT
from fundax.params import unstack_blocks
from fundax.types import Batch, Extra, Params, UserError

Target = Callable[[Any, Params, Extra, Batch], jax.Array]  # objective, params, extra, batch -> numbers f32 [B]


def class_attention(tower: ViT, params: Params, image: jax.Array) -> dict[str, jax.Array]:
    """Attention of the class token as maps over the grid of patches; each map sums to at most 1.

    image: [B h w 3], normalised. Returns heads f32 [B H r c], the attention of the last block (arXiv:2104.14294,
    figure 1); mean f32 [B r c], their mean over heads; and rollout f32 [B r c], through all blocks (arXiv:2005.00928).
    The remainder to 1 is the attention of the class token to itself.
    """
    maps = attention_maps(tower, params, image, last=tower.depth)
    rows, columns = image.shape[1] // tower.patch, image.shape[2] // tower.patch
    heads = maps[-1][:, :, 0, 1:].reshape(len(image), tower.heads, rows, columns)
    return {
        "heads": heads,
        "mean": heads.mean(1),
        "rollout": rollout(maps)[:, 0, 1:].reshape(len(image), rows, columns),
    }


def attention_maps(
    tower: ViT, params: Params, image: jax.Array, last: int = 1, masked: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Attention maps f32 [B H N N] of the last blocks, earliest first; row 0 is the class token's.

    The attention to registers is left out, so that rows of an encoder that has them sum to less than 1. Raises UserError
    for more blocks than the ViT has.
    """
    if not 0 < last <= tower.depth:
        raise UserError(f"the attention of the last {last} blocks of a ViT that has {tower.depth}")
    # The blocks do not return their weights, since fast attention never has them. So run the ViT once, then compute the
    # weights of the blocks asked for from their inputs.
    params = unstack_blocks(params)
    flat = tower.clone(scan=False)
    out = layers.apply(flat, params, image, hidden=True, masked=masked)
    count, inputs = out["embedded"].shape[1], out["inputs"]
    grid = (image.shape[1] // tower.patch, image.shape[2] // tower.patch)
    maps = [_weights(flat, params[f"block_{i}"], inputs[i], grid) for i in range(tower.depth - last, tower.depth)]
    return tuple(weights[:, :, :count, :count] for weights in maps) if tower.registers else tuple(maps)


def rollout(maps: tuple[jax.Array, ...]) -> jax.Array:
    """Attention rollout (arXiv:2005.00928, section 3) of the maps [B H N N] of all blocks, first block first; f32 [B N N].

    Heads are averaged, the residual connection counts as half the identity, and the matrices are multiplied.
    """
    total = None
    for weights in maps:
        step = 0.5 * weights.mean(1) + 0.5 * jnp.eye(weights.shape[-1])[None]
        step = step / step.sum(-1, keepdims=True)
        total = step if total is None else jnp.einsum("bij,bjk->bik", step, total)
    if total is None:
        raise UserError("rollout needs the attention of at least one block")
    return total


def _weights(tower: ViT, block: Params, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Attention weights f32 [B H N N] of one block, given its input [B N D]."""
    initial = tower.init_blocks(tower.width, int(tower.width * tower.mlp_ratio), tower.depth)
    y = layers.apply(layers.LayerNorm(tower.epsilon), block["norm1"], x)
    qkv = layers.PackedProjection(tower.width, tower.qkv_bias, initial.qkv, tower.dtype)
    packed = layers.apply(qkv, block["attention"]["qkv"], y, 0, 2)
    q, k = (z.reshape(*z.shape[:2], tower.heads, -1) for z in jnp.moveaxis(packed, 2, 0))
    if rotary := tower.rotation(grid):
        q, k = rotary(q), rotary(k)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q * (q.shape[-1] ** -0.5), k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits, axis=-1)


def grad_cam(objective: Any, params: Params, extra: Extra, batch: Batch, target: Target) -> jax.Array:
    """Maps f32 [B rows columns] >= 0 of the feature map of the image encoder, weighted by the gradient of `target`.

    Channels are weighted by the mean of their gradient over the places, and negative sums become 0. The encoder must see
    each image once in `target`.
    """
    objective, params, extra = _unrolled(objective, params, extra)
    place = _place(objective.image)
    seen: list[jax.Array] = []

    def run(shift: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        seen.clear()

        def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out = call(*args, **kwargs)
            if context.module.path != place or context.method_name != "__call__":
                return out
            seen.append(out)
            return out if shift is None else out + shift.astype(out.dtype)

        with nn.intercept_methods(intercept):
            value = target(objective, params, extra, batch).sum()
        return value, seen[0].astype(jnp.float32)

    shape = jax.eval_shape(lambda: run(None)[1])
    gradient, features = jax.grad(run, has_aux=True)(jnp.zeros(shape.shape, jnp.float32))
    features, gradient = (_as_maps(objective.image, x) for x in (features, gradient))
    return jax.nn.relu((features * gradient.mean((1, 2), keepdims=True)).sum(-1))


def _place(tower: VisionEncoder) -> tuple[str, ...]:
    return (f"block_{tower.depth - 1}", "norm1") if isinstance(tower, ViT) else (tower.last_unit,)


def _as_maps(tower: VisionEncoder, x: jax.Array) -> jax.Array:
    if not isinstance(tower, ViT):
        return x
    side = tower.image_size // tower.patch
    first = int(tower.class_token)
    return x[:, first : first + side * side].reshape(len(x), side, side, -1)


def _unrolled(objective: Any, params: Params, extra: Extra) -> tuple[Any, Params, Extra]:
    """Unroll the layers of a model's image encoder, so that each of its modules has a name."""
    if not isinstance(objective.image, ViT):
        return objective, params, extra
    plain = objective.image.clone(scan=False, remat="none", mask_ratio=0.0, drop_path=0.0)
    return with_encoder(objective, plain), _image_unrolled(params), _image_unrolled(extra)


def _image_unrolled(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    parts = {name: _image_unrolled(tree[name]) for name in ("model", "teacher") if name in tree}
    image = {"image": unstack_blocks(tree["image"])} if "image" in tree else {}
    return {**tree, **parts, **image}
