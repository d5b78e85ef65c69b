"""Classification of images: single-label, multi-label, and VisionFM's modality-agnostic decoder.

Linear probes, VisionFM's decoder on a frozen encoder and the fine-tuning of RETFound, VisionFM and RET-CLIP are
`Classify` with different fields (configs/linear_probe.py, configs/finetune.py). `MultiModality` classifies features of
several encoders with one head, without knowing the modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.backbone import Backbone, VisionEncoder, apply_head, batch_spec, init_head
from fundax.encoders.heads import MLPHead
from fundax.encoders.pixels import mixup_cutmix
from fundax.losses import supervised as losses
from fundax.losses.supervised import GRADES, LAYOUT, graded_loss
from fundax.optim import (
    ema_update,
)
from fundax.types import Batch, Extra, Metrics, Params, UserError


@dataclass(frozen=True)
class Classify:
    """Single-label or multi-label classification of images, or of features computed earlier.

    kind: "single": `label` i32 [B] is one of K classes, negative if unknown (softmax; sigmoid if there is one output for
        two classes). "several": `label` f32 [B K] is 0, 1 or NaN if unknown (one sigmoid per label).
    classes: names of the classes.
    weights: class weights in the loss; for "several" the weights of the positives.
    focal: gamma of the focal loss, 0 to disable. smoothing: label smoothing.
    mixup, cutmix: alpha of the Beta distribution, 0 to disable; for image batches.
    second_softmax: apply a second softmax to the probabilities in the loss, as in RET-CLIP's fine-tuning code.
    given: whether training batches have "image" or "feature".
    penalty: weight of the L2 penalty |W|^2 / 2 of the head's kernels.
    momentum: momentum of the moving average of all parameters that `forward` uses; 0: use the parameters. The
        average is `average` in the extra state, and starts faster (as in timm and TensorFlow).

    test_flips: `forward` averages the features of an image and of its mirror image.

    kind "grades": `label` i32 [B] is one of K ordered classes. The head has K - 1 outputs, the logits that the grade is
    above each of the first K - 1 (arXiv:2001.07884's task with separate kernels). `logits` of the forward pass are
    the K log probabilities.
    """

    tower: Backbone
    head: MLPHead
    kind: Literal["single", "several", "grades"] = "single"
    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    focal: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    second_softmax: bool = False
    given: Literal["image", "feature"] = "image"
    penalty: float = 0.0
    momentum: float = 0.0
    test_flips: bool = False

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != self.head.outputs:
            raise UserError(f"{len(self.weights)} class weights for {self.head.outputs} outputs")

    @property
    def image(self) -> VisionEncoder:
        """The encoder."""
        return self.tower.image

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3] (or feature f32 [B C]), label i32 [B] or f32 [B K]."""
        several = self.kind == "several"
        shape, kind = ((batch, self.head.outputs), jnp.float32) if several else ((batch,), jnp.int32)
        return batch_spec(self.tower, self.given, batch) | {"label": jax.ShapeDtypeStruct(shape, kind)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters `image` and `head`; batch statistics and the moving average in extra."""
        params, extra = init_head(self.tower, self.head, rng)
        average = {"average": jax.tree.map(jnp.copy, params), "steps": jnp.zeros((), jnp.int32)}
        return params, extra | (average if self.momentum else {})

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B C], logits and probabilities f32 [B K]."""
        params = self._predicting(params, extra)
        feature, _ = self.tower.features(params, extra, batch)
        if self.test_flips and "feature" not in batch:
            mirrored, _ = self.tower.features(
                params, extra, {**batch, "image": jnp.asarray(batch["image"])[:, :, ::-1]}
            )
            feature = (feature + mirrored) / 2
        logits, _ = apply_head(self.head, params, extra, feature)
        if self.kind == "grades":
            probabilities = grade_probabilities(logits)
            return {"feature": feature, "logits": jnp.log(probabilities + 1e-12), "probabilities": probabilities}
        single = self.kind == "single" and self.head.outputs > 1
        return {
            "feature": feature,
            "logits": logits,
            "probabilities": jax.nn.softmax(logits) if single else jax.nn.sigmoid(logits),
        }

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean loss of the labelled rows. `accuracy` compares with the labels before mixing."""
        mix, drop, path = jax.random.split(rng, 3)
        extra = self._averaged(params, extra)
        targets, pixels = self._targets(batch["label"]), None
        if (self.mixup or self.cutmix) and "image" in batch:
            pixels, targets = mixup_cutmix(mix, self.tower.pixels(batch), targets, self.mixup, self.cutmix)
        feature, extra = self.tower.features(params, extra, batch, pixels, path)
        logits, extra = apply_head(self.head, params, extra, feature, drop)
        loss = self._compare(logits, targets) + self.penalty / 2 * _square(params["head"])
        return loss, (extra, {"loss": loss, "accuracy": self._accuracy(logits, batch["label"])})

    def _predicting(self, params: Params, extra: Extra) -> Params:
        """The moving average, once there is one."""
        if "average" not in extra:
            return params
        return jax.tree.map(lambda a, p: jnp.where(extra["steps"] > 0, a, p), extra["average"], params)

    def _averaged(self, params: Params, extra: Extra) -> Extra:
        """The extra state with the moving average after one more step."""
        if not self.momentum:
            return extra
        steps = extra["steps"] + 1
        momentum = jnp.minimum(self.momentum, (steps - 1) / (steps + 8))  # 0 at the first step
        return {**extra, "average": ema_update(extra["average"], params, momentum), "steps": steps}

    def _targets(self, label: jax.Array) -> jax.Array:
        label = jnp.asarray(label)
        if self.kind == "grades":
            above = label[:, None] > jnp.arange(self.head.outputs)[None]
            known = jnp.where(label[:, None] < 0, jnp.nan, above.astype(jnp.float32))
            return known * (1 - self.smoothing) + self.smoothing / 2
        if self.kind == "several":
            return label * (1 - self.smoothing) + self.smoothing / 2
        if self.head.outputs == 1:
            known = jnp.where(label < 0, jnp.nan, label.astype(jnp.float32))
            return (known * (1 - self.smoothing) + self.smoothing / 2)[:, None]
        return losses.class_targets(label, self.head.outputs, self.smoothing)

    def _compare(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.kind != "single" or self.head.outputs == 1:
            return losses.binary_cross_entropy(logits, targets, self.weights, self.focal)
        logits = jax.nn.softmax(logits) if self.second_softmax else logits
        return losses.cross_entropy(logits, targets, self.weights, self.focal)

    def _accuracy(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        if self.kind == "grades":
            known, right = label >= 0, (logits > 0).sum(1) == label
        elif self.kind == "several":
            known, right = ~jnp.isnan(label), (logits > 0) == (label > 0.5)
        else:
            guess = logits.argmax(1) if self.head.outputs > 1 else (logits[:, 0] > 0).astype(jnp.int32)
            known, right = label >= 0, guess == label
        return (known & right).sum() / jnp.maximum(known.sum(), 1)


def grade_probabilities(logits: jax.Array) -> jax.Array:
    """Probabilities f32 [B K] of grades from the logits f32 [B K-1] of being above each; these are made to decrease."""
    above = jax.lax.cummin(jax.nn.sigmoid(logits), axis=1)
    ends = jnp.ones((len(logits), 1), above.dtype), jnp.zeros((len(logits), 1), above.dtype)
    above = jnp.concatenate([ends[0], above, ends[1]], axis=1)
    return above[:, :-1] - above[:, 1:]


def _square(head: Params) -> jax.Array:
    """Sum of the squares of a head's kernels."""
    kernels = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(head) if "kernel" in jax.tree_util.keystr(path)
    ]
    return sum((jnp.square(kernel).sum() for kernel in kernels), jnp.zeros(()))


@dataclass(frozen=True)
class Supervision:
    """The arguments of a config for how classes are weighed.

    Args:
        smoothing: Label smoothing.
        focal: Gamma of the focal loss; 0 is the plain cross-entropy.
        weights: Weights of the classes in the loss: equal, or by inverse frequency.
        balanced: Sample every class, data set or modality equally often.
        ordered: The classes are grades: report the quadratic kappa and select the checkpoint by it.
        ordinal: Grades have an ordinal head, which learns whether the grade is above each of the lower ones.
    """

    smoothing: float = 0.0
    focal: float = 0.0
    weights: Literal["equal", "balanced"] = "equal"
    balanced: bool = False
    ordered: bool = False
    ordinal: bool = False

    def outputs(self, classes: tuple[str, ...]) -> int:
        """Number of outputs of the head. Raises UserError for an ordinal head with class weights, or of two classes."""
        if self.ordinal and (self.weights == "balanced" or len(classes) < 3):
            raise UserError("--ordinal: expected at least three grades, and --weights equal")
        return len(classes) - 1 if self.ordinal else len(classes)

    def fields(self, several: bool, classes: tuple[str, ...], labels: Callable[[], np.ndarray]) -> dict[str, Any]:
        """Fields of Classify; `labels` gives those of the training rows, i32 [N] or f32 [N K]."""
        weights = losses.inverse_frequencies(labels(), len(classes)) if self.weights == "balanced" else ()
        if several and self.ordinal:
            raise UserError("--ordinal: the labels are several findings at once; expected grades")
        kind = "several" if several else "grades" if self.ordinal else "single"
        return {"kind": kind, "classes": classes, "focal": self.focal, "smoothing": self.smoothing, "weights": weights}

    @property
    def best(self) -> str:
        """The metric that selects the checkpoint."""
        return "val/kappa" if self.ordered else "val/macro_auc"


@dataclass(frozen=True)
class MultiModality:
    """VisionFM's multi-modality classification: one grading and several independent findings.

    `label` f32 [B K]: the first `grades` columns are a distribution over grades (zeros: no grade), the others 0, 1 or
    NaN if unknown.

    names: names of the columns; the default is VisionFM's thirteen.
    weights: weights of the findings in the loss; () gives VisionFM's weights.
    given: whether training batches have "image" or "feature".
    """

    tower: Backbone
    head: MLPHead
    names: tuple[str, ...] = LAYOUT
    grades: int = GRADES
    weights: tuple[float, ...] = ()
    given: Literal["image", "feature"] = "image"

    @property
    def image(self) -> VisionEncoder:
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
        """Initial parameters `image` and `head`; batch statistics in extra."""
        return init_head(self.tower, self.head, rng)

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B C]; logits and probabilities f32 [B K]: softmax of the grades and sigmoid of each finding."""
        feature, _ = self.tower.features(params, extra, batch)
        logits, _ = apply_head(self.head, params, extra, feature)
        parts = jax.nn.softmax(logits[:, : self.grades]), jax.nn.sigmoid(logits[:, self.grades :])
        return {"feature": feature, "logits": logits, "probabilities": jnp.concatenate(parts, axis=1)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """losses.graded_loss."""
        drop, path = jax.random.split(rng)
        feature, extra = self.tower.features(params, extra, batch, rng=path)
        logits, extra = apply_head(self.head, params, extra, feature, drop)
        loss = graded_loss(logits, jnp.asarray(batch["label"]), self.grades, self.weights)
        return loss, (extra, {"loss": loss})
