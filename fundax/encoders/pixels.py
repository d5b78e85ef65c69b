"""Operations on pixels, computed on the device: normalisation, mixup and CutMix, brightness and contrast."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fundax.types import Array, UserError

# Mean and standard deviation of RGB in [0, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

RGB = tuple[float, float, float]
Moments = Sequence[float] | Sequence[RGB]  # one row for all images, or a row for each modality


def normalize(
    image: Array, mean: Moments, std: Moments, dtype: str = "float32", modality: Array | None = None
) -> jax.Array:
    """Normalise uint8 images: (image / 255 - mean) / std in `dtype`. Floating-point images are only cast.

    Args:
        image: [B ... 3].
        mean, std: mean and deviation of RGB in [0, 1], one row or a row for each modality.
        dtype: dtype of the result.
        modality: i32 [B], the row of each image; needed if there are several rows.

    Raises:
        UserError: another dtype, or a missing modality.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return jnp.asarray(image, dtype)
    if image.dtype != jnp.uint8:
        raise UserError(f"images must be uint8, or floating and normalised already; got {image.dtype}")
    return standardize(jnp.asarray(image).astype(jnp.float32), mean, std, dtype, modality)


def standardize(
    pixels: jax.Array, mean: Moments, std: Moments, dtype: str = "float32", modality: Array | None = None
) -> jax.Array:
    """`normalize` for f32 pixels from 0 to 255."""
    means, stds = (np.atleast_2d(np.asarray(rows, np.float64)) for rows in (mean, std))
    # one multiplication and one subtraction per pixel; the constants are computed in float64
    scale, shift = (jnp.asarray(rows, jnp.float32) for rows in (1 / (255 * stds), means / stds))
    if len(means) > 1:
        if modality is None:
            raise UserError(f"the batch has no 'modality', and there is a mean for each of {len(means)} modalities")
        scale, shift = scale[modality], shift[modality]
    shape = (len(scale), *(1,) * (pixels.ndim - 2), 3)
    return (pixels * scale.reshape(shape) - shift.reshape(shape)).astype(dtype)


def mixup_cutmix(
    rng: jax.Array, image: jax.Array, targets: jax.Array, mixup: float = 0.0, cutmix: float = 0.0, chance: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of the batch with the reversed batch.

    One ratio and one box per batch, as in timm's Mixup with mode "batch".

    Args:
        rng: random key.
        image, targets: [B h w 3] and f32 [B K].
        mixup, cutmix: alpha of Beta(alpha, alpha), 0 to disable; if both are enabled, each is used half of the time.
        chance: probability of mixing at all.

    A row of targets with NaN is unlabelled; its mixture with a labelled row is unlabelled, too.
    """
    if not mixup and not cutmix:
        return image, targets
    keys = jax.random.split(rng, 5)
    cut = jnp.bool_(bool(cutmix)) if not (mixup and cutmix) else jax.random.bernoulli(keys[0])
    kept = jnp.where(cut, *(jax.random.beta(k, a or 1.0, a or 1.0) for k, a in ((keys[1], cutmix), (keys[2], mixup))))
    kept = jnp.where(jax.random.bernoulli(keys[3], chance), kept, 1.0)
    box, share = _box(keys[4], kept, (image.shape[1], image.shape[2]))
    inside = jnp.where(cut, box.astype(jnp.float32), 1 - kept)[None, :, :, None].astype(image.dtype)
    kept = jnp.where(cut, 1 - share, kept)
    mixed = jnp.where(kept < 1, kept * targets + (1 - kept) * targets[::-1], targets)  # 0 * NaN would be NaN
    return image * (1 - inside) + image[::-1] * inside, mixed


def _box(rng: jax.Array, kept: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """A box with 1 - kept of the area and a uniform centre, clipped at the edges; bool [h w], and its share of the area."""
    within = []
    for key, side in zip(jax.random.split(rng), size, strict=True):
        half = (side * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, side)
        at = jnp.arange(side)
        within.append((at >= centre - half) & (at < centre + half))
    box = within[0][:, None] & within[1][None]
    return box, box.mean(dtype=jnp.float32)


GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's weights of red, green and blue in a grey image


def jittered(image: jax.Array, rng: jax.Array, brightness: float = 0.2, contrast: float = 0.2) -> jax.Array:
    """Random brightness and contrast: images u8 [B h w 3] to f32 from 0 to 255.

    Both factors are drawn from U(1 - x, 1 + x) and applied in random order, independently for each image. The result
    has the distribution of data_pipelines' ColorJitter, which also rounds to 8 bits between the two operations.

    Source: torchvision's ColorJitter on Pillow images (brightness and contrast only).
    """
    keys = jax.random.split(rng, 3)
    b = (len(image), 1, 1, 1)
    light = jax.random.uniform(keys[0], b, minval=max(0.0, 1 - brightness), maxval=1 + brightness)
    span = jax.random.uniform(keys[1], b, minval=max(0.0, 1 - contrast), maxval=1 + contrast)
    pixels = jnp.asarray(image).astype(jnp.float32)
    first = contrasted(brightened(pixels, light), span)
    second = brightened(contrasted(pixels, span), light)
    return jnp.where(jax.random.bernoulli(keys[2], 0.5, b), first, second)


def brightened(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply pixels f32 [B h w 3] by a factor [B 1 1 1] and clip them to 0..255."""
    return jnp.clip(pixels * factor, 0.0, 255.0)


def contrasted(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the contrast of pixels f32 [B h w 3], in 0..255, around the image's mean grey, rounded to an integer."""
    grey = pixels @ jnp.asarray(GREY, jnp.float32)  # [B h w]
    middle = jnp.floor(jnp.round(grey).mean((1, 2)) + 0.5)[:, None, None, None]
    return jnp.clip(middle + factor * (pixels - middle), 0.0, 255.0)
