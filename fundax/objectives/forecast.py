"""Forecasting: whether a disease will have progressed a given number of days after one or several visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from fundax.encoders.backbone import Backbone, VisionEncoder
from fundax.encoders.heads import ForecastHead
from fundax.encoders.layers import apply
from fundax.losses.supervised import binary_cross_entropy
from fundax.types import Batch, Extra, Metrics, Params, UserError


@dataclass(frozen=True)
class Forecast:
    """Binary prediction of progression from images of V visits, as VisionFM's forecasting for one visit.

    A batch has `image` u8 [B V h w 3] (or [B h w 3] for one visit) or `feature` f32 [B V C] (or [B C]); `days` f32 [B V]
    (or [B]) from each visit to the date predicted for; `present` bool [B V]; and `label` i32 [B], 1 for progression and
    negative if unknown. `modality` i32 [B] is shared by the visits of a row.

    positive: weight of positives in the loss; VisionFM uses 10.
    visits: V.
    given: whether training batches have "image" or "feature".

    VisionFM's code computes the backbone feature "unnormalized", although "mean" seems to be intended.
    """

    tower: Backbone
    head: ForecastHead
    positive: float = 10.0
    visits: int = 1
    classes: tuple[str, ...] = ("stable", "progression")
    given: Literal["image", "feature"] = "image"

    @property
    def image(self) -> VisionEncoder:
        """The encoder."""
        return self.tower.image

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B V h w 3] or feature f32 [B V C], days f32 [B V], present bool [B V], label i32 [B]."""
        v, side = self.visits, self.tower.image.image_size
        given = {
            "image": ((batch, v, side, side, 3), jnp.uint8),
            "feature": ((batch, v, self.tower.width), jnp.float32),
        }
        spec = {
            self.given: given[self.given],
            "days": ((batch, v), jnp.float32),
            "present": ((batch, v), jnp.bool_),
            "label": ((batch,), jnp.int32),
        }
        if self.given == "image" and (self.tower.modalities or len(self.tower.mean) > 1):
            spec["modality"] = ((batch,), jnp.int32)
        return {name: jax.ShapeDtypeStruct(shape, kind) for name, (shape, kind) in spec.items()}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters `image` and `head`."""
        first, second = jax.random.split(rng)
        params, extra = self.tower.init(first)
        blank = jnp.zeros((1, 1, self.tower.width), jnp.float32)
        return params | {"head": self.head.init(second, blank, jnp.zeros((1, 1), jnp.float32))["params"]}, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B V C]; with `days` also logits f32 [B 1] and probabilities f32 [B 2] (stable, progression)."""
        feature, _ = self._features(params, extra, batch, None)
        if "days" not in batch:
            return {"feature": feature}
        z = self._logit(params, feature, batch)
        return {"feature": feature, "logits": z[:, None], "probabilities": jax.nn.sigmoid(jnp.stack([-z, z], axis=1))}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Sigmoid cross-entropy with positives weighted by `positive`, averaged over labelled rows."""
        feature, extra = self._features(params, extra, batch, rng)
        z = self._logit(params, feature, batch)
        label = jnp.asarray(batch["label"])
        target = jnp.where(label < 0, jnp.nan, label.astype(jnp.float32))
        loss = binary_cross_entropy(z[:, None], target[:, None], (self.positive,))
        right = ((z > 0) == (label > 0)) & (label >= 0)
        return loss, (extra, {"loss": loss, "accuracy": right.sum() / jnp.maximum((label >= 0).sum(), 1)})

    def _logit(self, params: Params, feature: jax.Array, batch: Batch) -> jax.Array:
        days = jnp.asarray(batch["days"])
        days = days[:, None] if days.ndim == 1 else days
        if days.shape != feature.shape[:2]:
            raise UserError(f"days {days.shape} for features {feature.shape}; expected one number per visit")
        present = jnp.asarray(batch["present"]) if "present" in batch else None
        return apply(self.head, params["head"], feature, days, present)

    def _features(self, params: Params, extra: Extra, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Extra]:
        """Features f32 [B V C]; the encoder sees the visits as separate images."""
        if "feature" in batch:
            feature = jnp.asarray(batch["feature"], jnp.float32)
            return (feature[:, None] if feature.ndim == 2 else feature), extra
        image = jnp.asarray(batch["image"])
        visits = image.shape[1] if image.ndim == 5 else 1
        flat = {"image": image.reshape(-1, *image.shape[-3:])}
        if "modality" in batch:
            flat["modality"] = jnp.repeat(jnp.asarray(batch["modality"]), visits)
        feature, extra = self.tower.features(params, extra, flat, rng=rng)
        return feature.reshape(len(image), visits, -1), extra
