"""Which eye is it? Patients with one diseased eye, told by the left and the right head of RET-CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundax.types import Batch, Extra, Forward, Params, UserError

SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class Laterality:
    """An Eval: each eye's probability of being healthy by its own head; the eye with the lower one is called diseased.

    data: batches with left, right u8 [B h w 3], label_left, label_right i32 [B] and, where rows are padding, valid.
        Only patients with one healthy and one diseased eye count; a label below 0 is unknown.
    prompts: per side, one array i32 [P L] per class, worded for that eye; `healthy` is the class that is no disease.

    Results: accuracy, patients; arrays margin f32 [n] (> 0 says left), diseased_left bool [n].
    Raises UserError if no such patient is there.
    """

    data: Callable[[], Iterator[Batch]]
    prompts: Mapping[str, Sequence[np.ndarray]]
    healthy: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        def encode(batch: Batch) -> dict[str, np.ndarray]:
            return forward(params, extra, batch)

        heads = {side: class_features(encode, self.prompts[side], side) for side in SIDES}
        margins, truth = [], []
        for batch in self.data():
            out = encode({side: batch[side] for side in SIDES})
            healthy = {side: self._healthy(out, heads[side], side) for side in SIDES}
            label = {side: np.asarray(batch[f"label_{side}"]) for side in SIDES}
            known = np.minimum(label["left"], label["right"]) >= 0
            one = ((label["left"] == self.healthy) != (label["right"] == self.healthy)) & known
            one &= np.asarray(batch.get("valid", np.ones(len(one), bool)))
            margins.append((healthy["right"] - healthy["left"])[one])
            truth.append((label["right"] == self.healthy)[one])
        margin, diseased_left = np.concatenate(margins), np.concatenate(truth)
        if not len(margin):
            raise UserError("laterality: no patient has one healthy and one diseased eye")
        accuracy = float(np.mean((margin > 0) == diseased_left))
        return {
            "accuracy": accuracy,
            "patients": float(len(margin)),
            "margin": margin,
            "diseased_left": diseased_left,
        }

    def _healthy(self, out: Mapping[str, np.ndarray], heads: np.ndarray, side: str) -> np.ndarray:
        """log P(healthy) of each eye of one side, f32 [B]."""
        logits = out[f"{side}_features"] @ heads.T * out[f"logit_scale_{side}"]  # [B K]
        largest = logits.max(1, keepdims=True)
        log_sum = largest + np.log(np.exp(logits - largest).sum(1, keepdims=True))
        return (logits - log_sum)[:, self.healthy]


def class_features(
    encode: Callable[[Batch], Mapping[str, np.ndarray]], prompts: Sequence[np.ndarray], side: str, text_batch: int = 64
) -> np.ndarray:
    """Unit features f32 [K E] of one side's text head: per class the mean of its prompts', normalised again."""
    ids = np.concatenate([np.atleast_2d(p) for p in prompts])
    padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % text_batch, axis=0)])
    key = f"text_features_{side}"
    parts = [encode({"text": padded[at : at + text_batch]})[key] for at in range(0, len(padded), text_batch)]
    features = np.concatenate(parts)[: len(ids)]
    ends = np.cumsum([len(np.atleast_2d(p)) for p in prompts])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(features, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)
