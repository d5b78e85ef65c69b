"""Classification from an encoder's features: one class of several, or several findings at once; frozen or fine-tuned.

The linear probe, VisionFM's decoder on a frozen encoder, and the fine-tuning of RETFound, VisionFM and RET-CLIP are this
objective with other fields (configs/linear_probe.py, configs/finetune.py).

VisionFM's modality-agnostic decoder: one decoder of features of several encoders or modalities, one layout of labels.

It never sees which modality a feature came from. Some columns are grades of one question, some are findings of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from fundax.encoders.backbone import Backbone, apply_head, batch_spec, init_head
from fundax.encoders.heads import MLPHead
from fundax.encoders.pixels import mixup_cutmix
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.losses import supervised as losses
from fundax.losses.supervised import GRADES, LAYOUT, graded_loss
from fundax.types import Batch, Extra, Metrics, Params, UserError


@dataclass(frozen=True)
class Classify:
    """Logits f32 [B K] of images, or of features taken once.

    kind: `single`, `label` i32 [B] is one of K classes (softmax; with one output, of two: sigmoid); `several`, `label` f32
    [B K] of 0, 1 and NaN (not labelled) is K answers (sigmoid each). A label below 0 is not labelled, and counts nothing.
    weights: of the classes (several: of the positives); focal: its gamma; smoothing: of labels; mixup, cutmix: alphas, on
    images alone. peer_softmax: the class probabilities go through another softmax in the loss, as RET-CLIP's authors
    fine-tune. given: what training batches have, image or feature.
    """

    tower: Backbone
    head: MLPHead
    kind: Literal["single", "several"] = "single"
    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    focal: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    peer_softmax: bool = False
    given: Literal["image", "feature"] = "image"

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != self.head.outputs:
            raise UserError(f"{len(self.weights)} class weights for {self.head.outputs} outputs")

    @property
    def image(self) -> ViT | ResNet:
        """The encoder."""
        return self.tower.image

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3] (or feature f32 [B C]), label i32 [B] or f32 [B K]."""
        several = self.kind == "several"
        shape, kind = ((batch, self.head.outputs), jnp.float32) if several else ((batch,), jnp.int32)
        return batch_spec(self.tower, self.given, batch) | {"label": jax.ShapeDtypeStruct(shape, kind)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters `image` and `head`; batch statistics in extra."""
        return init_head(self.tower, self.head, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B C], logits and probabilities f32 [B K]."""
        feature, _ = self.tower.features(params, extra, batch)
        logits, _ = apply_head(self.head, params, extra, feature)
        single = self.kind == "single" and self.head.outputs > 1
        return {
            "feature": feature,
            "logits": logits,
            "probabilities": jax.nn.softmax(logits) if single else jax.nn.sigmoid(logits),
        }

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """The mean over labelled rows; `accuracy` is of the labels as they came."""
        mix, drop, path = jax.random.split(rng, 3)
        targets, pixels = self._targets(batch["label"]), None
        if (self.mixup or self.cutmix) and "image" in batch:
            pixels, targets = mixup_cutmix(mix, self.tower.pixels(batch), targets, self.mixup, self.cutmix)
        feature, extra = self.tower.features(params, extra, batch, pixels, path)
        logits, extra = apply_head(self.head, params, extra, feature, drop)
        loss = self._compare(logits, targets)
        return loss, (extra, {"loss": loss, "accuracy": self._accuracy(logits, batch["label"])})

    def _targets(self, label: jax.Array) -> jax.Array:
        label = jnp.asarray(label)
        if self.kind == "several":
            return label * (1 - self.smoothing) + self.smoothing / 2
        if self.head.outputs == 1:
            known = jnp.where(label < 0, jnp.nan, label.astype(jnp.float32))
            return (known * (1 - self.smoothing) + self.smoothing / 2)[:, None]
        return losses.class_targets(label, self.head.outputs, self.smoothing)

    def _compare(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.kind == "several" or self.head.outputs == 1:
            return losses.binary_cross_entropy(logits, targets, self.weights, self.focal)
        logits = jax.nn.softmax(logits) if self.peer_softmax else logits
        return losses.cross_entropy(logits, targets, self.weights, self.focal)

    def _accuracy(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        if self.kind == "several":
            known, right = ~jnp.isnan(label), (logits > 0) == (label > 0.5)
        else:
            guess = logits.argmax(1) if self.head.outputs > 1 else (logits[:, 0] > 0).astype(jnp.int32)
            known, right = label >= 0, guess == label
        return (known & right).sum() / jnp.maximum(known.sum(), 1)


@dataclass(frozen=True)
class MultiModality:
    """`label` f32 [B K]: the first `grades` columns are a probability vector of one graded question (zeros: no grade), the
    others 0, 1 or NaN (not labelled). weights: of the other columns in the loss; () is VisionFM's.

    names: of the columns; the default thirteen are VisionFM's.
    """

    tower: Backbone
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

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3] (or feature f32 [B C]), label f32 [B K]."""
        label = jax.ShapeDtypeStruct((batch, self.head.outputs), jnp.float32)
        return batch_spec(self.tower, self.given, batch) | {"label": label}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters `image` and `head`; batch statistics in extra."""
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
        drop, path = jax.random.split(rng)
        feature, extra = self.tower.features(params, extra, batch, rng=path)
        logits, extra = apply_head(self.head, params, extra, feature, drop)
        loss = graded_loss(logits, jnp.asarray(batch["label"]), self.grades, self.weights)
        return loss, (extra, {"loss": loss})
