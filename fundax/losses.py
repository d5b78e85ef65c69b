"""Losses as pure functions on global arrays: under jit a sharded batch gives the loss of the whole batch, on any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fundax.mesh import batch_axes, batch_parts

_EXACT = jax.lax.Precision.HIGHEST


def spread(logits: jax.Array) -> jax.Array:
    """Shards [B B]: rows as the batch, columns over "model", where a mesh is set and divides it; else as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "model" not in mesh.axis_names:
        return logits
    if logits.shape[0] % batch_parts(mesh) or logits.shape[1] % mesh.shape["model"]:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec(batch_axes(mesh), "model"))


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Inner products of every image [B E] with every text [B E], fp32 [B B], rows are images."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    return spread(jnp.einsum("be,ce->bc", image, text, precision=_EXACT))


def _mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return values.mean()
    weight = mask.astype(values.dtype)
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1)


def _hide(logits: jax.Array, mask: jax.Array | None, axis: int = 1) -> jax.Array:
    """Along `axis`, absent examples can win nothing."""
    if mask is None:
        return logits
    there = jnp.broadcast_to(jnp.expand_dims(mask, 1 - axis), logits.shape)
    return jnp.where(there, logits, jnp.finfo(jnp.float32).min)


def _cross_entropy(
    logits: jax.Array, own: jax.Array, weights: jax.Array | None, mask: jax.Array | None, axis: int
) -> jax.Array:
    """Mean over the other axis of logsumexp_i - sum_j w_ij logits_ij, j along `axis`; without `weights`, w is the identity,
    its sum `own` [B]; else weights normalised. Not by way of log_softmax, which would keep two more [B B] arrays."""
    total = jax.nn.logsumexp(_hide(logits, mask, axis), axis=axis)
    if weights is None:
        return _mean(total - own, mask)
    shares = weights if mask is None else weights * jnp.expand_dims(mask, 1 - axis).astype(weights.dtype)
    shares = shares / jnp.maximum(shares.sum(axis, keepdims=True), 1e-12)
    right = (shares * logits).sum(axis)
    return _mean(jnp.where(shares.sum(axis) > 0, total - right, 0.0), mask)


def softmax_contrastive(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array | None = None,
    *, mask: jax.Array | None = None, targets: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """The mean of both cross-entropies of matching B images with B texts (arXiv:2103.00020, figure 3).

    image, text [B E], L2-normalised; logit_scale () multiplies their inner products. mask bool [B]: pairs that are there;
    the others are neither examples nor negatives. targets f32 [B B], not negative: how much text j is a right answer to
    image i; normalised over texts for images and over images for texts; None is the identity. Returns fp32 ().
    logit_bias is accepted and has no effect: a softmax does not see a constant.
    """
    del logit_bias
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    logits = similarity(logit_scale * image, text)  # the scale on [B E]: a [B B] array fewer
    own = jnp.diagonal(logits)  # not summed anew from [B E]: rounding must cancel where the loss is small
    return 0.5 * (_cross_entropy(logits, own, targets, mask, 1) + _cross_entropy(logits, own, targets, mask, 0))


def sigmoid_contrastive(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array | float = 0.0,
    *, mask: jax.Array | None = None, targets: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """-sum_ij log sigmoid(z_ij (scale x_i.y_j + bias)) / B, z = 1 for a match and -1 else (arXiv:2303.15343, algorithm 1).

    image, text [B E], L2-normalised; mask bool [B] as for softmax_contrastive, the sum then divided by the pairs present;
    targets [B B] > 0 where text j matches image i, None is the identity. Returns fp32 ().
    """
    logits = logit_scale * similarity(image, text) + logit_bias
    match = jnp.eye(len(logits), dtype=bool) if targets is None else targets > 0
    terms = -jax.nn.log_sigmoid(jnp.where(match, logits, -logits))
    if mask is None:
        return terms.sum() / len(terms)
    pairs = mask[:, None] & mask[None, :]
    return (terms * pairs).sum() / jnp.maximum(mask.sum(), 1)


def matching_targets(category: jax.Array) -> jax.Array:
    """category i32 [B] to f32 [B B]: 1 where two examples' texts mean the same; for `targets` above."""
    return (category[:, None] == category[None, :]).astype(jnp.float32)


def contrastive_accuracy(
    image: jax.Array, text: jax.Array, mask: jax.Array | None = None, group: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """How often the nearest text of an image is its own, and the nearest image of a text; image, text [B E], fp32 ().

    With group i32 [B], the nearest one of the same group is right too.
    """
    logits = similarity(image, text)
    group = jnp.arange(len(logits)) if group is None else group
    to_text = (group[jnp.argmax(_hide(logits, mask), axis=1)] == group).astype(jnp.float32)
    to_image = (group[jnp.argmax(_hide(logits.T, mask), axis=1)] == group).astype(jnp.float32)
    return _mean(to_text, mask), _mean(to_image, mask)
