"""BERT (arXiv:1810.04805) and its masked-language-model head.

RoBERTa-wwm-ext, PubMedBERT, Bio_ClinicalBERT and RBT3 have this architecture: Hugging Face's BertModel without the
pooler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.clip_text import Embedding
from fundax.runtime.mesh import constrain_rows
from fundax.types import UserError

# width, depth, heads, hidden; RBT3 is the first three layers of RoBERTa-wwm-ext (github.com/ymcui/Chinese-BERT-wwm)
SIZES = {
    "mini": (192, 4, 3, 768),
    "rbt3": (768, 3, 12, 3072),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}

POOLS = ("cls", "mean", "unmasked_mean")


def bert(size: str, **fields: Any) -> BERT:
    """A BERT of one of SIZES; `fields` override BERT's. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"text size is {size!r}; expected one of {', '.join(SIZES)}")
    width, depth, heads, hidden = SIZES[size]
    row: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
    return BERT(**row | fields)


class BERT(nn.Module):
    """Post-norm text encoder: ids i32 [B L] to tokens [B L D] and a pooled vector [B D].

    pool: the [CLS] token ("cls"), the mean of the tokens without padding ("mean"), or the mean of all tokens including
        padding ("unmasked_mean"); FLAIR uses the last one, so its embeddings depend on the amount of padding.
    pool_layers: hidden states averaged before pooling, numbered as in Hugging Face: 0 is the embedding, i the output
        of block i, -1 the last.
    pad_id: id of the padding, which is not attended to.

    Dropout is active if the caller passes a "dropout" rng.
    """

    vocab: int = 21128
    context: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    token_types: int = 2
    activation: layers.Activation = layers.gelu_exact
    epsilon: float = 1e-12
    dropout: float = 0.1
    pool: Literal["cls", "mean", "unmasked_mean"] = "cls"
    pool_layers: tuple[int, ...] = (-1,)
    pad_id: int = 0
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, text: jax.Array, hidden: bool = False) -> dict[str, Any]:
        """tokens [B L D] and pooled [B D]; `hidden` adds embedded [B L D] and hidden, a tuple of the blocks' outputs.

        Raises UserError if L is larger than `context`.
        """
        self._check(text)
        present = text != self.pad_id  # [B L]
        start = self._embedded(text)
        row_is_enough = self.pool == "cls" and self.pool_layers == (-1,)
        stack = layers.Stack(self.depth, self.scan, self.remat)
        out = stack(self._block(), start, present[:, None, None, :], 0, hidden or not row_is_enough)
        states = (start, *out["hidden"])
        pooled = out["row"] if row_is_enough else self._pooled([states[i] for i in self.pool_layers], present)
        kept = {"embedded": start, "hidden": out["hidden"]} if hidden else {}
        return {"tokens": out["tokens"], "pooled": pooled} | kept

    def _check(self, text: jax.Array) -> None:
        if text.shape[1] > self.context:
            raise UserError(f"text has {text.shape[1]} positions; this model has {self.context}")
        if self.pool not in POOLS:
            raise UserError(f"pool is {self.pool!r}; expected one of {', '.join(POOLS)}")
        if bad := [i for i in self.pool_layers if not -self.depth - 1 <= i <= self.depth]:
            raise UserError(f"pool_layers has {bad[0]}; there are layers 0 (embeddings) to {self.depth}")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")

    def _embedded(self, text: jax.Array) -> jax.Array:
        table = lambda count, name: Embedding(count, self.width, 0.02, self.dtype, name=name)  # noqa: E731
        x = table(self.vocab, "word")(text)
        x = x + table(self.context, "position")(jnp.arange(text.shape[1]))[None]
        x = x + table(self.token_types, "token_type")(jnp.zeros((1,), jnp.int32))[None]  # every text is one segment
        x = layers.LayerNorm(self.epsilon, name="embed_norm")(x)
        return nn.Dropout(self.dropout)(x, deterministic=not self.has_rng("dropout"))

    def _block(self) -> Callable[..., PostNormBlock]:
        fields = (self.width, self.heads, self.hidden, self.activation, self.epsilon, self.dropout, self.dtype)
        return partial(PostNormBlock, *fields)

    def _pooled(self, states: Sequence[jax.Array], present: jax.Array) -> jax.Array:
        x = jnp.mean(jnp.stack(states), axis=0)  # [B L D]
        if self.pool == "cls":
            return x[:, 0]
        weights = present if self.pool == "mean" else jnp.ones_like(present)
        weights = weights[:, :, None].astype(x.dtype)
        return (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


class PostNormBlock(nn.Module):
    """Post-norm block: x = norm1(x + attention(x)); x = norm2(x + mlp(x)), with dropout (arXiv:1706.03762, 3.1)."""

    width: int
    heads: int
    hidden: int
    activation: layers.Activation
    epsilon: float = 1e-12
    dropout: float = 0.1
    dtype: str = "float32"

    def setup(self) -> None:
        init = layers.BlockInit(*(nn.initializers.normal(0.02),) * 4)
        self.attention = layers.Attention(self.width, self.heads, True, init, self.dtype, dropout=self.dropout)
        self.norm1 = layers.LayerNorm(self.epsilon)
        self.mlp = layers.MLP(self.width, self.hidden, self.activation, init, self.dtype)
        self.norm2 = layers.LayerNorm(self.epsilon)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, rows: layers.Rows = None) -> jax.Array:
        """x [B L D], mask bool broadcastable to [B H L L]; returns [B L D], or [B 1 D] if `rows` is given."""
        off, x = not self.has_rng("dropout"), constrain_rows(x)
        y = self.drop(self.attention(x, mask, rows), deterministic=off)
        x = self.norm1(layers.take_rows(x, rows) + y)
        return constrain_rows(self.norm2(x + self.drop(self.mlp(x), deterministic=off)))


class MaskedHead(nn.Module):
    """Masked-language-model head: dense layer, GELU, norm, then the word table of the encoder (weight tying).

    The architecture of Hugging Face's BertForMaskedLM (arXiv:1810.04805, section 3.1).
    """

    vocab: int
    width: int
    activation: layers.Activation = layers.gelu_exact
    epsilon: float = 1e-12
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, table: jax.Array) -> jax.Array:
        """Logits f32 [B L V] from tokens [B L D] and the word table f32 [V D]."""
        zeros = nn.initializers.zeros
        x = layers.Dense(self.width, nn.initializers.normal(0.02), zeros, self.dtype, name="dense")(tokens)
        x = layers.LayerNorm(self.epsilon, name="norm")(self.activation(x))
        logits = jnp.einsum("bld,vd->blv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        bias = self.param("bias", zeros, (self.vocab,), jnp.float32)
        return logits + bias.reshape(1, 1, -1)
