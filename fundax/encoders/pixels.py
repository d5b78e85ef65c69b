"""Changes of brightness and contrast on the device, on uint8 images as they crossed the border."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fundax.types import Array, UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's, of RGB in [0, 1]
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize(image: Array, mean: Sequence[float], std: Sequence[float], dtype: str = "float32") -> jax.Array:
    """uint8 [... 3] to (image / 255 - mean) / std in `dtype`; a floating image is normalised already and is only cast.

    Raises UserError for any other dtype.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return jnp.asarray(image, dtype)
    if image.dtype != jnp.uint8:
        raise UserError(f"images must be uint8, or floating and normalised already; got {image.dtype}")
    shape = (1,) * (image.ndim - 1) + (3,)
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32).reshape(shape)
    shift = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)], jnp.float32).reshape(shape)
    return (jnp.asarray(image).astype(jnp.float32) * scale - shift).astype(dtype)


def mixup_cutmix(
    rng: jax.Array, image: jax.Array, targets: jax.Array, mixup: float = 0.0, cutmix: float = 0.0, chance: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of images [B h w 3] and targets f32 [B K] with the batch reversed.

    mixup, cutmix: alphas of Beta(alpha, alpha), 0 for neither; with both, each every other time. chance: of mixing at
    all. One share and one box for a batch, as timm's Mixup in its mode "batch".
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
    return image * (1 - inside) + image[::-1] * inside, kept * targets + (1 - kept) * targets[::-1]


def _box(rng: jax.Array, kept: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """A box of 1 - kept of the area around a uniform centre, cut at the edges: bool [h w], and its share of the area."""
    within = []
    for key, side in zip(jax.random.split(rng), size, strict=True):
        half = (side * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, side)
        at = jnp.arange(side)
        within.append((at >= centre - half) & (at < centre + half))
    box = within[0][:, None] & within[1][None]
    return box, box.mean(dtype=jnp.float32)


GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's weights of red, green and blue


def jittered(image: jax.Array, rng: jax.Array, brightness: float = 0.2, contrast: float = 0.2) -> jax.Array:
    """Images u8 [B h w 3] to f32 in 0..255: each by U(1 - x, 1 + x) of both, in random order, from its own numbers.

    The draws are those of data_pipelines' ColorJitter in distribution, and so are the pixels but for its rounding to
    8 bits between the two steps. Rows draw independently, so the images may be split over devices in any way.

    Source: torchvision `ColorJitter` on Pillow images (brightness and contrast).
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
    """f32 [B h w 3] in 0..255 times a factor [B 1 1 1]; what leaves the range is cut off."""
    return jnp.clip(pixels * factor, 0.0, 255.0)


def contrasted(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """f32 [B h w 3] in 0..255 moved away from, or towards, the whole number nearest to the image's mean grey."""
    grey = pixels @ jnp.asarray(GREY, jnp.float32)  # [B h w]
    middle = jnp.floor(jnp.round(grey).mean((1, 2)) + 0.5)[:, None, None, None]
    return jnp.clip(middle + factor * (pixels - middle), 0.0, 255.0)
