"""Masked-language pretraining of a text tower (BERT, arXiv:1810.04805): stage 0 of KeepFIT V2 (arXiv:2501.15798).

That there is such a stage is said in V2's abstract; its corpus and settings are not public, those here are ours. Which
words are hidden is the data's part (data_pipelines/transforms/word_masks.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fundax.encoders.bert import BERT, MaskedHead
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class MaskedText:
    """BERT and the head that names hidden words; the loss is the mean of -log p over them.

    `text` is what the tower sees, `original` the ids as they were, `hidden` where to guess. Parameters: "text", the
    tower as every other objective has it, and "masked", the head.
    """

    text: BERT
    context: int = 256  # tokens of a text; the tower has text.context positions
    guesses: int = (
        0  # the most places of a text that are hidden: logits are made for so many alone; 0 makes them for all
    )

    @property
    def head(self) -> MaskedHead:
        """Tied to the tower's word table."""
        tower = self.text
        return MaskedHead(tower.vocab, tower.width, tower.activation, tower.epsilon, tower.dtype)

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """text, original i32 [B L], hidden bool [B L]."""
        ids = jax.ShapeDtypeStruct((batch, self.context), jnp.int32)
        return {"text": ids, "original": ids, "hidden": jax.ShapeDtypeStruct(ids.shape, jnp.bool_)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters {"text", "masked"}, N(0, 0.02) as BERT's; no extra state."""
        keys = jax.random.split(rng)
        text = self.text.init(keys[0], batch["text"][:1])["params"]
        tokens = jnp.zeros((1, 1, self.text.width), jnp.float32)
        head = self.head.init(keys[1], tokens, text["word"]["embedding"])["params"]
        return {"text": text, "masked": head}, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """text_tokens [B L D], text_raw [B D]; with `original` and `hidden` also word_log_p f32 [B L], of the original
        word at every hidden place (0 elsewhere), and word_right bool [B L].
        """
        out: Any = self.text.apply({"params": params["text"]}, batch["text"])
        found = {"text_tokens": out["tokens"], "text_raw": out["pooled"]}
        if "hidden" not in batch:
            return found
        log_p, right = self._guessed(params, out["tokens"], batch)
        return found | {"word_log_p": log_p, "word_right": right}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean over the hidden words of the global batch; honours `valid`."""
        rngs = {"dropout": rng} if self.text.dropout else {}
        out: Any = self.text.apply({"params": params["text"]}, batch["text"], rngs=rngs)
        log_p, right = self._guessed(params, out["tokens"], batch)
        there = batch["hidden"] & batch["valid"][:, None] if "valid" in batch else batch["hidden"]
        count = jnp.maximum(there.sum(), 1)
        loss = -(log_p * there).sum() / count
        return loss, (extra, {"loss": loss, "word_right": (right & there).sum() / count})

    def _guessed(self, params: Params, tokens: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """log p of the original words, f32 [B L], 0 where nothing is hidden; and where the best guess is right.

        A text with more than `guesses` hidden places gets NaN there, so that none is left out unseen.
        """
        hidden, words = batch["hidden"], batch["original"]
        at = jax.lax.top_k(hidden.astype(jnp.int32), self.guesses or hidden.shape[1])[1]  # hidden places first
        tokens = jnp.take_along_axis(tokens, at[:, :, None], axis=1)
        logits: Any = self.head.apply({"params": params["masked"]}, tokens, params["text"]["word"]["embedding"])
        asked = jnp.take_along_axis(words, at, axis=1)
        chosen = jnp.take_along_axis(logits, asked[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(logits, axis=2)
        rows = jnp.arange(len(words))[:, None]
        log_p = jnp.full(words.shape, jnp.nan, jnp.float32).at[rows, at].set(chosen)
        right = jnp.zeros(words.shape, bool).at[rows, at].set(jnp.argmax(logits, axis=2) == asked)
        return jnp.where(hidden, log_p, 0.0), right & hidden
