"""A convolutional encoder and decoder, each level halving or doubling the map: the form of VQGAN (arXiv:2012.09841)
without its attention.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import Initializer

_he: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ImageEncoder(nn.Module):
    """Images [B h w 3] to vectors f32 [B h/f w/f D], f = 2 ** len(widths)."""

    widths: tuple[int, ...] = (64, 128, 256, 256)
    embed: int = 256
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """image [B h w 3]; h and w are multiples of f."""
        x = _conv(self.widths[0], 3, self.dtype, "conv_in")(image.astype(self.dtype))
        for level, width in enumerate(self.widths):
            x = _conv(width, 4, self.dtype, f"down{level}", stride=2)(x)
            x = Unit(self.dtype, name=f"unit{level}")(x)
        return _conv(self.embed, 1, self.dtype, "conv_out")(_normed(x, "norm_out")).astype(jnp.float32)


class ImageDecoder(nn.Module):
    """Vectors [B h w D] to images f32 [B fh fw 3], f = 2 ** len(widths); the last width comes first."""

    widths: tuple[int, ...] = (64, 128, 256, 256)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w D]."""
        x = _conv(self.widths[-1], 3, self.dtype, "conv_in")(x.astype(self.dtype))
        for level in reversed(range(len(self.widths))):
            x = Unit(self.dtype, name=f"unit{level}")(x)
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = _conv(self.widths[max(level - 1, 0)], 3, self.dtype, f"up{level}")(x)
        return _conv(3, 3, self.dtype, "conv_out")(_normed(x, "norm_out")).astype(jnp.float32)


class Unit(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x))))), of one width."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C]."""
        width = x.shape[-1]
        y = _conv(width, 3, self.dtype, "conv1")(_normed(x, "norm1"))
        y = _conv(width, 3, self.dtype, "conv2")(_normed(y, "norm2"))
        return x + y


def _conv(width: int, size: int, dtype: str, name: str, stride: int = 1) -> nn.Conv:
    pad = (size - stride) // 2, (size - stride + 1) // 2  # the map is exactly h / stride
    return nn.Conv(
        width, (size, size), (stride, stride), (pad, pad), dtype=jnp.dtype(dtype), kernel_init=_he, name=name
    )


def _normed(x: jax.Array, name: str) -> jax.Array:
    """silu(group norm), eight groups or as many as divide the width."""
    groups = next(n for n in (8, 4, 2, 1) if x.shape[-1] % n == 0)
    return jax.nn.silu(nn.GroupNorm(groups, dtype=x.dtype, name=name)(x))
