"""Feature pyramid decoder for convolutional encoders (arXiv:1612.03144), carried on to the resolution of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.unetr import ConvNorm, drop_channels, resized

FINEST = 4  # stride of the first map


class FPN(nn.Module):
    """Maps of strides 4, 8, 16 and 32, and the image, to K logits per pixel.

    Each map is projected to `width` channels and added to the coarser ones, which were convolved and enlarged: at stride 32 a
    3x3 convolution sees 96 pixels. At strides 2 and 1 the image joins in with `width` and `width` / 2 channels, for edges
    and vessels of a pixel's width.

    outputs: K. start: initial bias of the logits, see encoders.unetr.UNETR.
    stride: 1, 2 or 4, where the pyramid ends; logits are enlarged from there.
    dropout: dropout rate of whole channels; active if the caller passes a "dropout" rng.

    With `train` the batch norms use batch statistics, which are in the collection "batch_stats".
    """

    IGNORES: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("head", "decoder_layers"),
        "the decoder of a convolutional encoder with its feature pyramid does not use it; leave it out",
    )

    outputs: int
    width: int = 32
    dropout: float = 0.3
    start: float = 0.0
    dtype: str = "float32"
    stride: int = 1

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...], image: jax.Array, train: bool = False) -> jax.Array:
        """Logits f32 [B h w K] from maps [B h/4 w/4 C], .. of the encoder, finest first, and normalised images [B h w 3]."""
        height, width = image.shape[1:3]
        x = self._lateral(maps, len(maps) - 1)
        for i in reversed(range(len(maps) - 1)):
            x = ConvNorm(self.width, self.dtype, name=f"context{i + 1}")(x, train)
            lateral = self._lateral(maps, i)
            x = lateral + resized(x, (lateral.shape[1], lateral.shape[2]))
        x = ConvNorm(self.width, self.dtype, name="merge")(x, train)
        for stride in (s for s in (FINEST // 2, 1) if s >= self.stride):
            side = (-(-height // stride), -(-width // stride))
            channels = self.width if stride > 1 else self.width // 2
            picture = ConvNorm(channels, self.dtype, name=f"picture{stride}")(resized(image, side), train)
            x = jnp.concatenate([resized(x, side), picture.astype(x.dtype)], -1)
            x = ConvNorm(channels, self.dtype, name=f"merge{stride}")(x, train)
        if train and self.dropout > 0 and self.has_rng("dropout"):
            x = drop_channels(x, self.make_rng("dropout"), self.dropout)
        start = nn.initializers.constant(self.start)
        out = layers.Dense(self.outputs, layers.uniform(x.shape[-1] ** -0.5), start, self.dtype, name="out")
        return resized(out(x).astype(jnp.float32), (height, width))

    def _lateral(self, maps: tuple[jax.Array, ...], level: int) -> jax.Array:
        x = maps[level].astype(self.dtype)
        initial = layers.uniform(x.shape[-1] ** -0.5)
        return layers.Dense(self.width, initial, dtype=self.dtype, name=f"lateral{level}")(x)
