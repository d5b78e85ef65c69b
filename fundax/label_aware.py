"""Contrastive loss whose right answers are all pairs of one category, as FLAIR and KeepFIT train (arXiv:2308.07898, eq. 2-3).

Level 1, so that both objectives share it: what counts as the same, among whom, and a log scale kept in bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fundax import losses, ring
from fundax.errors import UserError
from fundax.mesh import batch_parts

MAX_LOG_SCALE = 4.6052  # FLAIR clamps its log scale to [0, this]
NEGATIVES = ("global", "ring", "local")
Negatives = Literal["global", "ring", "local"]
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
    targets: Targets = losses.matching_targets,
    negatives: Negatives = "global",
) -> jax.Array:
    """Symmetric cross-entropy whose targets are shared among examples of one category, fp32 ().

    Args:
        image, text: f32 [B E]. logit_scale: (), multiplies their inner products.
        category: i32 [B]; None makes every example a category of its own (CLIP's loss).
        mask: bool [B], pairs that are there.
        targets: category to f32 [B B], symmetric; equality by default.
        negatives: "global", all of the batch; "ring", the same with no B x B array (equality only); "local", the mean
            over the shares of the devices on the "data" axis, which is what the peers train with.
    Raises:
        UserError: unknown negatives, another `targets` with the ring, a batch that does not divide.
    """
    if negatives == "ring":
        if category is not None and targets is not losses.matching_targets:
            raise UserError("negatives='ring' compares categories by equality; a similarity table needs 'global'")
        return ring.softmax(image, text, logit_scale, group=category, present=mask)
    if negatives == "local":
        return _local(image, text, logit_scale, category, mask, targets)
    if negatives != "global":
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(NEGATIVES)}")
    soft = None if category is None else targets(category)
    return losses.softmax_contrastive(image, text, logit_scale, mask=mask, targets=soft)


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
        return label_aware(i, t, logit_scale, c, mask=m, targets=targets)

    return jax.vmap(one)(split(image), split(text), split(category), split(mask)).mean()


def nearest_is_right(
    image: jax.Array, text: jax.Array, category: jax.Array | None = None, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """How often the nearest text of an image is of its category, and the nearest image of a text; fp32 () each."""
    if category is None:
        return losses.contrastive_accuracy(image, text, mask)
    logits = losses.similarity(image, text)
    if mask is not None:
        logits = jnp.where(mask[None, :] & mask[:, None], logits, jnp.finfo(jnp.float32).min)
    weight = jnp.ones(len(logits)) if mask is None else mask.astype(jnp.float32)

    def rate(logits: jax.Array) -> jax.Array:
        right = (category[jnp.argmax(logits, axis=1)] == category).astype(jnp.float32)
        return (right * weight).sum() / jnp.maximum(weight.sum(), 1)

    return rate(logits), rate(logits.T)
