"""Contrastive losses of image and text features: softmax (CLIP), sigmoid (SigLIP) and label-aware (FLAIR, KeepFIT).

These are pure functions on global arrays. Under jit a batch that is sharded over any mesh gives the loss of the whole
batch. `negatives` chooses the examples to compare with, and the implementation:

    global   the whole batch; a ring above RING_ABOVE examples, "plain" up to that size
    plain    the whole batch, with arrays [B B]
    ring     the whole batch, as a ring without any [B B] array (losses/ring.py)
    local    only the examples on the same device, as data-parallel training without gathering does

The first three give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fundax.losses import ring
from fundax.losses.relations import Related, no_negatives
from fundax.optim import MAX_LOG_SCALE
from fundax.runtime.mesh import batch_axes, batch_parts
from fundax.types import UserError

_EXACT = jax.lax.Precision.HIGHEST


def spread(logits: jax.Array) -> jax.Array:
    """Shard logits [B B]: rows as the batch and columns over "model", if a mesh is set and its sizes divide B."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "model" not in mesh.axis_names:
        return logits
    if logits.shape[0] % batch_parts(mesh) or logits.shape[1] % mesh.shape["model"]:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec(batch_axes(mesh), "model"))


def similarity(image: jax.Array, text: jax.Array) -> jax.Array:
    """Inner products of all images [B E] with all texts [B E]; fp32 [B B] with a row per image."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    return spread(jnp.einsum("be,ce->bc", image, text, precision=_EXACT))


def _present(features: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Set the features of absent examples to zero, because a NaN there would reach the loss or its gradient as 0 * NaN."""
    return features if mask is None else jnp.where(mask[:, None], features, 0)


def _mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return values.mean()
    weight = mask.astype(values.dtype)
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1)


def _hide(logits: jax.Array, mask: jax.Array | None, axis: int = 1) -> jax.Array:
    """Set the logits of absent examples along `axis` to the lowest number, so that they have no probability."""
    if mask is None:
        return logits
    there = jnp.broadcast_to(jnp.expand_dims(mask, 1 - axis), logits.shape)
    return jnp.where(there, logits, jnp.finfo(jnp.float32).min)


def _without(logits: jax.Array, hidden: jax.Array | None) -> jax.Array:
    """Set the logits of the pairs in `hidden` bool [B B] to the lowest number."""
    return logits if hidden is None else jnp.where(hidden, jnp.finfo(jnp.float32).min, logits)


def _cross_entropy(
    logits: jax.Array,
    own: jax.Array,
    weights: jax.Array | None,
    mask: jax.Array | None,
    hidden: jax.Array | None,
    axis: int,
) -> jax.Array:
    """Mean over the other axis of logsumexp_i - sum_j w_ij logits_ij, with j along `axis`.

    weights are normalised along `axis`; without them w is the identity, and the sum over j is `own` [B]. log_softmax
    would be shorter, but its gradient stores two more arrays [B B]. hidden [B B]: pairs outside the logsumexp.
    """
    total = jax.nn.logsumexp(_without(_hide(logits, mask, axis), hidden), axis=axis)
    if weights is None:
        return _mean(total - own, mask)
    shares = weights if mask is None else weights * jnp.expand_dims(mask, 1 - axis).astype(weights.dtype)
    shares = shares / jnp.maximum(shares.sum(axis, keepdims=True), 1e-12)
    right = (shares * logits).sum(axis)
    return _mean(jnp.where(shares.sum(axis) > 0, total - right, 0.0), mask)


