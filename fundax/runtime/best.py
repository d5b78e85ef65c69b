"""The metric that selects a run's best checkpoint."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import numpy as np

from fundax.types import UserError

Best = str | tuple[str, str]  # a logged metric to maximise, or (metric, "min") or (metric, "max"); see `measured`


def ranking(best: Best) -> tuple[str, float]:
    """The name of the metric that ranks checkpoints, and the sign that makes higher values better.

    Raises UserError for anything but a name, (name, "min") or (name, "max").
    """
    name, direction = (best, "max") if isinstance(best, str) else best
    if direction not in ("min", "max"):
        raise UserError(f'Recipe.best is {best!r}; expected a metric, (metric, "min") or (metric, "max")')
    return name, 1.0 if direction == "max" else -1.0


def measured(best: Best, row: Mapping[str, float]) -> float | None:
    """The value that a step with these results is ranked by; None where no result has the name.

    The name may be a pattern: "zero_shot*/macro_auc" is the mean over the results that match and are numbers.
    """
    values = [value for name, value in row.items() if fnmatch.fnmatchcase(name, ranking(best)[0])]
    numbers = [float(value) for value in values if not np.isnan(value)]
    return (float(np.mean(numbers)) if numbers else float("nan")) if values else None
