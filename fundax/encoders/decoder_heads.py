"""VisionFM's decoders of a feature vector: an MLP behind a batch norm, and a line behind the encoding of an interval."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.resnet import BatchNorm
from fundax.errors import UserError


class MLPHead(nn.Module):
    """Features f32 [B C] to f32 [B outputs]: ClsHead of VisionFM with 3, 2 or 1 layers (RegHead is that of 2 layers).

    3 layers: C, C/2, C/4, outputs; 2: C, C/4, outputs; 1: C, outputs; exact GELU and dropout between. Before them a batch
    norm over the channels, whose running statistics are nearly those of the last batch (torch's momentum 0.99); it
    refuses a batch of one (UserError). `norm` off with one layer is a plain linear head. Kernels normal, 0.01.
    """

    outputs: int
    layers: int = 3
    dropout: float = 0.1
    norm: bool = True
    epsilon: float = 1e-6
    momentum: float = 0.99
    initial: float = 0.01

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """With `train`: batch statistics ("batch_stats" must be mutable), and dropout where there is a "dropout" rng."""
        if self.layers not in (1, 2, 3):
            raise UserError(f"a head of {self.layers} layers; expected 1, 2 or 3")
        x = x.astype(jnp.float32)
        c = x.shape[-1]
        if self.norm:
            if train and len(x) < 2:
                raise UserError("a training batch of one has no batch statistics; make the batch larger")
            x = BatchNorm(self.epsilon, self.momentum, name="norm")(x[:, None, None], train)[:, 0, 0]
        widths = {1: (), 2: (c // 4,), 3: (c // 2, c // 4)}[self.layers]
        for i, width in enumerate(widths):
            x = layers.gelu_exact(self._dense(width, f"fc{i + 1}")(x))
            on = train and self.dropout > 0 and self.has_rng("dropout")
            x = nn.Dropout(self.dropout)(x, deterministic=not on)
        return self._dense(self.outputs, f"fc{self.layers}")(x)

    def _dense(self, width: int, name: str) -> layers.Dense:
        return layers.Dense(width, nn.initializers.normal(self.initial), name=name)


class ForecastHead(nn.Module):
    """Features f32 [B V C] of V visits, and the days from each to the day asked about, f32 [B V], to a logit f32 [B].

    Each visit is x + encoding(days); present visits (bool [B V], None: all) are averaged, and a line reads the mean: with
    one visit that is VisionFM's head, which is linear. Without a present visit the logit is the line of nothing.
    """

    @nn.compact
    def __call__(self, x: jax.Array, days: jax.Array, present: jax.Array | None = None) -> jax.Array:
        x = x.astype(jnp.float32) + interval_encoding(days, x.shape[-1])
        there = jnp.ones(days.shape, jnp.float32) if present is None else present.astype(jnp.float32)
        pooled = (x * there[..., None]).sum(1) / jnp.maximum(there.sum(1), 1)[:, None]
        return layers.Dense(1, layers.uniform(x.shape[-1] ** -0.5), layers.uniform(x.shape[-1] ** -0.5), name="fc1")(
            pooled
        )[:, 0]


def interval_encoding(days: jax.Array, width: int) -> jax.Array:
    """days [...] to f32 [... width]: sines in even columns, cosines in odd ones (arXiv:1706.03762, section 3.5)."""
    if width % 2:
        raise UserError(f"an interval is encoded in an even width, not {width}")
    frequency = np.exp(np.arange(0, width, 2) * (-np.log(1e4) / width)).astype(np.float32)
    angle = days.astype(jnp.float32)[..., None] * frequency.reshape((1,) * days.ndim + (-1,))
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*days.shape, width)
