"""An image encoder as decoders read it: normalised images in, one vector per image out, frozen or learning with them.

An image encoder by itself: what is left of a pretraining when only its features matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.heads import MLPHead
from fundax.encoders.pixels import normalize
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params, UserError


def tower_of(objective: Any, params: Params, extra: Extra) -> tuple[ViT, Params]:
    """The ViT that encodes images, and its parameters: of a self-distilled model the teacher's.

    Raises UserError where the image encoder is no ViT, or has no class token whose attention could be shown.
    """
    tower, name = getattr(objective, "image", None), type(objective).__name__
    if not isinstance(tower, ViT):
        what = f"its image encoder is a {type(tower).__name__}" if tower is not None else "it has no image encoder"
        raise UserError(f"attention is that of a ViT; this run holds {name}, and {what}")
    if not tower.class_token:
        raise UserError(
            f"this {name}'s ViT has no class token (it pools by {tower.pool}), whose attention is shown here"
        )
    owner = extra.get("teacher", params.get("model", params))  # "model": behind an adapter
    weights = dict(owner["image"])
    if tower.mask_token:  # a teacher has none, and never uses it
        weights.setdefault("mask_token", jnp.zeros(tower.width))
    return tower.clone(mask_ratio=0.0, drop_path=0.0), weights


def normalized(objective: Any, image: Any, row: int = 0) -> jax.Array:
    """u8 [B h w 3] as the objective's image encoder takes it; `row` of its means where it has one per modality."""
    holder = getattr(objective, "tower", getattr(objective, "model", objective))  # below a decoder or an adapter
    mean, std = holder.mean, holder.std
    if isinstance(mean[0], tuple | list):
        row = row if len(mean) > 1 else 0
        mean, std = mean[row], std[row]
    return normalize(image, mean, std, objective.image.dtype)


Feature = Literal["token", "mean", "unnormalized", "token_mean", "pooled"]
FEATURES: tuple[str, ...] = ("token", "mean", "unnormalized", "token_mean", "pooled")


