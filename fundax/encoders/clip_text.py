"""Text transformers: CLIP's causal one (arXiv:2103.00020, section 2.4) and SigLIP's bidirectional one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.vit import size_named
from fundax.runtime.mesh import gather_parameter
from fundax.types import UserError


class Embedding(nn.Module):
    """Embedding table [V D]; only the rows that are looked up are cast to `dtype`. An id of V or more gives NaN."""

    count: int
    width: int
    std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(self.std), (self.count, self.width), jnp.float32)
        table = gather_parameter(table, (*self.path, "embedding"))
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)


class TextTransformer(nn.Module):
    """Pre-norm text encoder: ids i32 [B L] to tokens [B L D], after the final norm, and a pooled vector [B D].

    pool: the position of the pooled vector. "argmax": the largest id, which is the end-of-text token in OpenAI's
        vocabulary; "eot": the first `eot_id`; "last" and "first": the last and the first position.
    attention: implementation, see encoders/attention.py.
    """

    vocab: int = 49408
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    activation: layers.Activation = layers.quick_gelu
    epsilon: float = 1e-5
    causal: bool = True
    pool: Literal["argmax", "eot", "last", "first"] = "argmax"
    eot_id: int | None = None
    layer_scale: float | None = None
    init_blocks: Callable[[int, int, int], layers.BlockInit] = layers.init_clip_text
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"
    attention: layers.Path = "plain"

    @nn.compact
    def __call__(self, text: jax.Array, hidden: bool = False) -> dict[str, Any]:
        """tokens [B L D] and pooled [B D]; `hidden` adds a tuple of the blocks' outputs.

        Raises UserError if L is larger than `context`.
        """
        length = text.shape[1]
        self._check(length)
        position = self.param("position", nn.initializers.normal(0.01), (self.context, self.width), jnp.float32)
        x = Embedding(self.vocab, self.width, 0.02, self.dtype, name="token")(text)
        x = x + position[None, :length].astype(self.dtype)
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None] if self.causal else None
        stack = layers.Stack(self.depth, self.scan, self.remat)
        out = stack(self._block(), x, mask, self.pooled_at(text), hidden)
        norm = layers.LayerNorm(self.epsilon, name="norm")
        kept = {"hidden": out["hidden"]} if hidden else {}
        return {"tokens": norm(out["tokens"]), "pooled": norm(out["row"])} | kept

    def _check(self, length: int) -> None:
        if length > self.context:
            raise UserError(f"text has {length} positions; this model has {self.context}")
        if self.pool not in ("argmax", "eot", "last", "first"):
            raise UserError(f"pool is {self.pool!r}; expected argmax, eot, last or first")
        if self.pool == "eot" and self.eot_id is None:
            raise UserError("pool='eot' needs eot_id")

    def _block(self) -> Callable[..., layers.Block]:
        hidden = int(self.width * self.mlp_ratio)
        initial = self.init_blocks(self.width, hidden, self.depth)
        return lambda name: layers.Block(
            self.width, self.heads, hidden, self.activation, initial, True,
            self.epsilon, self.layer_scale, dtype=self.dtype, kind=self.attention, name=name,
        )  # fmt: skip

    def pooled_at(self, text: jax.Array) -> int | jax.Array:
        """Position of the pooled vector: an int, or i32 [B]."""
        if self.pool == "first":
            return 0
        if self.pool == "last":
            return text.shape[1] - 1
        return jnp.argmax(text if self.pool == "argmax" else text == self.eot_id, axis=1)


def text_transformer(size: str, **fields: Any) -> TextTransformer:
    """The text encoder of one of vit.SIZES; `fields` override TextTransformer's. Raises UserError for an unknown size."""
    row = size_named(size)
    sizes: dict[str, Any] = {"width": row.text_width, "depth": row.text_depth, "heads": row.text_heads}
    return TextTransformer(**sizes | fields)
