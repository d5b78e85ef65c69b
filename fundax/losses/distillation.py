"""Losses of self-distillation: a student's views matched with the prototypes a teacher gives to other views.

Pure functions on global arrays, so means are over the whole batch on any mesh. Logits are fp32; q numbers the teacher's
crops, v the student's, which begin with the same ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EXACT = jax.lax.Precision.HIGHEST


def centered(logits: jax.Array, center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """The teacher's targets softmax((t - center) / temperature) (arXiv:2104.14294, section 3.1); [... K], center [K]."""
    shape = (1,) * (logits.ndim - 1) + (-1,)
    return jax.nn.softmax((logits - center.reshape(shape)) / temperature, axis=-1)


def sinkhorn(logits: jax.Array, temperature: jax.Array | float, rounds: int = 3) -> jax.Array:
    """Targets by Sinkhorn-Knopp (arXiv:2006.09882, section 3.1): rows are distributions, prototypes about equally used.

    logits [n K] of all examples of the global batch. In the logarithm, where sharp temperatures do not overflow.
    """
    log_q = logits / temperature
    for _ in range(rounds):
        log_q = log_q - jax.scipy.special.logsumexp(log_q, axis=0, keepdims=True)
        log_q = log_q - jax.scipy.special.logsumexp(log_q, axis=1, keepdims=True)
    return jnp.exp(log_q)


def update_center(center: jax.Array, logits: jax.Array, momentum: float) -> jax.Array:
    """The running mean of the teacher's raw logits (arXiv:2104.14294, eq. 4); center [K], logits [... K]."""
    mean = logits.mean(tuple(range(logits.ndim - 1)))
    return momentum * center + (1 - momentum) * mean


def token_loss(teacher: jax.Array, student: jax.Array, temperature: float = 0.1) -> jax.Array:
    """Mean cross-entropy over all pairs of a teacher's crop and another crop of the student's (arXiv:2104.14294, eq. 3).

    teacher: probabilities [B q K]; student: logits [B v K], v >= q, both beginning with the same crops. Returns fp32 ().
    """
    log_p = jax.nn.log_softmax(student / temperature, axis=-1)
    pairs = -jnp.einsum("bqk,bvk->qv", teacher, log_p, precision=_EXACT) / len(teacher)
    other = ~jnp.eye(*pairs.shape, dtype=bool)
    return (pairs * other).sum() / other.sum()


def patch_loss(teacher: jax.Array, student: jax.Array, masked: jax.Array, temperature: float = 0.1) -> jax.Array:
    """Cross-entropy of each crop's masked patches, mean over them, then over crops and images (arXiv:2111.07832, eq. 2).

    teacher: probabilities [B q N K]; student: logits [B q N K]; masked bool [B q N]. A crop without masked patches
    counts as 0, as the peer has it. Returns fp32 ().
    """
    log_p = jax.nn.log_softmax(student / temperature, axis=-1)
    each = -(teacher * log_p).sum(-1)  # [B q N]
    weight = masked.astype(each.dtype)
    return ((each * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1)).mean()


def koleo(features: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """-mean log of the distance to the nearest other unit vector: spreads features [n D] (arXiv:1806.03198, eq. 3)."""
    x = features.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), epsilon))
    near = jnp.einsum("nd,md->nm", x, x, precision=_EXACT) - 2 * jnp.eye(len(x))
    nearest = x[jax.lax.stop_gradient(jnp.argmax(near, axis=1))]
    distance = jnp.sqrt(((x - nearest) ** 2).sum(-1) + epsilon)
    return -jnp.log(distance + epsilon).mean()


def entropy(probabilities: jax.Array) -> jax.Array:
    """Mean entropy in nats of distributions [... K]; 0 is one prototype for sure, log K is no knowledge."""
    p = probabilities
    return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1).mean()
