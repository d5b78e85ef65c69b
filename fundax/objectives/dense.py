"""Segmentation and landmark detection: a ViT and a dense decoder, as in VisionFM (arXiv:2310.04992), or a pyramid.

VisionFM stores a landmark as a mask with one pixel set, which resizing can lose. Here landmarks are coordinates, and the
target maps are drawn after all geometric transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fundax.encoders import unetr
from fundax.encoders.backbone import Backbone, VisionEncoder
from fundax.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD, RGB
from fundax.encoders.pyramid import FPN
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import ViT
from fundax.losses import dense as dense_losses
from fundax.losses.dense import dice_focal, one_hot, probabilities
from fundax.types import Batch, Extra, Metrics, Params

NEAR = 32  # points_refined: a point is refined within 1/32 of the width of the image


@dataclass(frozen=True)
class Segment:
    """Semantic segmentation.

    classes: names of the structures. One: a sigmoid. Several: exclusive, a softmax with the unnamed background as class
        0. Several with `overlapping`: a pixel may have any of them, one sigmoid each.

    The other fields are those of encoders.unetr.Maps.
    """

    image: VisionEncoder
    decoder: UNETR | Linear | FPN
    blocks: tuple[int, ...]
    classes: tuple[str, ...]
    overlapping: bool = False
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
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
        """Initial parameters, and the decoder's batch statistics. Raises UserError if the parts do not fit."""
        return unetr.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """logits and probability f32 [B h w K]; exclusive classes have the background as channel 0."""
        logits = unetr.logits(self, params, extra, batch["image"])
        return {"logits": logits, "probability": probabilities(logits, self.exclusive)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """losses.dice_focal; both terms are logged."""
        logits, extra = unetr.training_logits(self, params, extra, batch["image"], rng)
        parts = dice_focal(logits, one_hot(jnp.asarray(batch["mask"]), self.decoder.outputs), self.exclusive)
        return parts["loss"], (extra, parts)


def outputs(classes: tuple[str, ...], overlapping: bool) -> int:
    """Number of outputs per pixel that a decoder needs for these classes; see Segment."""
    return len(classes) + (len(classes) > 1 and not overlapping)


@dataclass(frozen=True)
class Decoder:
    """The arguments of a config for the decoder of pixels on an encoder.

    Args:
        head: Head on the features: logistic regression, one linear layer, an MLP, or for pixels VisionFM's UNETR.
        width: Width of the decoder.
        dropout: Dropout rate of the head or decoder.
        decoder_layers: The four blocks of a ViT that the decoder reads, counted from 0; empty spreads them evenly.
        decoder_stride: Where the decoder of a convolutional encoder ends: 1, 2 or 4 pixels; 4 is fast and enough for landmarks.
    """

    head: Literal["unetr", "linear"] = "unetr"
    width: int = 32
    dropout: float = 0.3
    decoder_layers: tuple[int, ...] = ()
    decoder_stride: Literal[1, 2, 4] = 1

    def fields(self, encoder: Backbone, outputs: int, start: float = 0.0) -> dict[str, Any]:
        """The fields of Segment and Landmark that follow from an encoder: image, decoder, blocks, mean, std, frozen.

        A convolutional encoder gets a feature pyramid instead of `head`, which is for a ViT. start: initial bias of the
        outputs.
        """
        image = encoder.image
        fields = {"image": image, "mean": encoder.mean[0], "std": encoder.std[0], "frozen": encoder.frozen}
        if not isinstance(image, ViT):
            decoder = FPN(outputs, self.width, self.dropout, start, image.dtype, self.decoder_stride)
            return fields | {"decoder": decoder, "blocks": ()}
        patch, dtype = image.patch, image.dtype
        unetr_fields = (outputs, patch, self.width, self.dropout, start, dtype)
        decoder = Linear(outputs, patch, start, dtype) if self.head == "linear" else UNETR(*unetr_fields)
        return fields | {"decoder": decoder, "blocks": self.decoder_layers or unetr.decoder_blocks(image.depth)}


@dataclass(frozen=True)
class Landmark:
    """Landmark detection: a map for each of `names`.

    sigma: standard deviation of the target Gaussian in pixels; 0 gives a single pixel, as in VisionFM.

    The other fields are those of encoders.unetr.Maps.
    """

    image: VisionEncoder
    decoder: UNETR | Linear | FPN
    blocks: tuple[int, ...]
    names: tuple[str, ...]
    sigma: float = 0.0
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    frozen: bool = False

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B s s 3]; points f32 [B n 2], (x, y) in its pixels, NaN if a landmark is missing."""
        side = self.image.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
            "points": jax.ShapeDtypeStruct((batch, len(self.names), 2), jnp.float32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters, and the decoder's batch statistics. Raises UserError if the parts do not fit."""
        return unetr.init(self, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """logits f32 [B h w n]; f32 [B n 2]: points (the largest pixel), points_expected (the expected position) and
        points_refined (the expected position near the largest pixel); confidence f32 [B n], the probability of the
        largest pixel.
        """
        return located(unetr.logits(self, params, extra, batch["image"]))

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """losses.landmark_loss; the mean distance in pixels is logged."""
        logits, extra = unetr.training_logits(self, params, extra, batch["image"], rng)
        points = jnp.asarray(batch["points"], jnp.float32)
        height, width = logits.shape[1:3]
        loss = dense_losses.landmark_loss(logits, dense_losses.heat_maps(points, height, width, self.sigma))
        there = dense_losses.inside(points, height, width)
        offset = dense_losses.expected_points(jax.lax.stop_gradient(logits)) - jnp.where(there[..., None], points, 0)
        distance = (jnp.linalg.norm(offset, axis=-1) * there).sum() / jnp.maximum(there.sum(), 1)
        return loss, (extra, {"loss": loss, "distance": distance})


def located(logits: jax.Array) -> dict[str, jax.Array]:
    """The output of Landmark.forward from its logits [B h w n]."""
    return {
        "logits": logits,
        "points": dense_losses.peaks(logits),
        "points_expected": dense_losses.expected_points(logits),
        "points_refined": dense_losses.refined_points(logits, max(logits.shape[2] // NEAR, 1)),
        "confidence": jnp.exp(dense_losses.spatial_log_softmax(logits).max((1, 2))),
    }
