"""Losses of dense predictions: Dice and focal loss for masks, spatial cross-entropy for landmarks.

Results are fp32 and means over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

SMOOTH = 1e-5


def one_hot(mask: jax.Array, outputs: int) -> jax.Array:
    """Convert class masks i32 [B h w] to f32 [B h w K]; with one output, to 1 where the class is not 0.

    A mask that already has channels, [B h w K], is only cast.
    """
    if mask.ndim == 4:
        return mask.astype(jnp.float32)
    if outputs == 1:
        return (mask > 0).astype(jnp.float32)[..., None]
    return jax.nn.one_hot(mask, outputs, dtype=jnp.float32)


def probabilities(logits: jax.Array, exclusive: bool) -> jax.Array:
    """Softmax over the classes if they are exclusive, otherwise a sigmoid of each class; f32 [B h w K]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softmax(logits, -1) if exclusive else jax.nn.sigmoid(logits)


def dice_loss(logits: jax.Array, target: jax.Array, exclusive: bool) -> jax.Array:
    """Dice loss, 1 - (2 sum p y + 1e-5) / (sum p + sum y + 1e-5), averaged over images and classes; fp32 ().

    logits, target [B h w K]; p are the `probabilities`. The background counts as a class.
    Source: V-Net (arXiv:1606.04797, section 3), with the options of MONAI 1.2's DiceLoss that VisionFM uses.
    """
    p, y = probabilities(logits, exclusive), target.astype(jnp.float32)
    both, total = (p * y).sum((1, 2)), (p + y).sum((1, 2))
    return (1 - (2 * both + SMOOTH) / (total + SMOOTH)).mean()


def focal_loss(logits: jax.Array, target: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Focal loss: binary cross-entropy times (1 - q)^gamma, where q is the probability of the target; fp32 ().

    logits, target [B h w K]. A sigmoid is applied to every class, even if the classes are exclusive.
    Source: arXiv:1708.02002, equation 4, without alpha, as in MONAI 1.2's DiceFocalLoss.
    """
    signed = logits.astype(jnp.float32) * (2 * target.astype(jnp.float32) - 1)
    return (-(jax.nn.sigmoid(-signed) ** gamma) * jax.nn.log_sigmoid(signed)).mean()


def dice_focal(logits: jax.Array, target: jax.Array, exclusive: bool) -> dict[str, jax.Array]:
    """VisionFM's segmentation loss: dice_loss plus focal_loss. Returns `loss` and the two terms by name."""
    parts = {"dice_loss": dice_loss(logits, target, exclusive), "focal_loss": focal_loss(logits, target)}
    return {"loss": parts["dice_loss"] + parts["focal_loss"], **parts}


def spatial_log_softmax(logits: jax.Array) -> jax.Array:
    """Log-softmax over the pixels of each landmark's map; f32 [B h w n]."""
    flat = logits.astype(jnp.float32).reshape(len(logits), -1, logits.shape[-1])
    return jax.nn.log_softmax(flat, 1).reshape(logits.shape)


def heat_maps(points: jax.Array, height: int, width: int, sigma: float) -> jax.Array:
    """Target maps f32 [B h w n] of landmarks f32 [B n 2], (x, y) in pixels. Each map sums to one.

    A map is a Gaussian of `sigma` pixels around the exact position or, with sigma 0, only the nearest pixel. The map of
    a point that is NaN or outside the image is zero.
    """
    there = inside(points, height, width)[:, None, None]
    x, y = (jnp.where(there[:, 0, 0], points[..., i], 0.0)[:, None, None] for i in range(2))  # [B 1 1 n]
    columns = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1, 1)
    rows = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1, 1)
    if sigma == 0:
        column, row = (jnp.clip(jnp.round(v), 0, size - 1) for v, size in ((x, width), (y, height)))
        maps = ((columns == column) & (rows == row)).astype(jnp.float32)
    else:
        maps = jnp.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        maps = maps / jnp.maximum(maps.sum((1, 2), keepdims=True), 1e-12)
    return maps * there


def inside(points: jax.Array, height: int, width: int) -> jax.Array:
    """Whether points [B n 2] lie on a pixel of the image; False for NaN. # bool [B n]"""
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def landmark_loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy over pixels, -sum target * log p, averaged over the images and landmarks with a target; fp32 ().

    logits, target [B h w n]; p is the spatial softmax. Landmarks with an all-zero target map are ignored.
    Source: VisionFM's landmark detection, which computes the softmax without subtracting the maximum.
    """
    each = -(target.astype(jnp.float32) * spatial_log_softmax(logits)).sum((1, 2))  # [B n]
    known = target.sum((1, 2)) > 0
    return (each * known).sum() / jnp.maximum(known.sum(), 1)


def peaks(logits: jax.Array) -> jax.Array:
    """Position (x, y) of the largest pixel of each map [B h w n]; the first in row order if tied. # f32 [B n 2]"""
    flat = logits.reshape(len(logits), -1, logits.shape[-1]).argmax(1)
    return jnp.stack([flat % logits.shape[2], flat // logits.shape[2]], -1).astype(jnp.float32)


def expected_points(logits: jax.Array) -> jax.Array:
    """Expected position (x, y) under the spatial softmax of each map [B h w n], with sub-pixel resolution. # f32 [B n 2]

    Source: arXiv:1504.00702, section 4.2 (spatial soft-argmax).
    """
    p = jnp.exp(spatial_log_softmax(logits))
    columns, rows = (jnp.arange(size, dtype=jnp.float32) for size in (logits.shape[2], logits.shape[1]))
    x = (p.sum(1) * columns.reshape(1, -1, 1)).sum(1)
    return jnp.stack([x, (p.sum(2) * rows.reshape(1, -1, 1)).sum(1)], -1)


def refined_points(logits: jax.Array, radius: int) -> jax.Array:
    """Expected position (x, y) within `radius` pixels of the largest one of each map [B h w n], in x and y. # f32 [B n 2]

    It has sub-pixel resolution, and other maxima of a map do not move it.
    """
    peak = peaks(logits)[:, None, None]  # [B 1 1 n 2]
    columns = jnp.arange(logits.shape[2], dtype=jnp.float32).reshape(1, 1, -1, 1)
    rows = jnp.arange(logits.shape[1], dtype=jnp.float32).reshape(1, -1, 1, 1)
    near = (jnp.abs(columns - peak[..., 0]) <= radius) & (jnp.abs(rows - peak[..., 1]) <= radius)
    return expected_points(jnp.where(near, logits.astype(jnp.float32), -jnp.inf))
