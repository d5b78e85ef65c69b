"""Softmax attention with a choice of implementation: plain JAX, XLA's or cuDNN's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fundax.types import UserError

Path = Literal["plain", "xla", "cudnn"]
PATHS = ("plain", "xla", "cudnn")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    path: Path = "plain",
) -> jax.Array:
    """Softmax attention (arXiv:1706.03762, equation 1) with logits and softmax in fp32; [B n H d] in v's dtype.

    Args:
        q: [B n H d].
        k, v: [B N H d].
        mask: bool, broadcastable to [B H n N]; True where a query may attend.
        drop: applied to the attention weights; always computed by the plain path, the only one that has the weights.
        path: "plain" is two products with a softmax in between; "xla" and "cudnn" are the implementations of
            jax.nn.dot_product_attention. cuDNN stores no [n N] array, and needs an NVIDIA GPU and bfloat16.

    Raises UserError for an unknown path, and for cuDNN without a GPU or bfloat16.
    """
    if path not in PATHS:
        raise UserError(f"attention is {path!r}; expected one of {', '.join(PATHS)}")
    if path == "cudnn" and (jax.default_backend() != "gpu" or q.dtype != jnp.bfloat16):
        raise UserError(
            f"attention 'cudnn' needs an NVIDIA GPU and bfloat16; this is {jax.default_backend()} with {q.dtype}"
        )
    if path == "plain" or drop is not None:
        return _plain(q, k, v, mask, drop)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=path)


def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    # Heads first: XLA's products of batches are fast on CPUs only in this order of axes.
    q, k, v = (y.transpose(0, 2, 1, 3) for y in (q * (q.shape[-1] ** -0.5), k, v))  # [B H n d]
    heads = ((0, 1), (0, 1))
    logits = jax.lax.dot_general(q, k, (((3,), (3,)), heads), preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(jnp.broadcast_to(mask, logits.shape), logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # [B H n N]
    weights = weights if drop is None else drop(weights)
    return jax.lax.dot_general(weights, v, (((3,), (2,)), heads)).transpose(0, 2, 1, 3)
