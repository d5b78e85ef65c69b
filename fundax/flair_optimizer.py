"""FLAIR's optimizer and schedule, which KeepFIT keeps."""

from __future__ import annotations

from typing import Any

import optax

from fundax.label_aware import MAX_LOG_SCALE
from fundax.optim import Schedule, adamw, clamped, cosine

HORIZON = 100  # epochs of FLAIR's cosine, however many are trained


def flair_schedule(lr: float, steps_per_epoch: int, horizon: int = HORIZON, warmup: int = 1) -> Schedule:
    """`warmup` epochs of linear warm-up, then a cosine that would reach 0 after `horizon` epochs.

    The peers train 15 or 25 epochs of it, so the rate never falls below 0.9 of `lr`; pass the epochs you train as
    `horizon` to let it come down. Source: github.com/jusiro/FLAIR, its warm-up cosine scheduler.
    """
    return cosine(lr, horizon * steps_per_epoch, warmup=warmup * steps_per_epoch)


def decay_all(path: str, leaf: Any) -> bool:
    """Every parameter decays, norms, biases and the log scale too: one parameter group, as the peers have it."""
    return True


def flair_adamw(
    lr: float = 1e-4, *, steps_per_epoch: int, horizon: int = HORIZON, weight_decay: float = 1e-5, clip: float = 1.0
) -> optax.GradientTransformation:
    """AdamW on `flair_schedule`, gradients clipped to a global norm of `clip`, log_scale kept in [0, 4.6052]."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        adamw(flair_schedule(lr, steps_per_epoch, horizon), weight_decay=weight_decay, decay=decay_all),
        clamped({"log_scale$": (0.0, MAX_LOG_SCALE)}),
    )
