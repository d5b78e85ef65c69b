"""VisionFM's modality-agnostic decoder: one decoder of features of several encoders or modalities, one layout of labels.

It never sees which modality a feature came from. Some columns are grades of one question, some are findings of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from fundax.encoders.decoder_heads import MLPHead
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.supervised_losses import GRADES, LAYOUT, graded_loss
from fundax.tower import Tower, apply_head, batch_spec, init_head
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class MultiModality:
    """`label` f32 [B K]: the first `grades` columns are a probability vector of one graded question (zeros: no grade), the
    others 0, 1 or NaN (not labelled). weights: of the other columns in the loss; () is VisionFM's.

    names: of the columns; the default thirteen are VisionFM's.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "label")

    tower: Tower
    head: MLPHead
    names: tuple[str, ...] = LAYOUT
    grades: int = GRADES
    weights: tuple[float, ...] = ()
    given: Literal["image", "feature"] = "image"

    @property
    def image(self) -> ViT | ResNet:
        """The encoder."""
        return self.tower.image

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.names

    def spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3] (or feature f32 [B C]), label f32 [B K]."""
        label = jax.ShapeDtypeStruct((batch, self.head.outputs), jnp.float32)
        return batch_spec(self.tower, self.given, batch) | {"label": label}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters `image` and `head`; batch statistics in extra."""
        del batch
        return init_head(self.tower, self.head, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B C]; logits and probabilities f32 [B K] (softmax of the grades, a sigmoid of each other column)."""
        feature, _ = self.tower.features(params, extra, batch)
        logits, _ = apply_head(self.head, params, extra, feature)
        parts = jax.nn.softmax(logits[:, : self.grades]), jax.nn.sigmoid(logits[:, self.grades :])
        return {"feature": feature, "logits": logits, "probabilities": jnp.concatenate(parts, axis=1)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """5 CE of the grades and the sum of the columns' BCE (supervised_losses.graded_loss)."""
        del step
        drop, path = jax.random.split(rng)
        feature, extra = self.tower.features(params, extra, batch, rng=path)
        logits, extra = apply_head(self.head, params, extra, feature, drop)
        loss = graded_loss(logits, jnp.asarray(batch["label"]), self.grades, self.weights)
        return loss, (extra, {"loss": loss})
