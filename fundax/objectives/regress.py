"""Regression of several values from an image, as VisionFM's biomarker prediction, with standardised targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.backbone import Backbone, VisionEncoder, apply_head, batch_spec, init_head
from fundax.encoders.heads import MLPHead
from fundax.losses.supervised import smooth_l1
from fundax.types import Batch, Extra, Metrics, Params, UserError


@dataclass(frozen=True)
class Regress:
    """Regression of `value` f32 [B K], NaN if unknown. Values and outputs are in the units of the data.

    The head learns (value - mean) / std with the parameters `target/mean` and `target/std` [K]. Set them from the
    training data with `standardize`, and freeze them in the optimizer (optim.freeze). Their initial values 0 and 1 give
    VisionFM's raw targets.

    names: names of the values. given: whether training batches have "image" or "feature".
    """

    tower: Backbone
    head: MLPHead
    names: tuple[str, ...] = ()
    given: Literal["image", "feature"] = "image"

    @property
    def image(self) -> VisionEncoder:
        """The encoder."""
        return self.tower.image

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3] (or feature f32 [B C]), value f32 [B K]."""
        value = jax.ShapeDtypeStruct((batch, self.head.outputs), jnp.float32)
        return batch_spec(self.tower, self.given, batch) | {"value": value}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters `image`, `head` and `target`; batch statistics in extra."""
        params, extra = init_head(self.tower, self.head, rng)
        k = self.head.outputs
        return params | {"target": {"mean": jnp.zeros(k, jnp.float32), "std": jnp.ones(k, jnp.float32)}}, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """feature f32 [B C] and value f32 [B K] in the units of the data."""
        feature, _ = self.tower.features(params, extra, batch)
        out, _ = apply_head(self.head, params, extra, feature)
        return {"feature": feature, "value": out * params["target"]["std"][None] + params["target"]["mean"][None]}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Smooth L1 of the standardised values, averaged over known entries; `mae` is in the units of the data."""
        drop, path = jax.random.split(rng)
        target = jax.lax.stop_gradient(params["target"])
        value = (jnp.asarray(batch["value"]) - target["mean"][None]) / target["std"][None]
        feature, extra = self.tower.features(params, extra, batch, rng=path)
        out, extra = apply_head(self.head, params, extra, feature, drop)
        loss = smooth_l1(out, value)
        known = ~jnp.isnan(value)
        error = jnp.where(known, jnp.abs(out - value) * target["std"][None], 0.0)
        return loss, (extra, {"loss": loss, "mae": error.sum() / jnp.maximum(known.sum(), 1)})


def standardize(values: Callable[[], np.ndarray]) -> Callable[[Params], Params]:
    """A step of Recipe.init_from that sets `target` from the training values f32 [N K], with NaN if unknown.

    `values` is called when the step is applied. A constant target gets the deviation 1. Raises UserError (when applied)
    for a target that is never known.
    """

    def fill(params: Params) -> Params:
        rows: Any = np.asarray(values(), np.float64)
        known = ~np.isnan(rows)
        if not known.any(0).all():
            raise UserError(f"target {int(np.argmin(known.any(0)))} is known in no training row")
        columns = [rows[k, c] for c, k in enumerate(known.T)]
        std = np.array([column.std() for column in columns])
        target = {"mean": np.array([c.mean() for c in columns]), "std": np.where(std > 1e-9, std, 1.0)}
        return params | {"target": {name: array.astype(np.float32) for name, array in target.items()}}

    return fill
