"""An image encoder by itself: what is left of a pretraining when only its features matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fundax.encoders.vit import ViT
from fundax.errors import UserError
from fundax.types import Batch, Extra, Metrics, Params


@dataclass(frozen=True)
class Encoder:
    """A ViT with the normalisation of its images; it gives features and learns nothing.

    `mean` and `std` are of RGB in [0, 1]: a row for all images, or a row for each `modality` of a batch.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)

    image: ViT
    mean: tuple[tuple[float, float, float], ...] = ((0.485, 0.456, 0.406),)
    std: tuple[tuple[float, float, float], ...] = ((0.229, 0.224, 0.225),)

    def spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]."""
        side = self.image.image_size
        return {"image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters; there is no extra state."""
        image = jnp.asarray(batch["image"], jnp.float32)
        return {"image": self.image.init(rng, image)["params"]}, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`image_raw` f32 [B D], `tokens` f32 [B N D] and `features` f32 [B 2D] (class token, mean of the patches)."""
        del extra
        out: Any = self.image.apply({"params": params["image"]}, self._normalized(batch))
        tokens = out["tokens"].astype(jnp.float32)
        features = jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], axis=-1)
        return {"image_raw": out["pooled"].astype(jnp.float32), "tokens": tokens, "features": features}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Raises UserError: an encoder by itself has nothing to learn from."""
        raise UserError("an encoder by itself has no loss: start a config from it with --init")

    def _normalized(self, batch: Batch) -> jax.Array:
        image = batch["image"]
        if jnp.issubdtype(image.dtype, jnp.floating):
            return jnp.asarray(image, self.image.dtype)
        if "modality" not in batch and len(self.mean) > 1:
            raise UserError(f"the batch has no 'modality', and this encoder normalises {len(self.mean)} differently")
        row = jnp.zeros(len(image), jnp.int32) if len(self.mean) == 1 else batch["modality"]
        mean, std = (jnp.asarray(table, jnp.float32)[row][:, None, None] for table in (self.mean, self.std))
        return ((image.astype(jnp.float32) / 255 - mean) / std).astype(self.image.dtype)