@dataclass(frozen=True)
class Backbone:
    """An encoder, the normalisation of its images, and what of it is the feature of an image.

    feature: `token`, the class tokens of the last `blocks` blocks, each through the final norm, the oldest first; `mean`, of
    the last block's patch tokens; `unnormalized`, that mean without the final norm; `token_mean`, class token and
    mean; `pooled`, what the encoder itself makes of an image. A ResNet has `mean` and `pooled`, which are the same.
    mean, std: of RGB in [0, 1], a row for all images or one for each `modality` of a batch.
    modalities: numbers of the modalities that have an encoder each, the parameters then being {"m0": ..., "m2": ...};
    (): one encoder for all.
    frozen: the encoder gets no gradient and drops nothing.
    """

    image: ViT | ResNet
    mean: tuple[tuple[float, float, float], ...] = ((0.485, 0.456, 0.406),)
    std: tuple[tuple[float, float, float], ...] = ((0.229, 0.224, 0.225),)
    feature: Feature = "token"
    blocks: int = 4
    modalities: tuple[int, ...] = ()
    frozen: bool = True

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise UserError(f"feature {self.feature!r}; expected one of {', '.join(FEATURES)}")
        if isinstance(self.image, ResNet) and self.feature not in ("mean", "pooled"):
            raise UserError(f"a ResNet has the features mean and pooled, not {self.feature!r}")
        if isinstance(self.image, ViT):
            if self.feature in ("token", "token_mean") and not self.image.class_token:
                raise UserError(f"feature {self.feature!r} needs an encoder with a class token")
            if self.feature == "token" and not 0 < self.blocks <= self.image.depth:
                raise UserError(f"the last {self.blocks} blocks of an encoder that has {self.image.depth}")

    @property
    def width(self) -> int:
        """C of a feature [B C]."""
        times = {"token": self.blocks, "token_mean": 2}.get(self.feature, 1)
        return self.image.width * times

    def init(self, rng: jax.Array) -> tuple[Params, Extra]:
        """Parameters under `image`, and batch statistics under `image` where there are any."""
        side = self.image.image_size
        blank = jnp.zeros((1, side, side, 3), jnp.float32)
        if self.modalities:
            found = {f"m{m}": self.image.init(jax.random.fold_in(rng, m), blank) for m in self.modalities}
            params = {name: variables["params"] for name, variables in found.items()}
            if any("batch_stats" in variables for variables in found.values()):
                raise UserError("several encoders with batch statistics are not supported; take ViTs")
            return {"image": params}, {}
        variables = self.image.init(rng, blank)
        return {"image": variables["params"]}, (
            {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        )

    def pixels(self, batch: Batch) -> jax.Array:
        """Normalised images [B h w 3] in the encoder's dtype. Raises UserError for a modality that is missing."""
        image = jnp.asarray(batch["image"])
        if len(self.mean) == 1 or jnp.issubdtype(image.dtype, jnp.floating):
            return normalize(image, self.mean[0], self.std[0], self.image.dtype)
        mean, std = (
            jnp.asarray(table, jnp.float32)[self._modality(batch)][:, None, None] for table in (self.mean, self.std)
        )
        return ((image.astype(jnp.float32) / 255 - mean) / std).astype(self.image.dtype)

    def features(
        self, params: Params, extra: Extra, batch: Batch, pixels: jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, Extra]:
        """Features f32 [B C] and the next extra state: of `feature` in the batch where it is there, else of its images.

        rng: this is training, unless the encoder is frozen. pixels: the images, where they were changed on the way.
        """
        if "feature" in batch:
            return jnp.asarray(batch["feature"], jnp.float32), extra
        pixels = self.pixels(batch) if pixels is None else pixels
        rng = None if self.frozen else rng
        tree = jax.lax.stop_gradient(params["image"]) if self.frozen else params["image"]
        if not self.modalities:
            found, extra = self._one(tree, extra, pixels, rng)
            return found, extra
        modality, total = self._modality(batch), jnp.zeros((len(pixels), self.width), jnp.float32)
        for m in self.modalities:
            found, _ = self._one(tree[f"m{m}"], extra, pixels, rng)
            total = jnp.where((modality == m)[:, None], found, total)
        return total, extra

    def _modality(self, batch: Batch) -> jax.Array:
        if "modality" not in batch:
            raise UserError("the batch has no 'modality', and this encoder treats modalities differently")
        return jnp.asarray(batch["modality"])

    def _one(self, tree: Params, extra: Extra, pixels: jax.Array, rng: jax.Array | None) -> tuple[jax.Array, Extra]:
        if isinstance(self.image, ResNet):
            variables = {"params": tree, "batch_stats": extra["image"]}
            if rng is None:
                out: Any = self.image.apply(variables, pixels)
                return out["pooled"].astype(jnp.float32), extra
            out, new = self.image.apply(variables, pixels, True, mutable=["batch_stats"])
            return out["pooled"].astype(jnp.float32), extra | {"image": new["batch_stats"]}
        rngs = {"drop_path": rng} if rng is not None and self.image.drop_path else {}
        deep = self.feature in ("token", "unnormalized") and not (self.feature == "token" and self.blocks == 1)
        out = self.image.apply({"params": tree}, pixels, hidden=deep, rngs=rngs)
        return self._read(tree, out).astype(jnp.float32), extra

    def _read(self, tree: Params, out: Mapping[str, Any]) -> jax.Array:
        if self.feature == "pooled":
            return out["pooled"]
        assert isinstance(self.image, ViT)
        skip = int(self.image.class_token)
        if self.feature == "unnormalized":
            return out["hidden"][-1][:, skip:].mean(1)
        if self.feature == "token" and self.blocks > 1:
            rows = [x[:, 0] for x in out["hidden"][-self.blocks :]]
            if not self.image.norm_after_pool:
                norm = layers.LayerNorm(self.image.epsilon)
                rows = [norm.apply({"params": tree["norm"]}, x) for x in rows]
            return jnp.concatenate(rows, axis=-1)  # pyright: ignore[reportArgumentType]
        tokens = out["tokens"]
        mean = tokens[:, skip:].mean(1)
        return {"token": tokens[:, 0], "mean": mean, "token_mean": jnp.concatenate([tokens[:, 0], mean], -1)}[
            self.feature
        ]


def batch_spec(tower: Backbone, given: str, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch has of the images: `image` u8 [B h w 3] and, where it matters, `modality`; or `feature` f32 [B C]."""
    if given == "feature":
        return {"feature": jax.ShapeDtypeStruct((batch, tower.width), jnp.float32)}
    side = tower.image.image_size
    spec = {"image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}
    if tower.modalities or len(tower.mean) > 1:
        spec["modality"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return spec


def init_head(tower: Backbone, head: MLPHead, rng: jax.Array) -> tuple[Params, Extra]:
    """Fresh parameters of the encoder (`image`) and the head, and their batch statistics."""
    first, second = jax.random.split(rng)
    params, extra = tower.init(first)
    variables = head.init(second, jnp.zeros((2, tower.width), jnp.float32))
    stats = {"head": variables["batch_stats"]} if "batch_stats" in variables else {}
    return params | {"head": variables["params"]}, extra | stats


def apply_head(
    head: MLPHead, params: Params, extra: Extra, feature: jax.Array, rng: jax.Array | None = None
) -> tuple[jax.Array, Extra]:
    """The head's outputs f32 [B K] and the next extra state; `rng` says that this is training."""
    variables = {"params": params["head"]} | ({"batch_stats": extra["head"]} if "head" in extra else {})
    if rng is None:
        out: Any = head.apply(variables, feature)
        return out, extra
    out, new = head.apply(variables, feature, True, mutable=["batch_stats"], rngs={"dropout": rng})
    return out, extra | ({"head": new["batch_stats"]} if "head" in extra else {})


@dataclass(frozen=True)
class Encoder:
    """A ViT with the normalisation of its images; it gives features and learns nothing.

    `mean` and `std` are of RGB in [0, 1]: a row for all images, or a row for each `modality` of a batch.
    """

    image: ViT
    mean: tuple[tuple[float, float, float], ...] = ((0.485, 0.456, 0.406),)
    std: tuple[tuple[float, float, float], ...] = ((0.229, 0.224, 0.225),)

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]."""
        side = self.image.image_size
        return {"image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters; there is no extra state."""
        image = jnp.asarray(batch["image"], jnp.float32)
        return {"image": self.image.init(rng, image)["params"]}, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """`image_raw` f32 [B D], `tokens` f32 [B N D] and `features` f32 [B 2D] (class token, mean of the patches)."""
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
