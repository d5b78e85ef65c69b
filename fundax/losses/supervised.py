"""Losses of labelled data, as pure functions of logits and targets; what is not labelled counts nothing."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fundax.types import Array


def class_targets(label: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """i32 [B] to f32 [B K]: 1 - smoothing at the label and smoothing / K everywhere (arXiv:1512.00567, section 7).

    A label outside 0 .. K-1 (not labelled) is a row of NaN.
    """
    hot = jax.nn.one_hot(label, classes, dtype=jnp.float32) * (1 - smoothing) + smoothing / classes
    known = (label >= 0) & (label < classes)
    return jnp.where(known[:, None], hot, jnp.nan)


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: Sequence[float] = (), focal: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy f32 () of logits [B K] to probability vectors [B K]; rows with NaN are left out of the mean.

    weights: of classes, (): all 1; the mean is by weight, as torch's. focal: the exponent gamma of (1 - p)^gamma
    (arXiv:1708.02002, eq. 4, without alpha).
    """
    known = ~jnp.isnan(targets).any(1)
    targets = jnp.where(known[:, None], targets, 0.0)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if focal:
        log_p = log_p * (1 - jnp.exp(log_p)) ** focal
    by_class = jnp.asarray(weights or (1.0,) * logits.shape[1], jnp.float32)[None]
    total = -(targets * by_class * log_p).sum()
    return total / jnp.maximum((targets * by_class).sum(), 1e-12)


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: Sequence[float] = (), focal: float = 0.0
) -> jax.Array:
    """Sigmoid cross-entropy f32 (), the mean over labelled cells of logits and targets [B K] (NaN: not labelled).

    weights: of the positives of each label (torch's pos_weight). focal: as in `cross_entropy`.
    """
    known = ~jnp.isnan(targets)
    y = jnp.where(known, targets, 0.0)
    z = logits.astype(jnp.float32)
    positive = jnp.asarray(weights or (1.0,) * logits.shape[1], jnp.float32)[None]
    log_p, log_q = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    p_wrong, q_wrong = (jnp.exp(log_q) ** focal, jnp.exp(log_p) ** focal) if focal else (1.0, 1.0)
    cell = -(positive * y * p_wrong * log_p + (1 - y) * q_wrong * log_q)
    return jnp.where(known, cell, 0.0).sum() / jnp.maximum(known.sum(), 1)


def smooth_l1(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Half the square below an error of 1, else the error less a half; the mean over known cells [B K] (NaN: not known)."""
    known = ~jnp.isnan(target)
    error = jnp.abs(predicted - jnp.where(known, target, 0.0))
    cell = jnp.where(error < 1, 0.5 * error**2, error - 0.5)
    return jnp.where(known, cell, 0.0).sum() / jnp.maximum(known.sum(), 1)


# VisionFM's thirteen: five grades (healthy, DR 1-4) that are one question, and eight findings that are each their own.
GRADES = 5

LAYOUT = (
    *("healthy", "DR-1", "DR-2", "DR-3", "DR-4", "diabetic retinopathy", "glaucoma", "AMD", "cataract"),
    *("hypertensive retinopathy", "retinal vein occlusion", "myopia", "retinal detachment"),
)

_RARE = 9  # hypertensive retinopathy counts five times


def graded_loss(logits: jax.Array, labels: jax.Array, grades: int = GRADES, weights: Sequence[float] = ()) -> jax.Array:
    """5 CE(first `grades` logits) + the sum of each other column's BCE, f32 (); logits and labels [B K].

    The first columns of the labels are a probability vector; a row of zeros there has no grade, and counts 0 in a mean
    over all rows. NaN: not labelled, left out of its column's mean (grades: as no grade). weights: of the other columns;
    () is VisionFM's, 1 each and 5 for hypertensive retinopathy, where there are 13 columns.
    Source: github.com/ABILab-CUHK/VisionFM, the multi-modality decoder.
    """
    if not weights:
        weights = [
            5.0 if logits.shape[1] == len(LAYOUT) and k == _RARE else 1.0 for k in range(grades, logits.shape[1])
        ]
    z = logits.astype(jnp.float32)
    vector = jnp.where(jnp.isnan(labels[:, :grades]), 0.0, labels[:, :grades])
    graded = -(vector * jax.nn.log_softmax(z[:, :grades])).sum(1).mean() if grades else jnp.float32(0)
    y, known = labels[:, grades:], ~jnp.isnan(labels[:, grades:])
    y = jnp.where(known, y, 0.0)
    cell = -(y * jax.nn.log_sigmoid(z[:, grades:]) + (1 - y) * jax.nn.log_sigmoid(-z[:, grades:]))
    columns = jnp.where(known, cell, 0.0).sum(0) / jnp.maximum(known.sum(0), 1)
    return 5 * graded + (columns * jnp.asarray(weights, jnp.float32)).sum()


def inverse_frequencies(labels: Array, classes: int) -> tuple[float, ...]:
    """Weights of classes by labels i32 [N]: N / (K n_k), 0 for a class without rows; or of the positives of several labels
    f32 [N K]: negatives by positives, 1 where one of the two is missing.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        yes, no = (labels == 1).sum(0), (labels == 0).sum(0)
        return tuple(float(n / y) if y and n else 1.0 for y, n in zip(yes, no, strict=True))
    counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=classes)
    present = int((counts > 0).sum())
    return tuple(float(counts.sum() / (present * n)) if n else 0.0 for n in counts)
