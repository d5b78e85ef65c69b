"""How well a diffusion model finds the noise in images it has not seen, and what it draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundax.types import Batch, Extra, Forward, Params, UserError


@dataclass(frozen=True)
class Denoising:
    """An Eval: the mean squared error of the noise on held-out images, at a few fixed times; lower is better.

    Results: noise_error, and of `draw` > 0 images drawn from the seeds 0.. the array samples u8 [draw h w 3] and their
    pixels' standard deviation between images, `spread`: 0 where all are alike.
    """

    data: Callable[[], Iterator[Batch]]
    draw: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        errors, batch = [], {}
        for batch in self.data():
            valid = np.asarray(batch.get("valid", np.ones(len(batch["image"]), bool)))
            errors.append(forward(params, extra, batch)["noise_error"][valid])
        if not errors:
            raise UserError("the denoising eval got a split without a single batch")
        out: dict[str, Any] = {"noise_error": float(np.concatenate(errors).mean())}
        if self.draw:
            seeds = {"seed": np.arange(self.draw, dtype=np.int32)}
            known = {key: value[: self.draw] for key, value in batch.items() if key in ("modality", "findings")}
            samples = forward(params, extra, seeds | known)["sample"]
            out |= {"samples": samples, "spread": float(samples.std(0).mean())}
        return out
