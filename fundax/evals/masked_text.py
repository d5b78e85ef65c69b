"""Masked language modelling loss on held-out texts, compared with a unigram baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fundax.evals.kinds import Scores
from fundax.types import Batch, Eval, Extra, Forward, Params, UserError

SMOOTHING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # added to every count; the baseline uses the best value


def masked_words(data: Callable[[], Iterator[Batch]], counts: Callable[[], np.ndarray]) -> Eval:
    """An eval of the mean -log p of masked tokens, in nats.

    Args:
        data: batches of text, original i32 [B L], hidden bool [B L] and, if rows are padding, valid bool [B].
        counts: returns the counts i64 [V] of the token ids in the training texts.

    Returns:
        Scores with the metrics loss, unigram (the loss of predicting tokens by their frequency, with the smoothing that
        is best for these tokens, so that the baseline is strong), below_unigram (unigram - loss), word_right (accuracy)
        and words (number of masked tokens).

    Raises UserError if no token is masked.
    """

    def evaluate(forward: Forward, params: Params, extra: Extra) -> Scores:
        log_p, right, ids = [], [], []
        for batch in data():
            out = forward(params, extra, {key: batch[key] for key in ("text", "original", "hidden")})
            there = np.asarray(batch["hidden"], bool)
            if "valid" in batch:
                there = there & np.asarray(batch["valid"], bool)[:, None]
            log_p.append(np.asarray(out["word_log_p"])[there])
            right.append(np.asarray(out["word_right"])[there])
            ids.append(np.asarray(batch["original"])[there])
        words = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        if not len(words):
            raise UserError("the evaluation of masked words has no masked word; are the texts empty?")
        loss, baseline = -float(np.concatenate(log_p).mean()), unigram_loss(words, counts())
        metrics = {
            "loss": loss,
            "unigram": baseline,
            "below_unigram": baseline - loss,
            "word_right": float(np.concatenate(right).mean()),
            "words": float(len(words)),
        }
        return Scores(metrics=metrics)

    return evaluate


def unigram_loss(words: np.ndarray, counts: np.ndarray) -> float:
    """Mean -log p of token ids i32 [N], predicted by the counts [V] with the best smoothing in SMOOTHING."""
    losses = []
    for added in SMOOTHING:
        p = (counts + added) / (counts + added).sum()
        losses.append(-np.log(p[words]).mean())
    return float(min(losses))
