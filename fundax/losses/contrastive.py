"""Losses as pure functions on global arrays: under jit a sharded batch gives the loss of the whole batch, on any mesh.

Which form of a contrastive loss is computed: plain on global arrays, or a ring without any B x B array.

Both give the same numbers. Objectives say whose negatives they want and call the functions here.

    global   all of the batch; a ring above RING_ABOVE examples, plain up to it
    plain    all of the batch, on global arrays: [B B] arrays, the oracle of the ring
    ring     all of the batch, as a ring
    local    each device's own share (the objectives that offer it do it themselves)

Contrastive loss whose right answers are all pairs of one category, as FLAIR and KeepFIT train (arXiv:2308.07898, eq. 2-3).

Level 1, so that both objectives share it: what counts as the same, among whom, and a log scale kept in bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fundax.losses import nearest, ring
from fundax.optim import MAX_LOG_SCALE
from fundax.runtime.mesh import batch_axes, batch_parts
from fundax.types import UserError

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


Negatives = Literal["global", "plain", "ring", "local"]
Loss = Callable[..., jax.Array]
RING_ABOVE = 8192  # measured: docs/performance.md, the contrastive loss
FORMS = ("global", "plain", "ring")
NEGATIVES = (*FORMS, "local")


def as_ring(batch: int, negatives: Negatives) -> bool:
    """Whether a loss over so many examples is computed as a ring."""
    return negatives == "ring" or (negatives == "global" and batch > RING_ABOVE)


def contrast(
    loss: Loss,
    image: jax.Array,
    text: jax.Array,
    scales: Sequence[jax.Array],
    *,
    mask: jax.Array | None = None,
    group: jax.Array | None = None,
    negatives: Negatives = "global",
) -> jax.Array:
    """One of losses' two contrastive functions, in the form that `negatives` says, fp32 ().

    image, text [B E]; scales: logit_scale and, for some, logit_bias; mask bool [B]; group i32 [B]: texts of one group
    are right answers for each other's images. Any other `loss` is called as it is, on global arrays.
    Raises UserError for negatives="ring" with such a loss, and for an unknown form.
    """
    if negatives not in FORMS:
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(FORMS)}")
    if as_ring(len(image), negatives):
        if loss is softmax_contrastive:
            return ring.softmax(image, text, scales[0], group=group, present=mask)
        if loss is sigmoid_contrastive:
            bias = scales[1] if len(scales) > 1 else jnp.float32(0)
            return ring.sigmoid(image, text, scales[0], bias, group=group, present=mask)
        if negatives == "ring":
            raise UserError("negatives='ring' is for softmax_contrastive and sigmoid_contrastive; use 'plain'")
    targets = None if group is None else matching_targets(group)
    return loss(image, text, *scales, mask=mask, targets=targets)


def contrast_pairs(
    loss: Loss,
    images: Sequence[jax.Array],
    texts: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    *,
    masks: Sequence[jax.Array | None],
    group: jax.Array | None = None,
    negatives: Negatives = "global",
) -> list[jax.Array]:
    """`contrast` of several pairs of [B E] over one batch. As a ring of softmax they share one: one trip for all texts."""
    if not as_ring(len(images[0]), negatives) or loss is not softmax_contrastive:
        each = zip(images, texts, scales, masks, strict=True)
        return [contrast(loss, i, t, (s,), mask=m, group=group, negatives=negatives) for i, t, s, m in each]
    everyone = jnp.ones(len(images[0]), bool)
    present = jnp.stack([everyone if mask is None else mask for mask in masks])
    return list(
        ring.softmax_pairs(jnp.stack(images), jnp.stack(texts), jnp.stack(scales), group=group, present=present)
    )


def accuracy(
    image: jax.Array,
    text: jax.Array,
    mask: jax.Array | None = None,
    *,
    group: jax.Array | None = None,
    negatives: Negatives = "global",
) -> tuple[jax.Array, jax.Array]:
    """How often the nearest text of an image is its own (with `group`: of its group), and the nearest image of a text."""
    image, text = jax.lax.stop_gradient((image, text))
    if as_ring(len(image), negatives):
        return nearest.accuracy(image, text, group=group, present=mask)
    return contrastive_accuracy(image, text, mask, group)


Targets = Callable[[jax.Array], jax.Array]  # category i32 [B] -> f32 [B B]


@dataclass(frozen=True)
class Similarity:
    """Soft targets out of a symmetric table of how alike two categories are, [K K] from 0 to 1, rows as tuples.

    Raises UserError where the table is not square and symmetric.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        square = all(len(row) == len(self.table) for row in self.table)
        if not square or self.table != tuple(zip(*self.table, strict=True)):
            raise UserError("Similarity: the table must be square and symmetric")

    def __call__(self, category: jax.Array) -> jax.Array:
        """category i32 [B], indices of the table, to f32 [B B]."""
        table = jnp.asarray(self.table, jnp.float32)
        return table[category][:, category]


def bounded(log_scale: jax.Array) -> jax.Array:
    """log_scale clamped to [0, MAX_LOG_SCALE]; the gradient passes as if it were not clamped.

    The peer clamps the parameter itself before each use, which autograd does not see.
    """
    return log_scale + jax.lax.stop_gradient(jnp.clip(log_scale, 0.0, MAX_LOG_SCALE) - log_scale)


def label_aware(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    category: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    targets: Targets = matching_targets,
    negatives: Negatives = "global",
) -> jax.Array:
    """Symmetric cross-entropy whose targets are shared among examples of one category, fp32 ().

    Args:
        image, text: f32 [B E]. logit_scale: (), multiplies their inner products.
        category: i32 [B]; None makes every example a category of its own (CLIP's loss).
        mask: bool [B], pairs that are there.
        targets: category to f32 [B B], symmetric; equality by default.
        negatives: see fundax.contrast; the ring knows equality only, so that "global" with other `targets` is plain, and
            "local" is the mean over the shares of the devices that split the batch, which is what the peers train with.
    Raises:
        UserError: unknown negatives, another `targets` with the ring, a batch that does not divide.
    """
    if negatives not in NEGATIVES:
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(NEGATIVES)}")
    if negatives == "local":
        return _local(image, text, logit_scale, category, mask, targets)
    if category is None or targets is matching_targets:
        loss, scales = softmax_contrastive, (logit_scale,)
        return contrast(loss, image, text, scales, mask=mask, group=category, negatives=negatives)
    if negatives == "ring":
        raise UserError("negatives='ring' compares categories by equality; a similarity table needs 'plain'")
    return softmax_contrastive(image, text, logit_scale, mask=mask, targets=targets(category))


def _local(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    category: jax.Array | None,
    mask: jax.Array | None,
    targets: Targets,
) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    groups = 1 if mesh.empty else batch_parts(mesh)
    if len(image) % groups:
        raise UserError(f"negatives='local': a batch of {len(image)} does not divide by {groups} devices")

    def split(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else x.reshape(groups, -1, *x.shape[1:])

    def one(i: Any, t: Any, c: jax.Array | None, m: jax.Array | None) -> jax.Array:
        return label_aware(i, t, logit_scale, c, mask=m, targets=targets, negatives="plain")

    return jax.vmap(one)(split(image), split(text), split(category), split(mask)).mean()
