"""Autoencoders: VQGAN's convolutional encoder and decoder, and the decoder and loss of a masked autoencoder (MAE).

VQGAN: arXiv:2012.09841, without its attention. MAE: arXiv:2111.06377."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.layers import Initializer
from fundax.encoders.vit import patches

_he: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ImageEncoder(nn.Module):
    """Convolutional encoder: images [B h w 3] to vectors f32 [B h/f w/f D], f = 2 ** len(widths)."""

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
    """Convolutional decoder: vectors [B h w D] to images f32 [B fh fw 3], f = 2 ** len(widths); last width first."""

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
    """Residual block x + conv(silu(norm(conv(silu(norm x))))) of constant width."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C]."""
        width = x.shape[-1]
        y = _conv(width, 3, self.dtype, "conv1")(_normed(x, "norm1"))
        y = _conv(width, 3, self.dtype, "conv2")(_normed(y, "norm2"))
        return x + y


def _conv(width: int, size: int, dtype: str, name: str, stride: int = 1) -> nn.Conv:
    pad = (size - stride) // 2, (size - stride + 1) // 2  # so that the result has exactly h / stride rows
    return nn.Conv(
        width, (size, size), (stride, stride), (pad, pad), dtype=jnp.dtype(dtype), kernel_init=_he, name=name
    )


def _normed(x: jax.Array, name: str) -> jax.Array:
    """Group norm with up to eight groups, then SiLU."""
    groups = next(n for n in (8, 4, 2, 1) if x.shape[-1] % n == 0)
    return jax.nn.silu(nn.GroupNorm(groups, dtype=x.dtype, name=name)(x))


class MaskedDecoder(nn.Module):
    """MAE decoder: predicts the normalised pixels of every patch from the tokens of the visible ones.

    The position table is learned; the paper's is fixed.
    """

    patch: int
    count: int  # patches in an image
    width: int = 512
    depth: int = 8
    heads: int = 16
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, tokens: jax.Array, kept: jax.Array, context: jax.Array | None = None, found: jax.Array | None = None
    ) -> jax.Array:
        """Predictions f32 [B N p*p*3] from tokens [B 1+n D], class token first, of the visible patches kept i32 [B n].

        context: tokens [B m D] of another image that the decoder also attends to, where `found` bool [B] says there is one.
        """
        normal = nn.initializers.normal(0.02)
        init = layers.BlockInit(*(nn.initializers.xavier_uniform(),) * 4)
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(tokens)
        mask_token = self.param("mask_token", normal, (self.width,), jnp.float32).astype(x.dtype)
        position = self.param("position", normal, (self.count + 1, self.width), jnp.float32).astype(x.dtype)
        full = jnp.broadcast_to(mask_token, (len(x), self.count, self.width))
        full = jax.vmap(lambda row, at, values: row.at[at].set(values))(full, kept, x[:, 1:])
        x = jnp.concatenate([x[:, :1], full], axis=1) + position[None]  # [B 1+N D]
        if context is not None and found is not None:
            more = nn.Dense(self.width, dtype=self.dtype, name="context")(context)
            x = jnp.concatenate([x, jnp.where(found[:, None, None], more, 0)], axis=1)
        fields = (self.width, self.heads, 4 * self.width, layers.gelu_exact, init)
        block = partial(layers.Block, *fields, dtype=self.dtype)
        x = layers.Stack(self.depth, remat=self.remat)(block, x, None, None, False)["tokens"]
        x = layers.LayerNorm(name="norm")(x[:, 1 : 1 + self.count])
        return nn.Dense(self.patch * self.patch * 3, dtype=self.dtype, name="predict")(x).astype(jnp.float32)


def hidden_patches(kept: jax.Array, count: int) -> jax.Array:
    """1 for patches that are not in `kept` i32 [B n], else 0. # f32 [B N]"""
    return 1.0 - jax.nn.one_hot(kept, count, dtype=jnp.float32).sum(1)


def pixel_loss(predicted: jax.Array, image: jax.Array, kept: jax.Array, patch: int) -> jax.Array:
    """MAE loss: mean squared error of the hidden patches, normalised to mean 0 and variance 1 each; f32 [B].

    predicted [B N p*p*3], image [B h w 3]. Source: arXiv:2111.06377, section 3 ("reconstruction target") and table 1d.
    """
    target, mean, std = _patch_moments(image, patch)
    error = ((predicted - (target - mean) / std) ** 2).mean(-1)  # [B N]
    hidden = hidden_patches(kept, error.shape[1])
    return (error * hidden).sum(1) / hidden.sum(1)


def reconstruct(predicted: jax.Array, image: jax.Array, kept: jax.Array, patch: int) -> jax.Array:
    """Replace the hidden patches of images [B h w 3] by the prediction, with each patch's own mean and deviation."""
    target, mean, std = _patch_moments(image, patch)
    hidden = hidden_patches(kept, target.shape[1])[:, :, None] > 0
    return unpatch(jnp.where(hidden, predicted * std + mean, target), patch).astype(image.dtype)


def unpatch(x: jax.Array, patch: int) -> jax.Array:
    """Reassemble patches [B N p*p*C] of a square grid to [B h w C]: the inverse of vit.patches."""
    side = round(x.shape[1] ** 0.5)
    x = x.reshape(len(x), side, side, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(len(x), side * patch, side * patch, -1)


def _patch_moments(image: jax.Array, patch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = patches(image.astype(jnp.float32), patch)
    return x, x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-6)
