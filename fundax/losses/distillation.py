"""Self-distillation losses of DINO, iBOT and DINOv2: the student predicts the teacher's prototype assignments.

Arrays are global, so means are over the whole batch on any mesh. Logits are fp32. The teacher sees q crops and the
student v >= q; the first q crops are the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EXACT = jax.lax.Precision.HIGHEST


def centered(logits: jax.Array, center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Teacher targets softmax((logits - center) / temperature) (arXiv:2104.14294, section 3.1). # [... K], center [K]"""
    shape = (1,) * (logits.ndim - 1) + (-1,)
    return jax.nn.softmax((logits - center.reshape(shape)) / temperature, axis=-1)


def sinkhorn(logits: jax.Array, temperature: jax.Array | float, rounds: int = 3) -> jax.Array:
    """Teacher targets by Sinkhorn-Knopp (arXiv:2006.09882, section 3.1), which uses all prototypes about equally often.

    `logits` [n K] are those of the global batch. Every row of the result is a distribution. The computation is in log
    space, so that low temperatures do not overflow.
    """
    log_q = logits / temperature
    for _ in range(rounds):
        log_q = log_q - jax.scipy.special.logsumexp(log_q, axis=0, keepdims=True)
        log_q = log_q - jax.scipy.special.logsumexp(log_q, axis=1, keepdims=True)
    return jnp.exp(log_q)


def update_center(center: jax.Array, logits: jax.Array, momentum: float) -> jax.Array:
    """Moving average of the teacher's logits (arXiv:2104.14294, equation 4). # center [K], logits [... K]"""
    mean = logits.mean(tuple(range(logits.ndim - 1)))
    return momentum * center + (1 - momentum) * mean


def token_loss(teacher: jax.Array, student: jax.Array, temperature: float = 0.1) -> jax.Array:
    """Cross-entropy averaged over all pairs of a teacher crop and a different student crop; fp32 ().

    teacher: probabilities [B q K]; student: logits [B v K]. Source: arXiv:2104.14294, equation 3.
    """
    log_p = jax.nn.log_softmax(student / temperature, axis=-1)
    pairs = -jnp.einsum("bqk,bvk->qv", teacher, log_p, precision=_EXACT) / len(teacher)
    other = ~jnp.eye(*pairs.shape, dtype=bool)
    return (pairs * other).sum() / other.sum()


def patch_loss(teacher: jax.Array, student: jax.Array, masked: jax.Array, temperature: float = 0.1) -> jax.Array:
    """Cross-entropy averaged over the masked patches of each crop, then over crops and images; fp32 ().

    teacher: probabilities [B q N K]; student: logits [B q N K]; masked bool [B q N]. A crop without masked patches
    contributes 0, as in VisionFM's code. Source: arXiv:2111.07832, equation 2.
    """
    log_p = jax.nn.log_softmax(student / temperature, axis=-1)
    each = -(teacher * log_p).sum(-1)  # [B q N]
    weight = masked.astype(each.dtype)
    return ((each * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1)).mean()


def koleo(features: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """KoLeo regulariser, which spreads features [n D]: -mean log distance to the nearest neighbour; fp32 ().

    Features are normalised first. Source: arXiv:1806.03198, equation 3.
    """
    x = features.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), epsilon))
    near = jnp.einsum("nd,md->nm", x, x, precision=_EXACT) - 2 * jnp.eye(len(x))
    nearest = x[jax.lax.stop_gradient(jnp.argmax(near, axis=1))]
    distance = jnp.sqrt(((x - nearest) ** 2).sum(-1) + epsilon)
    return -jnp.log(distance + epsilon).mean()


def entropy(probabilities: jax.Array) -> jax.Array:
    """Mean entropy of distributions [... K] in nats: 0 for a one-hot distribution, log K for a uniform one."""
    p = probabilities
    return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1).mean()
