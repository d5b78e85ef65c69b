"""Losses of maps: Dice and focal for masks, likelihood of landmarks. Pure functions, fp32, means over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

SMOOTH = 1e-5


def one_hot(mask: jax.Array, outputs: int) -> jax.Array:
    """Classes i32 [B h w] to f32 [B h w K]; with one output, 1 where the class is not 0. Channels [B h w K] only change type."""
    if mask.ndim == 4:
        return mask.astype(jnp.float32)
    if outputs == 1:
        return (mask > 0).astype(jnp.float32)[..., None]
    return jax.nn.one_hot(mask, outputs, dtype=jnp.float32)


def probabilities(logits: jax.Array, exclusive: bool) -> jax.Array:
    """[B h w K] to f32: softmax over classes of which a pixel has one, else a sigmoid each."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softmax(logits, -1) if exclusive else jax.nn.sigmoid(logits)


def dice_loss(logits: jax.Array, target: jax.Array, exclusive: bool) -> jax.Array:
    """1 - (2 sum p y + 1e-5) / (sum p + sum y + 1e-5) for each image and class, background among them; the mean, fp32 ().

    logits, target [B h w K]; p: see probabilities.
    Source: V-Net (arXiv:1606.04797, section 3) in the form of MONAI 1.2's DiceLoss as VisionFM calls it.
    """
    p, y = probabilities(logits, exclusive), target.astype(jnp.float32)
    both, total = (p * y).sum((1, 2)), (p + y).sum((1, 2))
    return (1 - (2 * both + SMOOTH) / (total + SMOOTH)).mean()


def focal_loss(logits: jax.Array, target: jax.Array, gamma: float = 2.0) -> jax.Array:
    """(1 - q)^gamma times the binary cross-entropy of each class, q the probability of the truth; the mean, fp32 ().

    Always a sigmoid for each class, exclusive classes too. logits, target [B h w K].
    Source: arXiv:1708.02002, equation 4, without alpha, as MONAI 1.2's DiceFocalLoss has it.
    """
    signed = logits.astype(jnp.float32) * (2 * target.astype(jnp.float32) - 1)
    return (-(jax.nn.sigmoid(-signed) ** gamma) * jax.nn.log_sigmoid(signed)).mean()


def dice_focal(logits: jax.Array, target: jax.Array, exclusive: bool) -> dict[str, jax.Array]:
    """Both losses by name, and `loss`, their sum: VisionFM's loss of a segmentation. See dice_loss and focal_loss."""
    parts = {"dice_loss": dice_loss(logits, target, exclusive), "focal_loss": focal_loss(logits, target)}
    return {"loss": parts["dice_loss"] + parts["focal_loss"], **parts}


def spatial_log_softmax(logits: jax.Array) -> jax.Array:
    """[B h w n] to f32: for each landmark the log probability of every pixel, which add up to one over the map."""
    flat = logits.astype(jnp.float32).reshape(len(logits), -1, logits.shape[-1])
    return jax.nn.log_softmax(flat, 1).reshape(logits.shape)


def heat_maps(points: jax.Array, height: int, width: int, sigma: float) -> jax.Array:
    """Points f32 [B n 2], (x, y) in pixels, to f32 [B h w n] that add up to one over each map, 0 where there is no point.

    A Gaussian of `sigma` pixels about the point itself, which need not be a whole number; with sigma 0 the one pixel
    nearest to it. A point that is NaN or outside the image has no map.
    """
    there = inside(points, height, width)[:, None, None]
    x, y = (jnp.where(there[:, 0, 0], points[..., i], 0.0)[:, None, None] for i in range(2))  # [B 1 1 n]
    columns = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1, 1)
    rows = jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1, 1)
    if sigma == 0:
        column, row = (jnp.clip(jnp.round(v), 0, size - 1) for v, size in ((x, width), (y, height)))
        found = ((columns == column) & (rows == row)).astype(jnp.float32)
    else:
        found = jnp.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        found = found / jnp.maximum(found.sum((1, 2), keepdims=True), 1e-12)
    return found * there


def inside(points: jax.Array, height: int, width: int) -> jax.Array:
    """Which points [B n 2] lie on a pixel of the image; bool [B n]. NaN does not."""
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def landmark_loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-sum over pixels of target * log p, the mean over images and landmarks that have a map; fp32 ().

    logits, target [B h w n], the target of a landmark without a place all 0; p: see spatial_log_softmax.
    Source: VisionFM's landmark detection, whose softmax subtracts no maximum; this one cannot overflow.
    """
    each = -(target.astype(jnp.float32) * spatial_log_softmax(logits)).sum((1, 2))  # [B n]
    known = target.sum((1, 2)) > 0
    return (each * known).sum() / jnp.maximum(known.sum(), 1)


def peaks(logits: jax.Array) -> jax.Array:
    """The pixel with the highest value of each map [B h w n], as (x, y); f32 [B n 2]. The first of equal ones, by rows."""
    flat = logits.reshape(len(logits), -1, logits.shape[-1]).argmax(1)
    return jnp.stack([flat % logits.shape[2], flat // logits.shape[2]], -1).astype(jnp.float32)


def expected_points(logits: jax.Array) -> jax.Array:
    """The mean place under the spatial softmax of each map [B h w n], as (x, y) between pixels; f32 [B n 2].

    Source: arXiv:1504.00702, section 4.2 (spatial soft-argmax).
    """
    p = jnp.exp(spatial_log_softmax(logits))
    columns, rows = (jnp.arange(size, dtype=jnp.float32) for size in (logits.shape[2], logits.shape[1]))
    x = (p.sum(1) * columns.reshape(1, -1, 1)).sum(1)
    return jnp.stack([x, (p.sum(2) * rows.reshape(1, -1, 1)).sum(1)], -1)
