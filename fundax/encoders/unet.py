"""U-Net for diffusion models: Imagen's (arXiv:2205.11487, appendix B), including the efficient variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.positions import sin_cos
from fundax.types import UserError

_zeros = nn.initializers.zeros
_FREQUENCIES = 16  # of the embedding of the noise level


class UNet(nn.Module):
    """Predicts the noise f32 [B h w 3] in images [B h w 3], given their log signal-to-noise ratios [B].

    Level i has `dim * mults[i]` channels, `blocks[i]` residual blocks on the way down and as many on the way up, and
    self-attention if `attention[i]`.

    efficient: downsample before the blocks of a level instead of after them, so that the first level works at h/2.
    condition: width of a conditioning vector that is added to the embedding of the noise level; 0: none.
    low: also take the noisy low-resolution image of a cascade, and its noise level.
    """

    dim: int = 64
    mults: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (2, 2, 2)
    attention: tuple[bool, ...] = (False, True, True)
    heads: int = 4
    ff_ratio: float = 2.0
    efficient: bool = True
    condition: int = 0
    low: bool = False
    dtype: str = "float32"

    @property
    def shrinks(self) -> int:
        """Downsampling factor of the last level; the sides of the image must be multiples of it."""
        return 2 ** (len(self.mults) - (0 if self.efficient else 1))

    def _check(self, x: jax.Array, condition: jax.Array | None, low: jax.Array | None) -> None:
        if not len(self.mults) == len(self.blocks) == len(self.attention):
            raise UserError("UNet: mults, blocks and attention must have one entry for each level")
        if x.shape[1] % self.shrinks or x.shape[2] % self.shrinks:
            raise UserError(f"image is {x.shape[1:3]}; this UNet takes multiples of {self.shrinks}")
        width = None if condition is None else condition.shape[-1]
        if (width or 0) != self.condition:
            raise UserError(f"condition is of width {width}; this UNet takes {self.condition or 'none'}")
        if (low is not None) != self.low:
            raise UserError(f"this UNet takes {'a' if self.low else 'no'} low-resolution image")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        log_snr: jax.Array,
        condition: jax.Array | None = None,
        low: jax.Array | None = None,
        low_log_snr: jax.Array | None = None,
    ) -> jax.Array:
        """x f32 [B h w 3], log_snr f32 [B], condition f32 [B K]; low f32 [B h w 3] and low_log_snr f32 [B].

        Raises UserError for sizes that are not multiples of `shrinks`, and for inputs that do not match the fields.
        """
        self._check(x, condition, low)
        level = self._embedding(log_snr, condition, low_log_snr)
        x = x if low is None else jnp.concatenate([x, low], axis=-1)
        x = first = self._conv(x.astype(self.dtype), self.dim, name="first")
        kept = []
        for i, width in enumerate(self.dim * m for m in self.mults):
            x = self._down(x, width, f"down_{i}") if self.efficient else x
            for j in range(self.blocks[i]):
                x = self._block(x, level, width, f"down_{i}_{j}")
                kept.append(x)
            x = self._attend(x, i, f"down_{i}_attention")
            last = i == len(self.mults) - 1
            x = x if self.efficient or last else self._down(x, width * 2, f"down_{i}")
        x = self._block(x, level, x.shape[-1], "middle_0")
        x = self._attend(x, -1, "middle_attention")
        x = self._block(x, level, x.shape[-1], "middle_1")
        for i in reversed(range(len(self.mults))):
            width = self.dim * self.mults[i]
            for j in range(self.blocks[i]):
                x = jnp.concatenate([x, kept.pop() * 2**-0.5], axis=-1)
                x = self._block(x, level, width, f"up_{i}_{j}")
            x = self._attend(x, i, f"up_{i}_attention")
            if self.efficient or i:
                x = self._up(x, self.dim * self.mults[max(i - 1, 0)], f"up_{i}")
        x = self._block(jnp.concatenate([x, first], axis=-1), level, self.dim, "last_0")
        x = jax.nn.silu(_norm("last_norm")(x))
        return self._conv(x, 3, zero=True, name="last").astype(jnp.float32)

    def _embedding(self, log_snr: jax.Array, condition: jax.Array | None, low: jax.Array | None) -> jax.Array:
        """Embedding [B 4 dim] of the noise levels and the condition, for the residual blocks."""
        width = 4 * self.dim
        total = self._dense(jax.nn.silu(self._dense(waves(log_snr), width, "level_0")), width, "level_1")
        if low is not None:
            total += self._dense(jax.nn.silu(self._dense(waves(low), width, "low_level_0")), width, "low_level_1")
        if condition is not None:
            total += self._dense(condition, width, "condition")
        return jax.nn.silu(total)

    def _block(self, x: jax.Array, level: jax.Array, width: int, name: str) -> jax.Array:
        return ResidualBlock(width, self.dtype, name=name)(x, level)

    def _attend(self, x: jax.Array, level: int, name: str) -> jax.Array:
        """A transformer block over all positions, if the level has one."""
        if not self.attention[level]:
            return x
        b, h, w, c = x.shape
        hidden = int(c * self.ff_ratio)
        initial = layers.init_clip_vision(c, hidden, 1)
        block = layers.Block(c, self.heads, hidden, layers.gelu_exact, initial, dtype=self.dtype, name=name)
        return block(x.reshape(b, h * w, c)).reshape(b, h, w, c)

    def _down(self, x: jax.Array, width: int, name: str) -> jax.Array:
        """Downsample by 2: 2 x 2 pixels become channels, then a linear layer, as in imagen-pytorch."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
        return self._dense(x, width, name)

    def _up(self, x: jax.Array, width: int, name: str) -> jax.Array:
        """Upsample by 2: nearest neighbour, then a convolution, which avoids checkerboard artefacts."""
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return self._conv(x, width, name=name)

    def _dense(self, x: jax.Array, width: int, name: str) -> jax.Array:
        return layers.Dense(width, layers.uniform(x.shape[-1] ** -0.5), dtype=self.dtype, name=name)(x)

    def _conv(self, x: jax.Array, width: int, name: str, zero: bool = False) -> jax.Array:
        return _conv(width, self.dtype, name, zero)(x)


