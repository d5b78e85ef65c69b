"""Contrastive loss whose right answers are all pairs of one category, as FLAIR and KeepFIT train (arXiv:2308.07898, eq. 2-3).

Level 1, so that both objectives share it: what counts as the same, among whom, and a log scale kept in bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fundax import losses
from fundax.contrast import NEGATIVES, Negatives, contrast
from fundax.errors import UserError
from fundax.mesh import batch_parts

MAX_LOG_SCALE = 4.6052  # FLAIR clamps its log scale to [0, this]
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
        negatives: see fundax.contrast; the ring knows equality only, so that "global" with other `targets` is plain, and
            "local" is the mean over the shares of the devices that split the batch, which is what the peers train with.
    Raises:
        UserError: unknown negatives, another `targets` with the ring, a batch that does not divide.
    """
    if negatives not in NEGATIVES:
        raise UserError(f"negatives is {negatives!r}; expected one of {', '.join(NEGATIVES)}")
    if negatives == "local":
        return _local(image, text, logit_scale, category, mask, targets)
    if category is None or targets is losses.matching_targets:
        loss, scales = losses.softmax_contrastive, (logit_scale,)
        return contrast(loss, image, text, scales, mask=mask, group=category, negatives=negatives)
    if negatives == "ring":
        raise UserError("negatives='ring' compares categories by equality; a similarity table needs 'plain'")
    return losses.softmax_contrastive(image, text, logit_scale, mask=mask, targets=targets(category))


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
