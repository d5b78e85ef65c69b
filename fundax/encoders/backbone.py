"""Image backbones: an encoder with the normalisation of its images and a choice of feature, frozen or fine-tuned.

`Backbone` is what classification, regression and forecasting are built on. `Encoder` is an objective without a loss: a
pretrained ViT from which only features are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fundax.encoders.convnext import ConvNeXt
from fundax.encoders.efficientnet import EfficientNet
from fundax.encoders.heads import MLPHead
from fundax.encoders.layers import LayerNorm, apply
from fundax.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD, RGB, normalize
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params, UserError

Feature = Literal["token", "mean", "unnormalized", "token_mean", "pooled"]
FEATURES: tuple[str, ...] = ("token", "mean", "unnormalized", "token_mean", "pooled")
MEMBERS = "members"  # of an ensemble: trees with a leading axis, a row for each of its models
Convolutional = ResNet | EfficientNet | ConvNeXt
VisionEncoder = ViT | Convolutional


def apply_encoder(
    encoder: VisionEncoder, params: Params, extra: Extra, pixels: jax.Array, *, train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None, hidden: bool = False,
) -> tuple[dict[str, Any], Extra]:  # fmt: skip
    """Outputs of an image encoder for normalised images [B h w 3], and the next extra state.

    With `rngs`, branches are dropped (stochastic depth). ResNets and EfficientNets have batch statistics in
    extra["image"], which `train` uses and updates.
    """
    if isinstance(encoder, ViT | ConvNeXt):
        return apply(encoder, params, pixels, hidden=hidden, rngs=rngs), extra
    variables: Any = {"params": params, "batch_stats": extra["image"]}
    rngs = dict(rngs or {})
    if not train:
        return encoder.apply(variables, pixels, hidden=hidden, rngs=rngs), extra  # type: ignore[return-value]
    out, new = encoder.apply(variables, pixels, True, hidden, rngs=rngs, mutable=["batch_stats"])
    return out, extra | {"image": new["batch_stats"]}


def first_member(params: Params, extra: Extra) -> tuple[Params, Extra]:
    """Parameters and extra state of the first model of an ensemble (objectives.ensemble); of others those given."""
    if MEMBERS not in params:
        return params, extra
    first = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in (params[MEMBERS], extra.get(MEMBERS, {}))]
    shared = [{name: tree for name, tree in one.items() if name != MEMBERS} for one in (params, extra)]
    return {**shared[0], **first[0]}, {**shared[1], **first[1]}


def encoder_of(objective: Any, params: Params, extra: Extra, modality: int = 0) -> tuple[VisionEncoder, Params, Extra]:
    """The image encoder of an objective as it computes features, its parameters, and its batch statistics.

    The teacher's for a self-distilled model, the one below an adapter, that of the first member of an ensemble, and the one
    of `modality` if each has its own.
    Raises UserError if the objective has no image encoder, or none for the modality.
    """
    tower, name = getattr(objective, "image", None), type(objective).__name__
    if not isinstance(tower, VisionEncoder):
        raise UserError(f"{name} has no image encoder; expected a model that reads images")
    params, extra = first_member(params, extra)
    owner = extra.get("teacher", params.get("model", params))  # "model": the model below an adapter
    weights, stats = dict(owner["image"]), extra.get("model", extra)
    if several := getattr(owner_of(objective), "modalities", ()):
        if modality not in several:
            raise UserError(f"{name} has encoders of the modalities {', '.join(map(str, several))}, not {modality}")
        weights = dict(weights[f"m{modality}"])
    if not isinstance(tower, ViT):
        return tower, weights, {"image": stats["image"]} if "image" in stats else {}
    if tower.mask_token:  # a teacher has no mask token, and never needs it
        weights.setdefault("mask_token", jnp.zeros(tower.width))
    return tower.clone(mask_ratio=0.0, drop_path=0.0), weights, {}


def tower_of(objective: Any, params: Params, extra: Extra, modality: int = 0) -> tuple[ViT, Params]:
    """The ViT that encodes images, and its parameters; see `encoder_of`.

    Raises UserError if the image encoder is not a ViT or has no class token, whose attention could be shown.
    """
    tower, name = getattr(objective, "image", None), type(objective).__name__
    if not isinstance(tower, ViT):
        what = f"its image encoder is a {type(tower).__name__}" if tower is not None else "it has no image encoder"
        raise UserError(f"attention is that of a ViT; this run holds {name}, and {what}")
    if not tower.class_token:
        raise UserError(
            f"attention maps show the class token's attention, and the ViT of this {name} has no class token"
        )
    vit, weights, _ = encoder_of(objective, params, extra, modality)
    assert isinstance(vit, ViT)
    return vit, weights


def with_encoder(objective: Any, image: VisionEncoder) -> Any:
    """Replace the image encoder of an objective, also below a head, an adapter or KeepFIT."""
    below = next((name for name in ("tower", "model", "base") if hasattr(objective, name)), None)
    if below is None:
        return replace(objective, image=image)
    return replace(objective, **{below: with_encoder(getattr(objective, below), image)})


@runtime_checkable
class BackboneWithHead(Protocol):
    """An objective that answers from the feature of an image: it can be predicted with, and its encoder exported."""

    @property
    def tower(self) -> Any: ...
    @property
    def head(self) -> Any: ...


def owner_of(objective: Any) -> Any:
    """The object that normalises the images of an objective: itself, or the model below its head, adapter or KeepFIT."""
    below = next((getattr(objective, name) for name in ("tower", "model", "base") if hasattr(objective, name)), None)
    return objective if below is None else owner_of(below)


def preprocessing(objective: Any) -> dict[str, Any]:
    """Preprocessing of photographs for an objective: image_size, mean, std, resize and interpolation; {} if unknown.

    mean and std are of RGB in [0, 1]: three numbers, or a row of three for each modality. A model that was trained with
    one rule for resizing alone has it as `resize` and `interpolation`.
    """
    owner = owner_of(objective)
    size = getattr(owner, "side", getattr(getattr(owner, "image", None), "image_size", None))
    if size is None or not hasattr(owner, "mean"):
        return {}
    rule = {"resize": getattr(owner, "resize", "squash"), "interpolation": getattr(owner, "interpolation", "bicubic")}
    return {"image_size": size, "mean": list(owner.mean), "std": list(owner.std), **rule}


def normalized(objective: Any, image: Any, row: int = 0) -> jax.Array:
    """Normalise images [B h w 3] for the image encoder of an objective; `row`: index of their modality."""
    owner, modality = owner_of(objective), jnp.full(len(image), row, jnp.int32)
    return normalize(image, owner.mean, owner.std, objective.image.dtype, modality)


@dataclass(frozen=True)
class Backbone:
    """An image encoder, the normalisation of its images, and the feature of an image.

    feature: `token`: the class tokens of the last `blocks` blocks, each through the final norm, earliest block first.
        `mean`: mean of the last block's patch tokens. `unnormalized`: the same without the final norm. `token_mean`:
        class token and mean. `pooled`: the encoder's own pooled output, which is all that a convolutional encoder has
        (a ResNet also calls it `mean`).
    mean, std: mean and deviation of RGB in [0, 1], one row or a row for each `modality` of a batch.
    modalities: indices of the modalities if each has its own encoder, with parameters {"m0": ..., "m2": ...}. (): one
        encoder for all.
    frozen: the encoder gets no gradient and runs without stochastic depth.
    statistics: batch statistics of a trained encoder are `learned` from its batches, or `frozen` as the initial weights
        have them, which is better for batches of a few images or a few hundred images in all.
    tiles, tile_pool: images are cut into `tiles` tiles on each side, all of the encoder's size; the feature is the mean
        or the maximum of theirs.
    """

    image: VisionEncoder
    mean: tuple[RGB, ...] = (IMAGENET_MEAN,)
    std: tuple[RGB, ...] = (IMAGENET_STD,)
    feature: Feature = "token"
    blocks: int = 4
    modalities: tuple[int, ...] = ()
    frozen: bool = True
    statistics: Literal["learned", "frozen"] = "learned"
    tiles: int = 1
    tile_pool: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.tiles < 1 or self.tile_pool not in ("mean", "max"):
            raise UserError(
                f"{self.tiles} tiles on a side, pooled by {self.tile_pool!r}; expected 1 or more, mean or max"
            )
        if self.feature not in FEATURES:
            raise UserError(f"feature {self.feature!r}; expected one of {', '.join(FEATURES)}")
        if isinstance(self.image, Convolutional) and self.feature not in ("mean", "pooled"):
            raise UserError(f"a {type(self.image).__name__} has the features mean and pooled, not {self.feature!r}")
        if isinstance(self.image, ViT):
            if self.feature in ("token", "token_mean") and not self.image.class_token:
                raise UserError(f"feature {self.feature!r} needs an encoder with a class token")
            if self.feature == "token" and not 0 < self.blocks <= self.image.depth:
                raise UserError(f"the last {self.blocks} blocks of an encoder that has {self.image.depth}")

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.image.image_size * self.tiles

    @property
    def width(self) -> int:
        """C of a feature [B C]."""
        times = {"token": self.blocks, "token_mean": 2}.get(self.feature, 1)
        return self.image.width * times

    def init(self, rng: jax.Array) -> tuple[Params, Extra]:
        """Parameters, and batch statistics if the encoder has any, both under `image`."""
        side = self.image.image_size
        blank = jnp.zeros((1, side, side, 3), jnp.float32)
        if self.modalities:
            trees = {f"m{m}": self.image.init(jax.random.fold_in(rng, m), blank) for m in self.modalities}
            if any("batch_stats" in variables for variables in trees.values()):
                raise UserError("several encoders with batch statistics are not supported; use ViTs")
            return {"image": {name: variables["params"] for name, variables in trees.items()}}, {}
        variables = self.image.init(rng, blank)
        stats = {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        return {"image": variables["params"]}, stats

    def pixels(self, batch: Batch) -> jax.Array:
        """Normalised images [B h w 3] in the encoder's dtype. Raises UserError if a needed `modality` is missing."""
        return normalize(jnp.asarray(batch["image"]), self.mean, self.std, self.image.dtype, batch.get("modality"))

    def features(
        self, params: Params, extra: Extra, batch: Batch, pixels: jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, Extra]:
        """Features f32 [B C] and the next extra state. A `feature` in the batch is returned instead of computed.

        rng: given in training; ignored if the encoder is frozen.
        pixels: normalised images that replace those of the batch, for example after mixup.
        """
        if "feature" in batch:
            return jnp.asarray(batch["feature"], jnp.float32), extra
        pixels = self.pixels(batch) if pixels is None else pixels
        rng = None if self.frozen else rng
        tree = jax.lax.stop_gradient(params["image"]) if self.frozen else params["image"]
        if not self.modalities:
            features, extra = self._encoded(tree, extra, _tiled(pixels, self.tiles), rng)
            features = features.reshape(len(pixels), self.tiles**2, -1)
            return (features.max(1) if self.tile_pool == "max" else features.mean(1)), extra
        if "modality" not in batch:
            raise UserError("the batch has no 'modality', and this backbone has an encoder for each modality")
        # Every encoder sees every image: which examples belong to it is not known when the step is compiled.
        modality, total = jnp.asarray(batch["modality"]), jnp.zeros((len(pixels), self.width), jnp.float32)
        for m in self.modalities:
            features, _ = self._encoded(tree[f"m{m}"], extra, pixels, rng)
            total = jnp.where((modality == m)[:, None], features, total)
        return total, extra

    def _encoded(self, tree: Params, extra: Extra, pixels: jax.Array, rng: jax.Array | None) -> tuple[jax.Array, Extra]:
        rngs = {"drop_path": rng} if rng is not None and self.image.drop_path else None
        if isinstance(self.image, Convolutional):
            train = rng is not None and self.statistics == "learned"
            out, extra = apply_encoder(self.image, tree, extra, pixels, train=train, rngs=rngs)
            return out["pooled"].astype(jnp.float32), extra
        hidden = self.feature == "unnormalized" or (self.feature == "token" and self.blocks > 1)
        out, extra = apply_encoder(self.image, tree, extra, pixels, rngs=rngs, hidden=hidden)
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
            if not self.image.norm_after_pool:  # otherwise the norm belongs to the pooled vector, not to tokens
                rows = [apply(LayerNorm(self.image.epsilon), tree["norm"], x) for x in rows]
            return jnp.concatenate(rows, axis=-1)
        token, mean = out["tokens"][:, 0], out["tokens"][:, skip:].mean(1)
        return {"token": token, "mean": mean, "token_mean": jnp.concatenate([token, mean], -1)}[self.feature]


