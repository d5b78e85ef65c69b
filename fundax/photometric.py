"""Changes of brightness and contrast on the device, on uint8 images as they crossed the border."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
