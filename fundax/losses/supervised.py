"""Losses for labelled data: cross-entropy, focal, smooth L1 and VisionFM's graded loss. Unlabelled entries are ignored."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fundax.types import Array


def class_targets(label: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """One-hot targets f32 [B K] of labels i32 [B], with label smoothing (arXiv:1512.00567, section 7).

    A label outside 0 .. K-1 means unlabelled and gives a row of NaN.
    """
    hot = jax.nn.one_hot(label, classes, dtype=jnp.float32) * (1 - smoothing) + smoothing / classes
    known = (label >= 0) & (label < classes)
    return jnp.where(known[:, None], hot, jnp.nan)


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: Sequence[float] = (), focal: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of logits [B K] and target distributions [B K]; f32 ().

    Args:
        logits, targets: [B K]; rows with NaN in the targets are ignored.
        weights: a weight for each class, or () for equal weights. The result is a weighted mean, as in PyTorch.
        focal: exponent gamma of the factor (1 - p)^gamma (arXiv:1708.02002, equation 4, without alpha).
    """
    known = ~jnp.isnan(targets).any(1)
    targets = jnp.where(known[:, None], targets, 0.0)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if focal:
        rest = 1 - jnp.exp(log_p)
        # where p rounds to 1, the derivative of rest ** focal would be infinite for focal < 1
        log_p = jnp.where(rest > 0, log_p * jnp.where(rest > 0, rest, 1.0) ** focal, 0.0)
    by_class = jnp.asarray(weights or (1.0,) * logits.shape[1], jnp.float32)[None]
    total = -(targets * by_class * log_p).sum()
    return total / jnp.maximum((targets * by_class).sum(), 1e-12)


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: Sequence[float] = (), focal: float = 0.0
) -> jax.Array:
    """Sigmoid cross-entropy averaged over the labelled entries; f32 ().

    Args:
        logits, targets: [B K]; targets are 0, 1 or NaN for unlabelled.
        weights: weight of the positives of each column (PyTorch's pos_weight), or ().
        focal: the focusing exponent, as in cross_entropy.
    """
    known = ~jnp.isnan(targets)
    y = jnp.where(known, targets, 0.0)
    z = logits.astype(jnp.float32)
    positive = jnp.asarray(weights or (1.0,) * logits.shape[1], jnp.float32)[None]
    log_p, log_q = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    p_wrong, q_wrong = jnp.exp(focal * log_q), jnp.exp(focal * log_p)  # 1 without focal
    cell = -(positive * y * p_wrong * log_p + (1 - y) * q_wrong * log_q)
    return jnp.where(known, cell, 0.0).sum() / jnp.maximum(known.sum(), 1)


def smooth_l1(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Smooth L1 loss averaged over the known entries of target [B K] (NaN if unknown); f32 ().

    e^2 / 2 for an error e below 1, else |e| - 1/2.
    """
    known = ~jnp.isnan(target)
    error = jnp.abs(predicted - jnp.where(known, target, 0.0))
    cell = jnp.where(error < 1, 0.5 * error**2, error - 0.5)
    return jnp.where(known, cell, 0.0).sum() / jnp.maximum(known.sum(), 1)


# VisionFM's thirteen labels: one grading with five classes (healthy, DR 1-4), and eight independent findings.
GRADES = 5

LAYOUT = (
    *("healthy", "DR-1", "DR-2", "DR-3", "DR-4", "diabetic retinopathy", "glaucoma", "AMD", "cataract"),
    *("hypertensive retinopathy", "retinal vein occlusion", "myopia", "retinal detachment"),
)

_RARE = 9  # hypertensive retinopathy, which VisionFM weights five times


def graded_loss(logits: jax.Array, labels: jax.Array, grades: int = GRADES, weights: Sequence[float] = ()) -> jax.Array:
    """VisionFM's multi-modality loss: 5 CE(grades) plus the sum of the other columns' binary cross-entropies; f32 ().

    Args:
        logits: [B K].
        labels: [B K]. The first `grades` columns are a distribution, or all zero (or NaN) for a row without a grade,
            which contributes 0 to the mean over all rows. The other columns are 0, 1 or NaN; NaN is excluded from the
            mean of its column.
        grades: number of columns with grades.
        weights: a weight for each other column. () gives VisionFM's weights: 5 for hypertensive retinopathy and 1 for
            the rest if there are 13 columns, otherwise 1 for all.
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
    """Class weights inversely proportional to frequency, for the argument `weights` of the losses.

    For labels i32 [N], the weight of a class is N / (K n_k), where K is the number of classes that occur, and 0 for a
    class that does not occur. For labels f32 [N K] of 0 and 1, the weight of a column is negatives / positives, or 1 if
    there are no negatives or no positives.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        yes, no = (labels == 1).sum(0), (labels == 0).sum(0)
        return tuple(float(n / y) if y and n else 1.0 for y, n in zip(yes, no, strict=True))
    counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=classes)
    present = int((counts > 0).sum())
    return tuple(float(counts.sum() / (present * n)) if n else 0.0 for n in counts)
