"""Denoising error of a diffusion model on held-out images, and samples drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import Scores
from fundax.types import Batch, Extra, Forward, Params, UserError


@dataclass(frozen=True)
class Denoising:
    """An Eval of the mean squared error of the predicted noise on held-out images, at a few fixed times.

    Args:
        data: batches of held-out images.
        draw: number of images to sample, with seeds 0, 1, ....

    Returns:
        Scores with the metric noise_error. If `draw` > 0, also the array samples u8 [draw h w 3] and the metric spread,
        the standard deviation of a pixel between the samples (0 if all samples are equal).
    """

    data: Callable[[], Iterator[Batch]]
    draw: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Scores:
        errors, batch = [], {}
        for batch in self.data():
            valid = np.asarray(batch.get("valid", np.ones(len(batch["image"]), bool)))
            errors.append(forward(params, extra, batch)["noise_error"][valid])
        if not errors:
            raise UserError("the denoising eval got no batches")
        metrics, other = {"noise_error": float(np.concatenate(errors).mean())}, {}
        if self.draw:
            seeds = {"seed": np.arange(self.draw, dtype=np.int32)}
            known = {key: value[: self.draw] for key, value in batch.items() if key in ("modality", "findings")}
            samples = forward(params, extra, seeds | known)["sample"]
            metrics["spread"] = float(samples.std(0).mean())
            other["samples"] = samples
        return Scores(metrics=metrics, other=other)
