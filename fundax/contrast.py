"""Which form of a contrastive loss is computed: plain on global arrays, or a ring without any B x B array.

Both give the same numbers. Objectives say whose negatives they want and call the functions here.

    global   all of the batch; a ring above RING_ABOVE examples, plain up to it
    plain    all of the batch, on global arrays: [B B] arrays, the oracle of the ring
    ring     all of the batch, as a ring
    local    each device's own share (the objectives that offer it do it themselves)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from fundax import losses, nearest, ring
from fundax.errors import UserError

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
        if loss is losses.softmax_contrastive:
            return ring.softmax(image, text, scales[0], group=group, present=mask)
        if loss is losses.sigmoid_contrastive:
            bias = scales[1] if len(scales) > 1 else jnp.float32(0)
            return ring.sigmoid(image, text, scales[0], bias, group=group, present=mask)
        if negatives == "ring":
            raise UserError("negatives='ring' is for softmax_contrastive and sigmoid_contrastive; use 'plain'")
    targets = None if group is None else losses.matching_targets(group)
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
    if not as_ring(len(images[0]), negatives) or loss is not losses.softmax_contrastive:
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
    return losses.contrastive_accuracy(image, text, mask, group)
