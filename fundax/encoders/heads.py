"""Heads: iBOT's projection onto prototypes, VisionFM's MLP for classification and regression, and its forecasting head."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.convolution import BatchNorm
from fundax.encoders.positions import sin_cos
from fundax.runtime.mesh import gather_parameter
from fundax.types import UserError


class PrototypeLayer(nn.Module):
    """Weight-normalised linear layer with weights g v / |v| (arXiv:1602.07868, equation 2).

    Maps unit vectors [... E] to logits f32 [... K]; kernel [E K] is v and scale [K] is g. With `frozen_scale` g gets no
    gradient. Freeze it in the optimizer too (optim.freeze), or weight decay changes it.
    """

    prototypes: int
    frozen_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initial = layers.uniform(x.shape[-1] ** -0.5)
        v = self.param("kernel", initial, (x.shape[-1], self.prototypes), jnp.float32)
        v = gather_parameter(v, (*self.path, "kernel"))
        g = self.param("scale", nn.initializers.ones, (self.prototypes,), jnp.float32)
        g = jax.lax.stop_gradient(g) if self.frozen_scale else g
        w = v * (g * jax.lax.rsqrt((v * v).sum(0)))[None]
        return jnp.einsum("...e,ek->...k", x.astype(jnp.float32), w, precision=jax.lax.Precision.HIGHEST)


class IBOTHead(nn.Module):
    """Projection head of DINO and iBOT: MLP, L2 normalisation, prototypes (arXiv:2111.07832, section 3.3).

    shared: the class token and the patches have the same prototypes; otherwise the patches have `patch_prototypes` of
        their own, in `last_layer2`.
    split: the patches also have their own MLP, as DINOv2's untied heads (arXiv:2304.07193, section 4).
    """

    prototypes: int
    patch_prototypes: int | None = None  # if they are not shared; None: as many as `prototypes`
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
        """Logits f32 [... K] of class tokens [... D]."""
        return self.last_layer(self.mlp(x))

    def patch(self, x: jax.Array) -> jax.Array:
        """Logits f32 [... K'] of patch tokens [... D]."""
        last = self.last_layer2 if self.split or not self.shared else self.last_layer
        return last((self.mlp2 if self.split else self.mlp)(x))

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """Logits `token` [B K] and `patch` [B N K'] of tokens [B 1+N D], class token first."""
        return {"token": self.token(tokens[:, 0]), "patch": self.patch(tokens[:, 1:])}


class _Bottleneck(nn.Module):
    """MLP with GELU, then L2 normalisation: [... D] to unit vectors f32 [... bottleneck]."""

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
    """VisionFM's ClsHead: batch norm and an MLP of 1, 2 or 3 layers; features f32 [B C] to f32 [B outputs].

    The widths are C, outputs (1 layer), C, C/4, outputs (2 layers, also VisionFM's RegHead) or C, C/2, C/4, outputs (3
    layers), with exact GELU and dropout in between. The running statistics of the batch norm are nearly those of the
    last batch (PyTorch's momentum 0.99). One layer without `norm` is a plain linear head. With `standardized` the
    statistics are fixed, and scale and bias of the norm are 1 and 0: the features are standardised.

    Raises UserError for another number of layers, and for batch statistics of a single example.
    """

    outputs: int
    layers: int = 3
    dropout: float = 0.1
    norm: bool = True
    epsilon: float = 1e-6
    momentum: float = 0.99
    initial: float = 0.01
    standardized: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """With `train`, use batch statistics ("batch_stats" must be mutable), and dropout if there is a "dropout" rng."""
        if self.layers not in (1, 2, 3):
            raise UserError(f"a head of {self.layers} layers; expected 1, 2 or 3")
        x = x.astype(jnp.float32)
        c = x.shape[-1]
        if self.norm:
            if train and len(x) < 2 and not self.standardized:
                raise UserError("a training batch of one has no batch statistics; make the batch larger")
            x = BatchNorm(self.epsilon, self.momentum, name="norm")(x[:, None, None], train and not self.standardized)[
                :, 0, 0
            ]
        widths = {1: (), 2: (c // 4,), 3: (c // 2, c // 4)}[self.layers]
        for i, width in enumerate(widths):
            x = layers.gelu_exact(self._dense(width, f"fc{i + 1}")(x))
            on = train and self.dropout > 0 and self.has_rng("dropout")
            x = nn.Dropout(self.dropout)(x, deterministic=not on)
        return self._dense(self.outputs, f"fc{self.layers}")(x)

    def _dense(self, width: int, name: str) -> layers.Dense:
        return layers.Dense(width, nn.initializers.normal(self.initial), name=name)


class ForecastHead(nn.Module):
    """Forecast from visits: mean over the visits of (features + interval encoding), then a linear layer; logit f32 [B].

    Takes features f32 [B V C] of V visits, the days f32 [B V] from each visit to the date predicted for, and which visits
    are present, bool [B V] (None: all). With one visit this is VisionFM's head. Without any, the logit is the bias.
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
    """Sinusoidal encoding of intervals: days [...] to f32 [... width], sines in even channels and cosines in odd ones.

    Source: arXiv:1706.03762, section 3.5. Raises UserError for an odd width.
    """
    if width % 2:
        raise UserError(f"an interval encoding needs an even width, got {width}")
    rates = np.exp(np.arange(0, width, 2) * (-np.log(1e4) / width))
    return sin_cos(days, rates).reshape(*days.shape, width)
