"""Retrieval accuracy within a batch as one trip round the ring: what losses.contrastive_accuracy gives, without a B x B array."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fundax.losses.ring import NEVER, Ring, Side, block_logits, go_round, make_ring, mapped, paired
from fundax.runtime.mesh import BATCH_AXES


class Best(NamedTuple):
    """The nearest so far, and its group."""

    cosine: jax.Array  # [R b]
    group: jax.Array  # i32 [R b]

    def add(self, cosine: jax.Array, group: jax.Array, axis: int) -> Best:
        """cosine [R r b]; group [.] of the ones along `axis`."""
        fresh, top = group[jnp.argmax(cosine, axis)], cosine.max(axis)
        return Best(jnp.maximum(self.cosine, top), jnp.where(top > self.cosine, fresh, self.group))


def _nearest(ring: Ring, image: Side, text: Side) -> tuple[jax.Array, jax.Array]:
    one, none = jnp.ones(image.features.shape[0]), jnp.zeros(image.features.shape[0])

    def visit(image: Side, text: Side, rows: Best, columns: Best) -> tuple[Best, Best]:
        assert image.group is not None and text.group is not None
        cosine = block_logits(image, text, one, none)
        return rows.add(cosine, text.group, -1), columns.add(cosine, image.group, -2)

    def nobody(side: Side) -> Best:
        return Best(side.present * 0.0 + 2 * NEVER, side.present * 0 - 1)

    rows, columns = go_round(ring, visit, image, text, nobody(image), nobody(text))
    count = jnp.maximum(ring.total(image.present.sum(-1).astype(jnp.float32)), 1)
    assert image.group is not None
    own = image.group[None]  # a row's image and text are of one group
    right = [(best.group == own) & image.present for best in (rows, columns)]
    to_text, to_image = (ring.total(hits.sum(-1).astype(jnp.float32)) / count for hits in right)
    return to_text, to_image


def accuracy(
    image: jax.Array,
    text: jax.Array,
    *,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    axes: tuple[str, ...] = BATCH_AXES,
    rows: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """How often the nearest text of an image is of its own group (its own text, without `group`), and the reverse.

    As losses.contrastive_accuracy, without a B x B array: one trip round the ring. image, text [B E]; fp32 ()."""
    image, text, there = paired(image[None], text[None], None if present is None else present[None])
    ring = make_ring(image.shape[1], 1, axes, rows)
    group = jnp.arange(image.shape[1], dtype=jnp.int32) if group is None else group
    sides = Side(image, group, there), Side(text, group, there)
    to_text, to_image = mapped(ring, _nearest, sides, (), (P(), P()))
    return to_text[0], to_image[0]