def _tiled(pixels: jax.Array, tiles: int) -> jax.Array:
    """Images [B h w 3] cut into tiles [B tiles^2 h/tiles w/tiles 3], as one batch."""
    b, height, width, c = pixels.shape
    h, w = height // tiles, width // tiles
    parts = pixels[:, : h * tiles, : w * tiles].reshape(b, tiles, h, tiles, w, c)
    return parts.swapaxes(2, 3).reshape(b * tiles**2, h, w, c)


def batch_spec(tower: Backbone, given: str, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The image part of a batch: `image` u8 [B h w 3] and `modality` if it is needed, or `feature` f32 [B C]."""
    if given == "feature":
        return {"feature": jax.ShapeDtypeStruct((batch, tower.width), jnp.float32)}
    side = tower.side
    spec = {"image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}
    if tower.modalities or len(tower.mean) > 1:
        spec["modality"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return spec


def init_head(tower: Backbone, head: MLPHead, rng: jax.Array) -> tuple[Params, Extra]:
    """Initial parameters of the encoder (`image`) and the head (`head`), and their batch statistics."""
    first, second = jax.random.split(rng)
    params, extra = tower.init(first)
    variables = head.init(second, jnp.zeros((2, tower.width), jnp.float32))
    stats = {"head": variables["batch_stats"]} if "batch_stats" in variables else {}
    return params | {"head": variables["params"]}, extra | stats


def apply_head(
    head: MLPHead, params: Params, extra: Extra, feature: jax.Array, rng: jax.Array | None = None
) -> tuple[jax.Array, Extra]:
    """Outputs f32 [B K] of the head, and the next extra state; `rng` is given in training."""
    variables = {"params": params["head"]} | ({"batch_stats": extra["head"]} if "head" in extra else {})
    if rng is None:
        return head.apply(variables, feature), extra  # type: ignore[return-value]
    out, new = head.apply(variables, feature, True, mutable=["batch_stats"], rngs={"dropout": rng})
    return out, extra | ({"head": new["batch_stats"]} if "head" in extra else {})


@dataclass(frozen=True)
class Encoder:
    """A pretrained image encoder with the normalisation of its images. It gives features and has no loss.

    mean, std: mean and deviation of RGB in [0, 1], one row or a row for each `modality` of a batch.
    """

    image: VisionEncoder
    mean: tuple[RGB, ...] = (IMAGENET_MEAN,)
    std: tuple[RGB, ...] = (IMAGENET_STD,)

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]."""
        side = self.image.image_size
        return {"image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters, and batch statistics if the encoder has any, both under `image`."""
        variables = self.image.init(rng, jnp.asarray(batch["image"], jnp.float32))
        stats = {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        return {"image": variables["params"]}, stats

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """image_raw f32 [B D], tokens f32 [B N D], and features: class token and mean of the patches, or image_raw.

        A convolutional encoder has no class token.
        """
        pixels = normalize(batch["image"], self.mean, self.std, self.image.dtype, batch.get("modality"))
        out, _ = apply_encoder(self.image, params["image"], extra, pixels)
        if isinstance(self.image, ViT):
            return image_features(out, self.image.class_token)
        pooled = out["pooled"].astype(jnp.float32)
        return {"image_raw": pooled, "tokens": out["tokens"].astype(jnp.float32), "features": pooled}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Raises UserError, because an encoder alone has no loss."""
        raise UserError("an encoder alone has no loss: pass it to a config with --init")


def image_features(out: Mapping[str, jax.Array], class_token: bool = True) -> dict[str, jax.Array]:
    """image_raw f32 [B D], tokens f32 [B N D], and features f32 [B 2D] for probes, of a ViT.

    The features are the class token, or the pooled vector of a ViT without one, and the mean of the patches.
    """
    tokens = out["tokens"].astype(jnp.float32)
    first = tokens[:, 0] if class_token else out["pooled"].astype(jnp.float32)
    features = jnp.concatenate([first, tokens[:, int(class_token) :].mean(1)], axis=-1)
    return {"image_raw": out["pooled"].astype(jnp.float32), "tokens": tokens, "features": features}
