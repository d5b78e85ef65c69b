"""CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343): the objective of MM-Fundus-CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fundax.encoders import layers
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.levels import project
from fundax.encoders.pixels import CLIP_MEAN, CLIP_STD, jittered, normalize, standardize
from fundax.encoders.vit import Size, ViT, size_named
from fundax.losses import contrastive
from fundax.losses.contrastive import accuracy, contrast
from fundax.losses.relations import Repeats, relations
from fundax.optim import MAX_LOG_SCALE, Schedule, adamw, clip_params, decay_open_clip
from fundax.types import Array, Batch, Extra, Metrics, Params

MEAN, STD = CLIP_MEAN, CLIP_STD

# Sizes of both encoders in addition to those of encoders.vit.SIZES: tiny trains on a laptop in minutes.
SIZES = {
    "smoke": Size(32, 8, 32, 1, 2, embed=32, text_width=32, text_depth=1, text_heads=2),
    "tiny": Size(64, 8, 128, 4, 4, embed=128, text_width=128, text_depth=2, text_heads=4),
}


@dataclass(frozen=True)
class CLIP:
    """Contrastive pretraining of an image and a text encoder, each with a linear projection to E dimensions.

    contrast: losses.softmax_contrastive (CLIP) or losses.sigmoid_contrastive (SigLIP).
    negatives: implementation of the loss, see losses/contrastive.py.
    repeats: what pairs of rows with equal texts, or of one patient, are to each other (losses/relations.py).
    patients: batches have `patient`.
    text: a BERT makes it Chinese-CLIP's architecture.
    text_bias: whether the text projection has a bias (SigLIP).
    image_projection: whether images are projected; SigLIP's features are the pooled vector, so that `embed` is its width.
    jitter: ranges of random brightness and contrast of training images, applied on the device.
    init_logit_bias: initial value of a learned bias of the logits; None: no bias.

    The optimizer clamps log_scale (optim.clip_params).
    """

    image: ViT
    text: TextTransformer | BERT
    embed: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    contrast: Callable[..., jax.Array] = contrastive.softmax_contrastive
    negatives: Literal["global", "plain", "ring"] = "global"
    repeats: Repeats = "mask"
    patients: bool = False
    text_bias: bool = False
    image_projection: bool = True
    jitter: tuple[float, float] = (0.0, 0.0)
    init_logit_scale: float = math.log(1 / 0.07)
    init_logit_bias: float | None = None

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3], text i32 [B L]; with `patients` also patient i32 [B]."""
        size = self.image.image_size
        patient = {"patient": jax.ShapeDtypeStruct((batch,), jnp.int32)} if self.patients else {}
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch, self.text.context), jnp.int32),
            **patient,
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters with open_clip's distributions: projections N(0, 1/width), text bias 0."""
        keys = jax.random.split(rng, 4)
        image = normalize(batch["image"][:1], self.mean, self.std, self.image.dtype)
        normal = nn.initializers.normal
        params: Params = {
            "image": self.image.init(keys[0], image)["params"],
            "text": self.text.init(keys[1], batch["text"][:1])["params"],
            "project": {
                "image": {"kernel": normal(self.image.width**-0.5)(keys[2], (self.image.width, self.embed))},
                "text": {"kernel": normal(self.text.width**-0.5)(keys[3], (self.text.width, self.embed))},
            },
            "log_scale": jnp.asarray(self.init_logit_scale, jnp.float32),
        }
        if not self.image_projection:
            del params["project"]["image"]
        if self.text_bias:
            params["project"]["text"]["bias"] = jnp.zeros((self.embed,), jnp.float32)
        if self.init_logit_bias is not None:
            params["logit_bias"] = jnp.asarray(self.init_logit_bias, jnp.float32)
        return params, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """For `image` and `text`, if in the batch: *_features of unit length and *_raw before normalising, f32 [B E].

        Also logit_scale and, if there is one, logit_bias.
        """
        return self._features(params, batch) | self._scales(params)

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """image_features and text_features, f32 [B E]. `rng` is for FLIP masking (the ViT's mask_ratio) and the jitter."""
        features = self._features(params, batch, rng)
        return {name: features[name] for name in ("image_features", "text_features")}

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, and its metrics; examples that are not `valid` are left out."""
        image, text = features["image_features"], features["text_features"]
        scales = self._scales(params)
        mask = batch.get("valid")
        rows = relations(self.repeats, text=batch.get("text"), patient=batch.get("patient"), mask=mask)
        options: dict[str, Any] = {"group": rows.group, "related": rows.related, "negatives": self.negatives}
        loss = contrast(self.contrast, image, text, tuple(scales.values()), mask=mask, **options)
        to_text, to_image = accuracy(image, text, mask, **options)
        metrics = {"loss": loss, "image_to_text": to_text, "text_to_image": to_image, **scales, **rows.counts}
        return loss, metrics

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Contrastive loss of `image` and `text`; the negatives are the whole global batch."""
        loss, metrics = self.compare(params, self.encode(params, extra, batch, rng, step), batch)
        return loss, (extra, metrics)

    def _features(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> dict[str, jax.Array]:
        out = {}
        if "image" in batch:
            image = self._pixels(batch["image"], rng)
            rngs = {"mask": rng} if rng is not None and self.image.mask_ratio else {}
            visual = apply(self.image, params["image"], image, rngs=rngs)
            pooled = visual["pooled"]
            out["image_raw"] = project(pooled, params["project"]["image"]) if self.image_projection else _plain(pooled)
        if "text" in batch:
            text = apply(self.text, params["text"], batch["text"])
            out["text_raw"] = project(text["pooled"], params["project"]["text"])
        return out | {name.replace("raw", "features"): l2_normalize(raw) for name, raw in out.items()}

    def _pixels(self, image: Array, rng: jax.Array | None) -> jax.Array:
        if rng is None or not any(self.jitter) or image.dtype != jnp.uint8:
            return normalize(image, self.mean, self.std, self.image.dtype)
        pixels = jittered(jnp.asarray(image), jax.random.fold_in(rng, 1), *self.jitter)
        return standardize(pixels, self.mean, self.std, self.image.dtype)

    def _scales(self, params: Params) -> dict[str, jax.Array]:
        scales = {"logit_scale": jnp.exp(params["log_scale"])}
        if self.init_logit_bias is not None:
            scales["logit_bias"] = params["logit_bias"]
        return scales


def _plain(pooled: jax.Array) -> jax.Array:
    return pooled.astype(jnp.float32)


def optimizer(schedule: Schedule, weight_decay: float, published: bool = True) -> optax.GradientTransformation:
    """AdamW with the log of the logit scale kept in [0, ln 100] (section 2.5).

    published: open_clip's settings for tuning a pretrained CLIP. Else the second beta is 0.98, gradients are clipped and
    matrices alone decay, for training from random weights.
    """
    if published:
        rule = adamw(schedule, (0.9, 0.95), 1e-6, weight_decay, decay_open_clip)
        return optax.chain(rule, clip_params({"^log_scale": (0.0, math.log(100))}))
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        adamw(schedule, (0.9, 0.98), 1e-6, weight_decay),
        clip_params({"log_scale": (0.0, MAX_LOG_SCALE)}),
    )


def clip(
    size: str,
    *,
    vocab: int = 49408,
    context: int = 77,
    image_size: int = 0,
    activation: Any = layers.quick_gelu,
    **fields: Any,
) -> CLIP:
    """A CLIP of a row of SIZES or of encoders.vit.SIZES.

    `fields` named scan, remat, dtype and attention go to both encoders, the others to CLIP. image_size: another one than the
    row's.
    QuickGELU is the default because OpenAI's and DFN's weights have it. Raises UserError for an unknown size.
    """
    row = SIZES.get(size) or size_named(size)
    both = {name: fields.pop(name) for name in ("scan", "remat", "dtype", "attention") if name in fields}
    both["activation"] = activation
    return CLIP(
        image=ViT(image_size or row.image_size, row.patch, row.width, row.depth, row.heads, **both),
        text=TextTransformer(vocab, context, row.text_width, row.text_depth, row.text_heads, **both),
        embed=row.embed,
        **fields,
    )
