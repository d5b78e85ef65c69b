"""Masked-language pretraining of a text encoder (BERT, arXiv:1810.04805): stage 0 of KeepFIT V2 (arXiv:2501.15798).

V2's abstract mentions this stage; its corpus and settings are not public, so those here are ours. The data pipeline
chooses which words to mask (data_pipelines/transforms/word_masks.py)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fundax.encoders.bert import BERT, MaskedHead
from fundax.encoders.layers import apply
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class MaskedText:
    """BERT with a masked-language-model head; the loss is the mean -log p of the masked words.

    A batch has `text`, the ids with masks; `original`, the ids before masking; and `hidden`, the positions to predict.
    Parameters are "text", the encoder as in every other objective, and "masked", the head.

    context: tokens of a text; BERT has text.context positions.
    guesses: largest number of hidden positions per text; logits are computed for so many only. 0: for all positions.
    """

    text: BERT
    context: int = 256
    guesses: int = 0

    @property
    def head(self) -> MaskedHead:
        """The head, tied to the encoder's word table."""
        tower = self.text
        return MaskedHead(tower.vocab, tower.width, tower.activation, tower.epsilon, tower.dtype)

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """text, original i32 [B L], hidden bool [B L]."""
        ids = jax.ShapeDtypeStruct((batch, self.context), jnp.int32)
        return {"text": ids, "original": ids, "hidden": jax.ShapeDtypeStruct(ids.shape, jnp.bool_)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters {"text", "masked"}, N(0, 0.02) as BERT's; no extra state."""
        keys = jax.random.split(rng)
        text = self.text.init(keys[0], batch["text"][:1])["params"]
        tokens = jnp.zeros((1, 1, self.text.width), jnp.float32)
        head = self.head.init(keys[1], tokens, text["word"]["embedding"])["params"]
        return {"text": text, "masked": head}, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """text_tokens [B L D] and text_raw [B D]. With `original` and `hidden` also word_log_p f32 [B L], the log p of the
        original word at hidden positions (0 elsewhere), and word_right bool [B L].
        """
        out = apply(self.text, params["text"], batch["text"])
        outputs = {"text_tokens": out["tokens"], "text_raw": out["pooled"]}
        if "hidden" not in batch:
            return outputs
        log_p, right = self._predicted(params, out["tokens"], batch)
        return outputs | {"word_log_p": log_p, "word_right": right}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean over the hidden words of the global batch; texts that are not `valid` are left out."""
        rngs = {"dropout": rng} if self.text.dropout else {}
        out = apply(self.text, params["text"], batch["text"], rngs=rngs)
        log_p, right = self._predicted(params, out["tokens"], batch)
        there = batch["hidden"] & batch["valid"][:, None] if "valid" in batch else batch["hidden"]
        count = jnp.maximum(there.sum(), 1)
        loss = -(log_p * there).sum() / count
        return loss, (extra, {"loss": loss, "word_right": (right & there).sum() / count})

    def _predicted(self, params: Params, tokens: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """log p of the original words, f32 [B L] and 0 where nothing is hidden; whether the prediction is right, bool [B L].

        Hidden positions beyond the first `guesses` of a text are NaN, so that leaving them out does not go unnoticed.
        """
        hidden, words = batch["hidden"], batch["original"]
        at = jax.lax.top_k(hidden.astype(jnp.int32), self.guesses or hidden.shape[1])[1]  # hidden positions first
        tokens = jnp.take_along_axis(tokens, at[:, :, None], axis=1)
        logits = apply(self.head, params["masked"], tokens, params["text"]["word"]["embedding"])
        truth = jnp.take_along_axis(words, at, axis=1)
        chosen = jnp.take_along_axis(logits, truth[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(logits, axis=2)
        rows = jnp.arange(len(words))[:, None]
        log_p = jnp.full(words.shape, jnp.nan, jnp.float32).at[rows, at].set(chosen)
        right = jnp.zeros(words.shape, bool).at[rows, at].set(jnp.argmax(logits, axis=2) == truth)
        return jnp.where(hidden, log_p, 0.0), right & hidden
