"""What BERT predicts hidden words with (arXiv:1810.04805, section 3.1): dense, GELU, norm, and the word table again."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers


class MaskedHead(nn.Module):
    """Tokens [B L D] and the tower's word table [V D] to logits f32 [B L V]; the table is shared, the bias is its own.

    The layout is that of Hugging Face's BertForMaskedLM, whose `decoder` is the same table.
    """

    vocab: int
    width: int
    activation: layers.Activation = layers.gelu_exact
    epsilon: float = 1e-12
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, table: jax.Array) -> jax.Array:
        """tokens [B L D], table f32 [V D]."""
        zeros = nn.initializers.zeros
        x = layers.Dense(self.width, nn.initializers.normal(0.02), zeros, self.dtype, name="dense")(tokens)
        x = layers.LayerNorm(self.epsilon, name="norm")(self.activation(x))
        logits = jnp.einsum("bld,vd->blv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        bias = self.param("bias", zeros, (self.vocab,), jnp.float32)
        return logits + bias.reshape(1, 1, -1)
