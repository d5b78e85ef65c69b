"""Heads of self-distillation: tokens to logits over prototypes.

VisionFM's decoders of a feature vector: an MLP behind a batch norm, and a line behind the encoding of an interval."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.resnet import BatchNorm
from fundax.types import UserError


class PrototypeLayer(nn.Module):
    """Unit vectors [... E] to logits f32 [... K]: the weight-normalised linear layer g v / |v| (arXiv:1602.07868, eq. 2).

    kernel [E K] is v, scale [K] is g. With `frozen_scale` g gets no gradient; the optimizer must leave it alone too
    (optim.frozen), as it would decay it.
    """

    prototypes: int
    frozen_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initial = layers.uniform(x.shape[-1] ** -0.5)
        v = self.param("kernel", initial, (x.shape[-1], self.prototypes), jnp.float32)
        g = self.param("scale", nn.initializers.ones, (self.prototypes,), jnp.float32)
        g = jax.lax.stop_gradient(g) if self.frozen_scale else g
        w = v * (g * jax.lax.rsqrt((v * v).sum(0)))[None]
        return jnp.einsum("...e,ek->...k", x.astype(jnp.float32), w, precision=jax.lax.Precision.HIGHEST)


class IBOTHead(nn.Module):
    """The projection head of DINO and iBOT (arXiv:2111.07832, section 3.3): an MLP, L2 normalisation, prototypes.

    `shared`: class token and patches have the same prototypes; else `last_layer2` has the patches' `patch_prototypes`.
    `split`: patches have an MLP of their own too, as DINOv2's untied heads (arXiv:2304.07193, section 4).
    """

    prototypes: int
    patch_prototypes: int | None = None  # of an unshared head; None is the same number
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    shared: bool = True
    split: bool = False
    frozen_scale: bool = True
    dtype: str = "float32"

    def setup(self) -> None:
        self.mlp = _Bottleneck(self.hidden, self.bottleneck, self.layers, self.dtype)
        self.last_layer = PrototypeLayer(self.prototypes, self.frozen_scale)
        if self.split:
            self.mlp2 = _Bottleneck(self.hidden, self.bottleneck, self.layers, self.dtype)
        if self.split or not self.shared:
            self.last_layer2 = PrototypeLayer(self.patch_prototypes or self.prototypes, self.frozen_scale)

    def token(self, x: jax.Array) -> jax.Array:
        """Class tokens [... D] to f32 [... K]."""
        return self.last_layer(self.mlp(x))

    def patch(self, x: jax.Array) -> jax.Array:
        """Patch tokens [... D] to f32 [... K of patches]."""
        last = self.last_layer2 if self.split or not self.shared else self.last_layer
        return last((self.mlp2 if self.split else self.mlp)(x))

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """Tokens [B 1+N D], class token first, to the logits `token` [B K] and `patch` [B N K']."""
        return {"token": self.token(tokens[:, 0]), "patch": self.patch(tokens[:, 1:])}


class _Bottleneck(nn.Module):
    """[... D] to unit vectors f32 [... bottleneck]; fc1, fc2, ..."""

    hidden: int
    bottleneck: int
    layers: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.initializers.normal(0.02)
        for i in range(1, self.layers):
            x = layers.gelu_exact(layers.Dense(self.hidden, normal, dtype=self.dtype, name=f"fc{i}")(x))
        return layers.l2_normalize(layers.Dense(self.bottleneck, normal, dtype=self.dtype, name=f"fc{self.layers}")(x))


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
