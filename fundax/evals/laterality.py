"""Laterality: whether RET-CLIP's left and right heads identify the diseased eye of patients with one diseased eye."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from fundax.evals.features import class_features
from fundax.evals.kinds import Scores
from fundax.types import Batch, Extra, Forward, Params, UserError

SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class Laterality:
    """An Eval of the accuracy of predicting the diseased eye, which is the eye with the lower probability of being healthy.

    Each eye is scored by the head of its side. Only patients with one healthy and one diseased eye are used.

    Args:
        data: batches with left, right u8 [B h w 3], label_left, label_right i32 [B] (below 0 if unknown) and, if rows
            are padding, valid.
        prompts: for each side, an array i32 [P L] for each class, with prompts about that eye.
        healthy: index of the class without disease.

    Returns:
        Scores with the metrics accuracy and patients, and the arrays margin f32 [n] (above 0 if the left eye is predicted
        as diseased) and diseased_left bool [n].

    Raises UserError if no patient has one healthy and one diseased eye.
    """

    data: Callable[[], Iterator[Batch]]
    prompts: Mapping[str, Sequence[np.ndarray]]
    healthy: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Scores:
        def encode(batch: Batch) -> dict[str, np.ndarray]:
            return forward(params, extra, batch)

        heads = {side: class_features(encode, self.prompts[side], key=f"text_features_{side}") for side in SIDES}
        margins, truth = [], []
        for batch in self.data():
            out = encode({side: batch[side] for side in SIDES})
            healthy = {side: self._healthy(out, heads[side], side) for side in SIDES}
            label = {side: np.asarray(batch[f"label_{side}"]) for side in SIDES}
            known = np.minimum(label["left"], label["right"]) >= 0
            used = ((label["left"] == self.healthy) != (label["right"] == self.healthy)) & known
            used &= np.asarray(batch.get("valid", np.ones(len(used), bool)))
            margins.append((healthy["right"] - healthy["left"])[used])
            truth.append((label["right"] == self.healthy)[used])
        margin, diseased_left = np.concatenate(margins), np.concatenate(truth)
        if not len(margin):
            raise UserError("laterality: no patient has one healthy and one diseased eye")
        accuracy = float(np.mean((margin > 0) == diseased_left))
        metrics = {"accuracy": accuracy, "patients": float(len(margin))}
        return Scores(metrics=metrics, other={"margin": margin, "diseased_left": diseased_left})

    def _healthy(self, out: Mapping[str, np.ndarray], heads: np.ndarray, side: str) -> np.ndarray:
        """log P(healthy) f32 [B] of the eyes of one side."""
        logits = out[f"{side}_features"] @ heads.T * out[f"logit_scale_{side}"]  # [B K]
        return log_softmax(logits, axis=1)[:, self.healthy]
