"""The training loss on held-out examples, for objectives without a better metric that needs no labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fundax.evals.kinds import Scores
from fundax.types import Batch, Extra, Forward, Objective, Params, UserError


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """An Eval of the mean training loss over batches of held-out examples, with a fixed random seed.

    Args:
        data: training batches of held-out examples. Batches with padding are skipped, unless all batches have padding.
        objective: the objective with the loss.
        step: training step for the schedules (temperatures, masks).

    Returns:
        Scores with the metric loss.

    Raises UserError if there are no batches.
    """

    data: Callable[[], Iterator[Batch]]
    objective: Objective
    step: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Scores:
        del forward
        run = jax.jit(lambda p, e, b: self.objective.loss(p, e, b, jax.random.key(0), jnp.int32(self.step))[0])
        keys, whole, padded = tuple(self.objective.batch_spec(1)), [], []
        for batch in self.data():
            loss = float(run(params, extra, {key: np.asarray(batch[key]) for key in keys}))
            (whole if np.all(batch.get("valid", True)) else padded).append(loss)
        if not whole and not padded:
            raise UserError("the held-out loss got no examples")
        return Scores(metrics={"loss": float(np.mean(whole or padded))})