class ResidualBlock(nn.Module):
    """Group norm, SiLU and 3x3 convolution, twice, with a shortcut; the noise level scales and shifts in between.

    Source: arXiv:2205.11487, figure A.27.
    """

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        """x [B h w C] and level [B E] to [B h w width]."""
        dense = layers.Dense(2 * self.width, _zeros, dtype=self.dtype, name="level")
        scale, shift = jnp.split(dense(level)[:, None, None], 2, axis=-1)
        y = _conv(self.width, self.dtype, "conv_0")(jax.nn.silu(_norm("norm_0")(x)))
        y = _norm("norm_1")(y) * (1 + scale) + shift
        y = _conv(self.width, self.dtype, "conv_1", zero=True)(jax.nn.silu(y))
        if x.shape[-1] == self.width:
            return x + y
        initial = layers.uniform(x.shape[-1] ** -0.5)
        return layers.Dense(self.width, initial, dtype=self.dtype, name="shortcut")(x) + y


def waves(log_snr: jax.Array) -> jax.Array:
    """Encode log signal-to-noise ratios f32 [B] as sines, then cosines, with periods from 1.6 to 200; f32 [B 32]."""
    return sin_cos(log_snr, jnp.geomspace(1 / 32, 4, _FREQUENCIES)).swapaxes(1, 2).reshape(len(log_snr), -1)


def _norm(name: str) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=8, name=name)


def _conv(width: int, dtype: str, name: str, zero: bool = False) -> nn.Conv:
    return nn.Conv(width, (3, 3), dtype=dtype, kernel_init=_zeros if zero else _torch, name=name)


def _torch(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's initial values of a convolution kernel [kh kw C width]: U(+-fan_in^-.5)."""
    return layers.uniform(math.prod(shape[:-1]) ** -0.5)(key, shape, dtype)
