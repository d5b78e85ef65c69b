"""Segmentation: which pixels belong to which structure. VisionFM's (arXiv:2310.04992), its encoder frozen or not.

Landmarks: the pixel of each, by a map of probabilities. VisionFM's (arXiv:2310.04992), but the truth is coordinates.

The peer stores a landmark as a map with one pixel set, which a resize can lose; here points move as numbers, and maps
are drawn after that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from fundax.encoders import unetr
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import ViT
from fundax.losses import dense as dense_losses
from fundax.losses.dense import dice_focal, one_hot, probabilities
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class Segment:
    """A ViT and a decoder that gives every pixel its classes.

    classes: one name is a structure against all else, a sigmoid; several are exclusive, a softmax whose class 0 is the
    background that the names leave out; with `overlapping` a pixel may have any of them, a sigmoid each.
    The other fields are those of encoders.maps.Maps.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "mask")

    image: ViT
    decoder: UNETR | Linear
    blocks: tuple[int, ...]
    classes: tuple[str, ...]
    overlapping: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frozen: bool = False

    @property
    def exclusive(self) -> bool:
        """Whether a pixel has exactly one class."""
        return len(self.classes) > 1 and not self.overlapping

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B s s 3]; mask i32 [B s s] of classes 0.., or [B s s K] of 0 and 1 where they overlap."""
        side, channels = self.image.image_size, (len(self.classes),) if self.overlapping else ()
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
            "mask": jax.ShapeDtypeStruct((batch, side, side, *channels), jnp.int32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters, and the decoder's batch statistics. Raises UserError where the parts do not fit."""
        del batch
        return unetr.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`logits` and `probability` f32 [B h w K]; with exclusive classes the background is channel 0."""
        logits = unetr.logits(self, params, extra, batch["image"])
        return {"logits": logits, "probability": probabilities(logits, self.exclusive)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Dice plus focal loss (dense_losses.dice_focal), and both by themselves."""
        del step
        logits, extra = unetr.training_logits(self, params, extra, batch["image"], rng)
        parts = dice_focal(logits, one_hot(jnp.asarray(batch["mask"]), self.decoder.outputs), self.exclusive)
        return parts["loss"], (extra, parts)


def outputs(classes: tuple[str, ...], overlapping: bool) -> int:
    """How many numbers per pixel a decoder needs for these classes; see Segment."""
    return len(classes) + (len(classes) > 1 and not overlapping)


def decoder(
    kind: str, outputs: int, patch: int, width: int, dropout: float, start: float, dtype: str
) -> UNETR | Linear:
    """The decoder "unetr" or "linear" on an encoder with that patch size; `start` is the initial bias of the outputs."""
    if kind == "linear":
        return Linear(outputs, patch, start, dtype)
    return UNETR(outputs, patch, width, dropout, start, dtype)


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

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B s s 3]; points f32 [B n 2], (x, y) in its pixels, NaN where a landmark has no place."""
        side = self.image.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, len(self.names), 2), jnp.float32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters, and the decoder's batch statistics. Raises UserError where the parts do not fit."""
        del batch
        return unetr.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`logits` f32 [B h w n]; `points` (the highest pixel), `points_expected` (the mean place) f32 [B n 2].

        `confidence` f32 [B n]: the probability of the highest pixel.
        """
        logits = unetr.logits(self, params, extra, batch["image"])
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
        logits, extra = unetr.training_logits(self, params, extra, batch["image"], rng)
        points = jnp.asarray(batch["points"], jnp.float32)
        height, width = logits.shape[1:3]
        loss = dense_losses.landmark_loss(logits, dense_losses.heat_maps(points, height, width, self.sigma))
        there = dense_losses.inside(points, height, width)
        away = dense_losses.expected_points(jax.lax.stop_gradient(logits)) - jnp.where(there[..., None], points, 0)
        distance = (jnp.linalg.norm(away, axis=-1) * there).sum() / jnp.maximum(there.sum(), 1)
        return loss, (extra, {"loss": loss, "distance": distance})
