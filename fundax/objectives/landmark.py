"""Landmarks: the pixel of each, by a map of probabilities. VisionFM's (arXiv:2310.04992), but the truth is coordinates.

The peer stores a landmark as a map with one pixel set, which a resize can lose; here points move as numbers, and maps
are drawn after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from fundax import dense_losses
from fundax.encoders import maps
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class Landmark:
    """A ViT and a decoder with one output for each of `names`.

    sigma: of the Gaussian, in pixels of the model's image, that a point is learnt as; 0 is the peer's single pixel.
    The other fields are those of encoders.maps.Maps.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "points")

    image: ViT
    decoder: UNETR | Linear
    blocks: tuple[int, ...]
    names: tuple[str, ...]
    sigma: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frozen: bool = False

    def spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B s s 3]; points f32 [B n 2], (x, y) in its pixels, NaN where a landmark has no place."""
        side = self.image.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, len(self.names), 2), jnp.float32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters, and the decoder's batch statistics. Raises UserError where the parts do not fit."""
        del batch
        return maps.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`logits` f32 [B h w n]; `points` (the highest pixel), `points_expected` (the mean place) f32 [B n 2].

        `confidence` f32 [B n]: the probability of the highest pixel.
        """
        logits = maps.logits(self, params, extra, batch["image"])
        return {
            "logits": logits,
            "points": dense_losses.peaks(logits),
            "points_expected": dense_losses.expected_points(logits),
            "confidence": jnp.exp(dense_losses.spatial_log_softmax(logits).max((1, 2))),
        }

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """The likelihood of the points (dense_losses.landmark_loss), and the mean distance in pixels."""
        del step
        logits, extra = maps.training_logits(self, params, extra, batch["image"], rng)
        points = jnp.asarray(batch["points"], jnp.float32)
        height, width = logits.shape[1:3]
        loss = dense_losses.landmark_loss(logits, dense_losses.heat_maps(points, height, width, self.sigma))
        there = dense_losses.inside(points, height, width)
        away = dense_losses.expected_points(jax.lax.stop_gradient(logits)) - jnp.where(there[..., None], points, 0)
        distance = (jnp.linalg.norm(away, axis=-1) * there).sum() / jnp.maximum(there.sum(), 1)
        return loss, (extra, {"loss": loss, "distance": distance})
