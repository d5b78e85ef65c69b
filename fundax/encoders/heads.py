"""Heads of self-distillation: tokens to logits over prototypes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers


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
        return layers.unit(layers.Dense(self.bottleneck, normal, dtype=self.dtype, name=f"fc{self.layers}")(x))
