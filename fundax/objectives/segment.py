"""Segmentation: which pixels belong to which structure. VisionFM's (arXiv:2310.04992), its encoder frozen or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from fundax.dense_losses import dice_focal, one_hot, probabilities
from fundax.encoders import maps
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import ViT
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

    def spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B s s 3]; mask i32 [B s s] of classes 0.., or [B s s K] of 0 and 1 where they overlap."""
        side, channels = self.image.image_size, (len(self.classes),) if self.overlapping else ()
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
            "mask": jax.ShapeDtypeStruct((batch, side, side, *channels), jnp.int32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters, and the decoder's batch statistics. Raises UserError where the parts do not fit."""
        del batch
        return maps.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`logits` and `probability` f32 [B h w K]; with exclusive classes the background is channel 0."""
        logits = maps.logits(self, params, extra, batch["image"])
        return {"logits": logits, "probability": probabilities(logits, self.exclusive)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Dice plus focal loss (dense_losses.dice_focal), and both by themselves."""
        del step
        logits, extra = maps.training_logits(self, params, extra, batch["image"], rng)
        parts = dice_focal(logits, one_hot(jnp.asarray(batch["mask"]), self.decoder.outputs), self.exclusive)
        return parts["loss"], (extra, parts)


def outputs(classes: tuple[str, ...], overlapping: bool) -> int:
    """How many numbers per pixel a decoder needs for these classes; see Segment."""
    return len(classes) + (len(classes) > 1 and not overlapping)