def softmax_contrastive(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array | None = None,
    *, mask: jax.Array | None = None, targets: jax.Array | None = None, hidden: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """CLIP's loss: mean of the image-to-text and text-to-image cross-entropies (arXiv:2103.00020, figure 3); fp32 ().

    Args:
        image, text: [B E], L2-normalised.
        logit_scale: (), multiplies the inner products.
        logit_bias: ignored, because a softmax does not depend on a constant. Accepted so that both losses have the same
            arguments.
        mask: bool [B], False for pairs that are neither examples nor negatives.
        targets: f32 [B B] >= 0, how much text j matches image i; normalised over texts for each image and over images
            for each text. None is the identity.
        hidden: bool [B B], True for pairs that are neither positives nor negatives; None: no pair (see relations.py).
    """
    image, text = (_present(x, mask).astype(jnp.float32) for x in (image, text))
    logits = similarity(logit_scale * image, text)  # scaling [B E] instead of [B B] saves an array
    own = jnp.diagonal(logits)  # the very numbers that are in the logsumexp, so that rounding cancels in a small loss
    to_text, to_image = (_cross_entropy(logits, own, targets, mask, hidden, axis) for axis in (1, 0))
    return 0.5 * (to_text + to_image)


def sigmoid_contrastive(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array | float = 0.0,
    *, mask: jax.Array | None = None, targets: jax.Array | None = None, hidden: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """SigLIP's loss: -sum_ij log sigmoid(z_ij (scale x_i.y_j + bias)) / B, z = 1 for a match, else -1; fp32 ().

    Arguments are those of softmax_contrastive. Text j matches image i where targets > 0, and the sum is divided by the
    number of pairs in the mask. Source: arXiv:2303.15343, algorithm 1.
    """
    logits = logit_scale * similarity(_present(image, mask), _present(text, mask)) + logit_bias
    match = jnp.eye(len(logits), dtype=bool) if targets is None else targets > 0
    terms = -jax.nn.log_sigmoid(jnp.where(match, logits, -logits))
    terms = terms if hidden is None else jnp.where(hidden, 0.0, terms)
    if mask is None:
        return terms.sum() / len(terms)
    pairs = mask[:, None] & mask[None, :]
    return (terms * pairs).sum() / jnp.maximum(mask.sum(), 1)


def matching_targets(category: jax.Array) -> jax.Array:
    """Targets f32 [B B] from category i32 [B]: 1 where two examples have the same category."""
    return (category[:, None] == category[None, :]).astype(jnp.float32)


def contrastive_accuracy(
    image: jax.Array,
    text: jax.Array,
    mask: jax.Array | None = None,
    group: jax.Array | None = None,
    hidden: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Image-to-text and text-to-image accuracy: the fraction of examples whose own pair is the nearest; fp32 () each.

    `image` and `text` are [B E]. With `group` i32 [B], a nearest example of the same group is correct. The pairs in
    `hidden` bool [B B] are not compared.
    """
    logits = _without(similarity(_present(image, mask), _present(text, mask)), hidden)
    group = jnp.arange(len(logits)) if group is None else group
    to_text = (group[jnp.argmax(_hide(logits, mask), axis=1)] == group).astype(jnp.float32)
    to_image = (group[jnp.argmax(_hide(logits.T, mask), axis=1)] == group).astype(jnp.float32)
    return _mean(to_text, mask), _mean(to_image, mask)


Negatives = Literal["global", "plain", "ring", "local"]
Loss = Callable[..., jax.Array]
RING_ABOVE = (
    8192  # examples; the dense logits of a larger batch take too much memory (docs/measurements/performance.md)
)
FORMS = ("global", "plain", "ring")
NEGATIVES = (*FORMS, "local")


def as_ring(batch: int, negatives: Negatives) -> bool:
    """Whether a loss over a batch of this size is computed as a ring."""
    return negatives == "ring" or (negatives == "global" and batch > RING_ABOVE)


def contrast(
    loss: Loss,
    image: jax.Array,
    text: jax.Array,
    scales: Sequence[jax.Array],
    *,
    mask: jax.Array | None = None,
    group: jax.Array | None = None,
    related: Related = (),
    negatives: Negatives = "global",
) -> jax.Array:
    """Compute `loss` with the implementation that `negatives` names; fp32 ().

    Args:
        loss: softmax_contrastive, sigmoid_contrastive, or another function with the same arguments, which has no ring.
        image, text: [B E].
        scales: logit_scale and, if the loss has one, logit_bias.
        mask: bool [B], see softmax_contrastive.
        group: i32 [B]; texts of one group match each other's images.
        related: rows that are not negatives of each other, see relations.py.
        negatives: global, plain or ring.

    Raises UserError for unknown `negatives`, and for "ring" with a loss that has no ring.
    """
    if negatives not in FORMS:
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(FORMS)}")
    if as_ring(len(image), negatives):
        if loss is softmax_contrastive:
            return ring.softmax(image, text, scales[0], group=group, related=related, present=mask)
        if loss is sigmoid_contrastive:
            bias = scales[1] if len(scales) > 1 else jnp.float32(0)
            return ring.sigmoid(image, text, scales[0], bias, group=group, related=related, present=mask)
        if negatives == "ring":
            raise UserError("negatives='ring' is for softmax_contrastive and sigmoid_contrastive; use 'plain'")
    options = {} if group is None else {"targets": matching_targets(group)}
    options |= {"hidden": no_negatives(group, related)} if related else {}
    return loss(image, text, *scales, mask=mask, **options)


def contrast_pairs(
    loss: Loss,
    images: Sequence[jax.Array],
    texts: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    *,
    masks: Sequence[jax.Array | None],
    group: jax.Array | None = None,
    related: Related = (),
    negatives: Negatives = "global",
) -> list[jax.Array]:
    """`contrast` of several image-text pairs of the same batch. A softmax ring passes all their texts around together."""
    if not as_ring(len(images[0]), negatives) or loss is not softmax_contrastive:
        each = zip(images, texts, scales, masks, strict=True)
        options: dict[str, Any] = {"group": group, "related": related, "negatives": negatives}
        return [contrast(loss, i, t, (s,), mask=m, **options) for i, t, s, m in each]
    everyone = jnp.ones(len(images[0]), bool)
    present = jnp.stack([everyone if mask is None else mask for mask in masks])
    pairs = jnp.stack(images), jnp.stack(texts), jnp.stack(scales)
    return list(ring.softmax_pairs(*pairs, group=group, related=related, present=present))


def accuracy(
    image: jax.Array,
    text: jax.Array,
    mask: jax.Array | None = None,
    *,
    group: jax.Array | None = None,
    related: Related = (),
    negatives: Negatives = "global",
) -> tuple[jax.Array, jax.Array]:
    """contrastive_accuracy with the implementation that `negatives` names, without a gradient."""
    image, text = jax.lax.stop_gradient((image, text))
    if as_ring(len(image), negatives):
        return ring.accuracy(image, text, group=group, related=related, present=mask)
    return contrastive_accuracy(image, text, mask, group, no_negatives(group, related))


Targets = Callable[[jax.Array], jax.Array]  # category i32 [B] -> f32 [B B]


@dataclass(frozen=True)
class Similarity:
    """Soft targets from a symmetric table of similarities of categories: rows of a [K K] matrix, from 0 to 1.

    Raises UserError if the table is not square and symmetric.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        square = all(len(row) == len(self.table) for row in self.table)
        if not square or self.table != tuple(zip(*self.table, strict=True)):
            raise UserError("Similarity: the table must be square and symmetric")

    def __call__(self, category: jax.Array) -> jax.Array:
        """Targets f32 [B B] for category i32 [B], indices into the table."""
        table = jnp.asarray(self.table, jnp.float32)
        return table[category][:, category]


def bounded(log_scale: jax.Array) -> jax.Array:
    """Clamp log_scale to [0, MAX_LOG_SCALE] with an identity gradient (straight-through).

    FLAIR clamps the parameter itself before each use, which autograd does not see.
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
    related: Related = (),
    negatives: Negatives = "global",
) -> jax.Array:
    """FLAIR's loss: contrastive cross-entropy in which all pairs with the same category are positives; fp32 ().

    Args:
        image, text: f32 [B E].
        logit_scale: (), multiplies the inner products.
        category: i32 [B]; None gives every example its own category, which is CLIP's loss.
        mask: bool [B], see softmax_contrastive.
        targets: maps categories to f32 [B B], symmetric. The default compares for equality, the only form the ring has:
            with other targets "global" means "plain".
        related: rows that are not negatives of each other, see relations.py.
        negatives: see the top of this file. FLAIR and KeepFIT train with "local", the mean of each device's own loss.

    Raises:
        UserError: unknown negatives, other targets with the ring, or a batch that is not divisible by the devices.
    Source: arXiv:2308.07898, equations 2 and 3.
    """
    if negatives not in NEGATIVES:
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(NEGATIVES)}")
    if negatives == "local":

        def one(i: Any, t: Any, c: jax.Array | None, m: jax.Array | None, r: Related) -> jax.Array:
            return label_aware(i, t, logit_scale, c, mask=m, targets=targets, related=r, negatives="plain")

        return mean_over_devices(one, image, text, category, mask, related)
    if category is None or targets is matching_targets:
        loss, scales = softmax_contrastive, (logit_scale,)
        options: dict[str, Any] = {"group": category, "related": related, "negatives": negatives}
        return contrast(loss, image, text, scales, mask=mask, **options)
    if negatives == "ring":
        raise UserError("negatives='ring' compares categories by equality; a similarity table needs 'plain'")
    shares = targets(category)
    hidden = None if not related else no_negatives(None, related) & (shares == 0)
    return softmax_contrastive(image, text, logit_scale, mask=mask, targets=shares, hidden=hidden)


def mean_over_devices(loss: Callable[..., jax.Array], *arrays: Any) -> jax.Array:
    """Mean of `loss` over each device's share of the arrays [B ...]: negatives="local". None and () are passed on.

    Raises UserError if the batch is not divisible by the number of devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    groups = 1 if mesh.empty else batch_parts(mesh)
    size = next(len(x) for x in arrays if x is not None)
    if size % groups:
        raise UserError(f"negatives='local': a batch of {size} does not divide by {groups} devices")
    shares = jax.tree.map(lambda x: x.reshape(groups, size // groups, *x.shape[1:]), arrays)
    return jax.vmap(loss)(*shares).mean()
