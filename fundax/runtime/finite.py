"""Whether losses, gradients and what is saved are finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.runtime.checkpoint import Checkpoints
from fundax.types import Metrics, UserError


class Finite:
    """Checks that losses, gradients and what is saved are finite, without waiting for the device at every step."""

    def __init__(self, kept: Checkpoints) -> None:
        self._kept = kept
        self._seen: list[tuple[int, Any]] = []

    def note(self, step: int, metrics: Metrics) -> None:
        """Store the loss and gradient norm of a step for the next check."""
        self._seen.append((step, (metrics["loss"], metrics["gradient_norm"])))

    def check(self, step: int = 0, items: dict[str, Any] | None = None) -> None:
        """Raise UserError for the first step that is not finite; with `items`, what is saved of `step`, also if those are not."""
        for noted, values in self._seen:
            loss, norm = (float(value) for value in values)
            if not np.isfinite(loss) or not np.isfinite(norm):
                raise self._stopped(f"step {noted}: loss {loss}, gradient norm {norm}:")
        self._seen.clear()
        if items is not None and (broken := not_finite(items)):
            raise self._stopped(f"step {step}: {broken} after the update:")

    def _stopped(self, what: str) -> UserError:
        steps = self._kept.committed()
        good = f"step {steps[-1]} is saved and good" if steps else "nothing is saved"
        return UserError(
            f"{what} not finite, so training stopped; {good}. "
            "Try a lower learning rate, a longer warm-up or fp32, or check the input for damaged images."
        )


def not_finite(items: dict[str, Any]) -> str:
    """The names of the items (params, extra, opt) that hold a number that is not finite, else ""."""
    return " and ".join(name for name, finite in jax.device_get(_all_finite(items)).items() if not finite)


@jax.jit
def _all_finite(items: dict[str, Any]) -> dict[str, jax.Array]:
    numbers = {k: [x for x in jax.tree.leaves(v) if jnp.issubdtype(x.dtype, jnp.inexact)] for k, v in items.items()}
    return {name: jnp.array([jnp.isfinite(x).all() for x in found]).all() for name, found in numbers.items()}
