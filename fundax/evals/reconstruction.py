"""Reconstruction error of an autoencoder on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fundax.evals.kinds import ReconstructionResult
from fundax.types import Batch, Eval, Extra, Forward, Params, UserError


def rebuilt(data: Callable[[], Iterator[Batch]], shown: int = 8) -> Eval:
    """An eval that compares images u8 [B H W 3] with their reconstructions.

    The forward pass returns the reconstructions as `rebuilt` f32 [B H W 3], from 0 to 1, and the codes as `codes`.

    Returns:
        A ReconstructionResult with the first `shown` images. Metrics: error (mean absolute error of pixels from 0 to 1),
        psnr in dB, codes_used and perplexity (of the codes over all images).

    Raises UserError if there are no rows.
    """

    def evaluate(forward: Forward, params: Params, extra: Extra) -> ReconstructionResult:
        errors, squares, codes, kept = [], [], [], []
        for batch in data():
            image = np.asarray(batch["image"])
            valid = np.asarray(batch.get("valid", np.ones(len(image), bool)))
            out = forward(params, extra, {"image": image})
            reconstruction = np.asarray(out["rebuilt"])[valid]
            difference = reconstruction - image[valid] / np.float32(255)
            errors.append(np.abs(difference).mean((1, 2, 3)))
            squares.append(np.square(difference).mean((1, 2, 3)))
            codes.append(np.asarray(out["codes"])[valid].ravel())
            if sum(map(len, errors)) - len(reconstruction) < shown:
                kept.append((image[valid], np.round(reconstruction * 255).astype(np.uint8)))
        if not errors:
            raise UserError("the reconstruction evaluation has no rows")
        share = np.bincount(np.concatenate(codes)) / sum(map(len, codes))
        share = share[share > 0]
        metrics = {
            "error": float(np.concatenate(errors).mean()),
            "psnr": float(-10 * np.log10(np.concatenate(squares).mean())),
            "codes_used": float(len(share)),
            "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        }
        images, reconstructions = (np.concatenate([pair[side] for pair in kept])[:shown] for side in (0, 1))
        return ReconstructionResult(metrics=metrics, pictures=images, reconstruction=reconstructions)

    return evaluate
