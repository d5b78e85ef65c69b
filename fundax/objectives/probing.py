"""Training of a head on frozen features: by logistic regression, as scikit-learn does, or by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optax

from fundax.encoders.heads import MLPHead
from fundax.optim import adamw, cosine_schedule, decay_all, freeze
from fundax.types import Extra, UserError


@dataclass(frozen=True)
class Probe:
    """Settings for training a head on frozen features.

    Attributes:
        head: the head.
        penalty: L2 penalty, a field of Classify.
        rule: optimizer, which leaves the standardisation as it is.
        steps, batch: number of steps, and rows of a step.
        exact: whether every step uses all rows and training converges.
    """

    head: MLPHead
    penalty: float
    rule: optax.GradientTransformation
    steps: int
    batch: int
    exact: bool

    def init_extra(self, read: Callable[[], Any]) -> tuple[Callable[[Extra], Extra], ...]:
        """Steps of Recipe.init_extra that set the mean and variance of the training features `read()["feature"]`."""

        def fill(extra: Extra) -> Extra:
            feature = read()["feature"].astype(np.float64)
            mean, var = feature.mean(0), feature.var(0)
            var = np.where(var < 1e-12, 1.0, var)  # a feature that never varies says nothing, as in scikit-learn
            norm = {**extra["head"]["norm"], "mean": mean.astype(np.float32), "var": var.astype(np.float32)}
            return {**extra, "head": {**extra["head"], "norm": norm}}

        return (fill,) if self.exact else ()


def probe(
    name: Literal["logistic", "linear", "mlp"],
    run: Any,
    width: int,
    rows: int,
    outputs: int,
    several: bool,
    strength: float,
) -> Probe:
    """A linear layer (linear) or VisionFM's decoder (mlp) with AdamW, or logistic regression (logistic).

    Logistic regression is scikit-learn's, of standardised features with C = `strength`. The problem is convex, so that
    steps of a size that the number of features decides, with Nesterov's momentum, reach its optimum.

    Args:
        run: fundax.recipe.Run.
        width, rows: number of features and of training rows.
        outputs, several: number of classes or findings, and whether several apply at once.
    Raises:
        UserError: a strength that is not positive.

    Source: Y. Nesterov, Introductory Lectures on Convex Optimization, 2004, theorem 2.2.3.
    """
    if strength <= 0:
        raise UserError(f"--strength {strength}; expected a positive number")
    if name != "logistic":
        steps = run.steps or max(run.epochs * rows // run.batch, 1)
        rule = adamw(
            cosine_schedule(run.lr * run.batch / 256, 0, steps), weight_decay=run.weight_decay, decay=decay_all
        )
        head = MLPHead(outputs, 3 if name == "mlp" else 1, norm=name == "mlp")
        return Probe(head, 0.0, rule, steps, run.batch, False)
    # scikit-learn minimises C times the sum of the losses; its single weight vector of two classes is our difference
    penalty = (1 / outputs if several else 2.0 if outputs == 2 else 1.0) / (strength * rows)
    smooth = (width + 1) / 2 + penalty  # a bound on the curvature: the trace of the features' covariance
    root = math.sqrt(smooth / penalty)
    rule = freeze(optax.sgd(1 / smooth, (root - 1) / (root + 1), nesterov=True), "^head/norm/")
    steps, batch = run.steps or min(math.ceil(12 * root), 5000), -(-rows // 8) * 8
    return Probe(MLPHead(outputs, 1, standardized=True, epsilon=1e-12), penalty, rule, steps, batch, True)
