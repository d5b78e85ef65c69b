"""Attention over the views of a visit: which of its images a feature of an eye or of the visit is made of."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import l2_normalize, uniform

EYES = 3  # left, right, unknown
NEVER = -1e30  # score of a view that is not in the mask; finite, because inf - inf is NaN


class Views(NamedTuple):
    """The views of each visit in V places, with zeros in places without a view."""

    features: jax.Array  # f32 [B V E]
    present: jax.Array  # bool [B V]
    modality: jax.Array  # i32 [B V]
    eye: jax.Array  # i32 [B V]


def places(row: jax.Array, slot: jax.Array, rows: int, most: int) -> jax.Array:
    """The image slot of each place i32 [B V]: slot s of row b is at [b, s]; N where there is none.

    row, slot i32 [N]; row is negative for an empty slot. rows, most: B and V.
    """
    count = len(row)
    here = jnp.where((row >= 0) & (slot < most), row * most + slot, rows * most)
    table = jnp.full(rows * most, count, jnp.int32).at[here].set(jnp.arange(count, dtype=jnp.int32), mode="drop")
    return table.reshape(rows, most)


def placed(x: jax.Array, at: jax.Array) -> jax.Array:
    """The values [N ...] of the slots in their places [B V ...], 0 where there is none."""
    return jnp.asarray(x).at[at].get(mode="fill", fill_value=0)


class ViewAttention(nn.Module):
    """Scores f32 [B V H] of views, by their features, modalities and eyes, for `pooled`.

    The scores start at 0, so a pooled feature starts as the mean. Gated by one hidden layer as in arXiv:1802.04712, section
    2.4, without its sigmoid.
    """

    kinds: int
    hidden: int = 64
    heads: int = 4

    @nn.compact
    def __call__(self, views: Views) -> jax.Array:
        width = views.features.shape[-1]
        kernel = self.param("kernel", uniform(width**-0.5), (width, self.hidden), jnp.float32)
        kinds = self.param("modality", nn.initializers.normal(0.02), (self.kinds, self.hidden), jnp.float32)
        eyes = self.param("eye", nn.initializers.normal(0.02), (EYES, self.hidden), jnp.float32)
        out = self.param("out", nn.initializers.zeros, (self.hidden, self.heads), jnp.float32)
        x = l2_normalize(views.features) @ kernel + kinds[views.modality] + eyes[views.eye]
        return jnp.tanh(x) @ out


def pooled(features: jax.Array, scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Means of the features [B V E] of the views in each mask bool [... B V], weighted by softmax(scores [B V H]); [... B E].

    Each of the H heads weighs its share of the E numbers. The feature of a single view is returned as it is, to the last
    bit; without any view it is 0.
    """
    there = mask[..., None]
    scores = jnp.where(there, jnp.broadcast_to(scores, (*mask.shape, scores.shape[-1])), NEVER)
    weights = jnp.where(there, jnp.exp(scores - jax.lax.stop_gradient(scores.max(-2, keepdims=True))), 0.0)
    weights = weights / jnp.maximum(weights.sum(-2, keepdims=True), 1e-30)
    parts = features.reshape(*features.shape[:2], scores.shape[-1], -1)  # [B V H E/H]
    found = jnp.einsum("...bvh,bvhe->...bhe", weights, parts, precision=jax.lax.Precision.HIGHEST)
    return found.reshape(*found.shape[:-2], -1)
