"""RET-CLIP (arXiv:2405.14137): contrastive pretraining at the levels of left eye, right eye and patient.

The computation is that of github.com/sStonemason/RET-CLIP (Apache-2.0); golden tests compare with it. The optional
reconstruction branch follows github.com/sStonemason/RET-CLIP-PLUS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from fundax.encoders import autoencoder
from fundax.encoders.bert import BERT, bert
from fundax.encoders.clip_text import TextTransformer, text_transformer
from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.levels import LEVELS, SUFFIX, image_levels, initial_heads, text_levels
from fundax.encoders.pixels import CLIP_MEAN, CLIP_STD, normalize
from fundax.encoders.vit import Size, ViT, kept_patches, size_named, vit
from fundax.losses import contrastive
from fundax.losses.contrastive import NEGATIVES, Negatives, accuracy, contrast, contrast_pairs, mean_over_devices
from fundax.losses.relations import Related, Relations, Repeats, relations
from fundax.optim import MAX_LOG_SCALE as MAX_LOG_SCALE  # the bound of the log scales, for configs
from fundax.optim import adamw, clip_params, cosine, decay_matrices, decay_ret_clip
from fundax.types import Batch, Extra, Metrics, Params, UserError

# Small sizes for tests and laptops: the image encoder, and width, depth, heads and hidden width of the text encoder.
SIZES = {
    "smoke": (Size(32, 8, 32, 1, 1, 32, 32, 1, 1), (32, 1, 1, 128)),
    "tiny": (Size(64, 8, 128, 3, 4, 128, 128, 2, 4), (128, 2, 4, 512)),
}


IMAGE = {"patient": "image", "left": "left", "right": "right"}  # names of the outputs of a level


@dataclass(frozen=True)
class Reconstruction:
    """RET-CLIP-PLUS's masked-autoencoder branch.

    ratio: part of the patches that is masked.
    weight, start: from step `start`, `weight` times the pixel loss is added.
    flow: from this step the contrastive loss uses the reconstructed images ("VisionFlow"); None: never.

    The original stages start at epochs 2 and 5.
    """

    decoder: autoencoder.MaskedDecoder
    ratio: float = 0.75
    weight: float = 10.0
    start: int = 0
    flow: int | None = None


@dataclass(frozen=True)
class RetCLIP:
    """Contrastive losses of the left eye, the right eye and the patient with one report each.

    One ViT encodes both eyes. Every level has its own image mapping, text head and logit scale.

    text: a BERT, as published, or CLIP's text transformer, which knows English from CLIP's weights.
    context: tokens of a report; the text encoder has text.context positions.
    contrast: the loss of a level, see losses/contrastive.py.
    negatives: see losses/contrastive.py; the original code trains with "local".
    total: "sum" or "mean" of the three losses.
    presence: use `left_present` and `right_present`: a missing eye is left out of its level's loss, as example and as
        negative, and the patient feature uses the other eye. False: as the original code.
    repeats: what pairs of rows with identical reports (equal `category`, or else equal tokens), or of one patient, are to
        each other (losses/relations.py). The original code has "negatives". patients: batches have `patient`.
    single: level at which forward compares one photograph (`image`) with texts.
    """

    image: ViT
    text: BERT | TextTransformer
    embed: int
    context: int = 100
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    contrast: Callable[..., jax.Array] = contrastive.softmax_contrastive
    negatives: Negatives = "global"
    total: Literal["sum", "mean"] = "sum"
    presence: bool = True
    repeats: Repeats = "mask"
    patients: bool = False
    single: Literal["patient", "left", "right"] = "patient"
    init_logit_scale: float = math.log(90)
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES or self.total not in ("sum", "mean"):
            raise UserError(f"RetCLIP: negatives is one of {', '.join(NEGATIVES)}; total is 'sum' or 'mean'")
        if self.single not in LEVELS:
            raise UserError(f"RetCLIP: single is {self.single!r}; expected one of {', '.join(LEVELS)}")

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """left, right u8 [B h w 3], text i32 [B L]; with `presence` also left_present, right_present bool [B], with
        `patients` patient i32 [B].
        """
        size = self.image.image_size
        eye = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
        there = jax.ShapeDtypeStruct((batch,), jnp.bool_)
        present = {"left_present": there, "right_present": there} if self.presence else {}
        present |= {"patient": jax.ShapeDtypeStruct((batch,), jnp.int32)} if self.patients else {}
        text = jax.ShapeDtypeStruct((batch, self.context), jnp.int32)
        return {"left": eye, "right": eye, "text": text, **present}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters with the original distributions: heads N(0, 1/width), mappings as PyTorch's Linear."""
        keys = jax.random.split(rng, 6)
        image = self._normalized(batch["left"][:1])
        params: Params = {
            "image": self.image.init(keys[0], image)["params"],
            "text": self.text.init(keys[1], batch["text"][:1])["params"],
            "project": initial_heads(keys[2], self.image.width, self.text.width, self.embed),
            "log_scale": {level: jnp.asarray(self.init_logit_scale, jnp.float32) for level in LEVELS},
        }
        if branch := self.reconstruction:
            kept = jnp.zeros((1, 1), jnp.int32)
            tokens = jnp.zeros((1, 2, self.image.width), jnp.float32)
            params["decoder"] = branch.decoder.init(keys[3], tokens, kept)["params"]
        return params, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Outputs for the inputs in the batch: *_features are unit vectors f32 [B E], *_raw are before normalising.

        left, right: visual_left and visual_right (of the ViT, before the mappings), left_raw, left_features, right_raw,
            right_features, and image_raw and image_features of the patient. If one eye is missing, the patient features
            use the other eye twice.
        image, a photograph of an unknown side: visual, image_raw and image_features; it is used as both eyes, or as the
            eye of `single`, whose text head and scale then stand for the patient's.
        text: text_raw and text_features, also with _left and _right.

        Always: logit_scale, logit_scale_left, logit_scale_right.
        """
        visual = {
            name: self._visual(params, self._normalized(batch[key]))
            for key, name in (("left", "visual_left"), ("right", "visual_right"), ("image", "visual"))
            if key in batch
        }
        raw = self._image_levels(params, visual, batch)
        if "text" in batch:
            raw |= self._text_levels(params, batch["text"], None)
        found = visual | raw | _features(raw) | self._scales(params)
        return found if self.single == "patient" else found | self._of_one_side(params, found)

    def _of_one_side(self, params: Params, found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The outputs of one eye's level under the names of the patient's."""
        suffix, out = SUFFIX[self.single], {}
        if "visual" in found:
            left, right = (found["visual"] if self.single == side else None for side in ("left", "right"))
            raw = image_levels(params["project"], left, right)
            image = raw[f"{self.single}_raw"]
            out = {"image_raw": image, "image_features": l2_normalize(image)}
        names = ("text_raw", "text_features", "logit_scale")
        return out | {name: found[name + suffix] for name in names if name + suffix in found}

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """The six unit features f32 [B E]; with that branch also the weighted `reconstruction` loss [B].

        `rng` is for BERT's dropout, FLIP masking (the ViT's mask_ratio) and the masks of the reconstruction branch.
        """
        keys = jax.random.split(rng, 3)
        # The eyes of a patient stay neighbours, so that a sharded batch need not move between devices.
        eyes = jnp.stack([batch["left"], batch["right"]], axis=1)  # [B 2 h w 3]
        images, out = self._normalized(eyes.reshape(-1, *eyes.shape[2:])), {}
        if self.reconstruction:
            images, error = self._reconstructed(params, images, keys[2], step)
            out["reconstruction"] = error.reshape(-1, 2).mean(1)
        visual = self._visual(params, images, keys[0]).reshape(len(eyes), 2, -1)
        both = {"visual_left": visual[:, 0], "visual_right": visual[:, 1]}
        raw = self._image_levels(params, both, batch) | self._text_levels(params, batch["text"], keys[1])
        return _features(raw) | out

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, the three losses, and the accuracy of the patient level.

        Examples that are not `valid` are left out.
        """
        scales, masks = self._scales(params), self._masks(batch)
        text = batch.get("category", batch.get("text"))
        rows = relations(self.repeats, text=text, patient=batch.get("patient"), mask=batch.get("valid"))
        parts = dict(zip(LEVELS, self._contrasts(features, scales, masks, rows), strict=True))
        total: jax.Array = sum(parts.values(), start=jnp.zeros((), jnp.float32))
        loss = total / (1 if self.total == "sum" else len(LEVELS))
        metrics = {f"loss_{level}": part for level, part in parts.items()}
        if "reconstruction" in features:
            metrics["loss_reconstruction"] = features["reconstruction"].mean()
            loss = loss + metrics["loss_reconstruction"]
        pair = features["image_features"], features["text_features"]
        to_text, to_image = accuracy(*pair, masks["patient"], related=rows.related, negatives=self.negatives)
        metrics |= {"image_to_text": to_text, "text_to_image": to_image}
        return loss, {"loss": loss, **metrics, **scales, **rows.counts}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Contrastive loss of `left`, `right` and `text`."""
        loss, metrics = self.compare(params, self.encode(params, extra, batch, rng, step), batch)
        return loss, (extra, metrics)

    def _normalized(self, image: jax.Array) -> jax.Array:
        return normalize(image, self.mean, self.std, self.image.dtype)

    def _visual(self, params: Params, image: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Projected features f32 [B E] of normalised images [B h w 3], before the mapping of a level."""
        rngs = {"mask": rng} if rng is not None and self.image.mask_ratio else None
        pooled = apply(self.image, params["image"], image, rngs=rngs)["pooled"]
        return pooled.astype(jnp.float32) @ params["project"]["image"]["kernel"]

    def _image_levels(self, params: Params, visual: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """The mapped features f32 [B E] of every level that can be computed from the given images."""
        eyes = visual.get("visual_left"), visual.get("visual_right")
        names = ("left_present", "right_present")
        present = tuple(batch[name] for name in names) if self.presence and batch.keys() >= set(names) else None
        return image_levels(params["project"], *eyes, visual.get("visual"), present)

    def _text_levels(self, params: Params, text: jax.Array, rng: jax.Array | None) -> dict[str, jax.Array]:
        """The three text features f32 [B E] of ids i32 [B L]."""
        rngs = {"dropout": rng} if rng is not None and isinstance(self.text, BERT) and self.text.dropout else None
        return text_levels(params["project"], apply(self.text, params["text"], text, rngs=rngs)["pooled"])

    def _scales(self, params: Params) -> dict[str, jax.Array]:
        return {f"logit_scale{SUFFIX[level]}": jnp.exp(params["log_scale"][level]) for level in LEVELS}

    def _masks(self, batch: Batch) -> dict[str, jax.Array | None]:
        """The examples that count at each level, bool [B]; None: all."""
        valid = batch.get("valid")
        if not self.presence or "left_present" not in batch or "right_present" not in batch:
            return dict.fromkeys(LEVELS, valid)
        left, right = batch["left_present"], batch["right_present"]
        masks = {"patient": left | right, "left": left, "right": right}
        return {level: mask if valid is None else mask & valid for level, mask in masks.items()}

    def _contrasts(
        self,
        features: Mapping[str, jax.Array],
        scales: Mapping[str, jax.Array],
        masks: Mapping[str, jax.Array | None],
        about: Relations,
    ) -> list[jax.Array]:
        """The loss of each level."""
        images = [features[f"{IMAGE[level]}_features"] for level in LEVELS]
        texts = [features[f"text_features{SUFFIX[level]}"] for level in LEVELS]
        factors, rows = [scales[f"logit_scale{SUFFIX[level]}"] for level in LEVELS], [masks[level] for level in LEVELS]
        if self.negatives != "local":
            options: dict[str, Any] = {"masks": rows, "negatives": self.negatives}
            options |= {"group": about.group, "related": about.related}
            return contrast_pairs(self.contrast, images, texts, factors, **options)

        def local(image: jax.Array, text: jax.Array, scale: jax.Array, mask: jax.Array | None) -> jax.Array:
            def one(i: Any, t: Any, m: jax.Array | None, g: jax.Array | None, r: Related) -> jax.Array:
                return contrast(self.contrast, i, t, (scale,), mask=m, group=g, related=r, negatives="plain")

            return mean_over_devices(one, image, text, mask, about.group, about.related)

        return [local(*level) for level in zip(images, texts, factors, rows, strict=True)]

    def _reconstructed(
        self, params: Params, images: jax.Array, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Images for the contrastive losses, and the weighted pixel loss of each, f32 [B]."""
        branch = self.reconstruction
        assert branch is not None
        patch, noise = self.image.patch, jax.random.uniform(rng, (len(images), self.image.patches))
        tower = self.image.clone(mask_ratio=branch.ratio)

        def run() -> tuple[jax.Array, jax.Array]:
            kept = kept_patches(noise, branch.ratio)
            tokens = apply(tower, params["image"], images, noise)["tokens"]
            predicted = apply(branch.decoder, params["decoder"], tokens, kept)
            error = branch.weight * autoencoder.pixel_loss(predicted, images, kept, patch)
            return autoencoder.reconstruct(predicted, images, kept, patch), error

        def skip() -> tuple[jax.Array, jax.Array]:
            return images, jnp.zeros(len(images), jnp.float32)

        reconstructed, error = jax.lax.cond(step >= branch.start, run, skip)
        if branch.flow is None:
            return images, error
        return jnp.where(step >= branch.flow, reconstructed, images), error


def _features(raw: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name.replace("raw", "features"): l2_normalize(x) for name, x in raw.items()}


def ret_clip(
    size: str, text: str = "base", *, vocab: int = 21128, dropout: float = 0.1, image_size: int = 0, **fields: Any
) -> RetCLIP:
    """RET-CLIP with an image encoder of encoders.vit.SIZES and a text encoder of encoders.bert.SIZES, or a row of SIZES.

    text "clip": CLIP's text transformer of the same size, which CLIP's weights can start.
    `fields` named scan, remat and dtype go to both encoders, attention to that of images, the others to RetCLIP. The
    published model is B/16, base. In the row tiny of SIZES the text is pooled by the mean of its tokens: a fresh [CLS]
    says nothing of them, and learns to only slowly. Raises UserError for an unknown size.
    """
    both = {name: fields.pop(name) for name in ("scan", "remat", "dtype") if name in fields}
    images = both | {name: fields.pop(name) for name in ("attention",) if name in fields}
    if size in SIZES:
        image, words = SIZES[size]
        report: Any = BERT(vocab, 128, *words, dropout=0.0, pool="cls" if size == "smoke" else "mean", **both)
        if text == "clip":
            report = TextTransformer(vocab, fields.get("context", 77), *words[:3], **both)
        fields = {"embed": image.embed, "init_logit_scale": 2.66} | fields
        sizes = (image_size or image.image_size, image.patch, image.width, image.depth, image.heads)
        return RetCLIP(image=ViT(*sizes, **images), text=report, **fields)
    tower = vit(size, image_size=image_size or size_named(size).image_size, **images)
    fields.setdefault("embed", size_named(size).embed)
    if text == "clip":
        report = text_transformer(size, vocab=vocab, context=fields.get("context", 77), **both)
    else:
        report = bert(text, vocab=vocab, dropout=dropout, **both)
    return RetCLIP(image=tower, text=report, **fields)


def optimizer(lr: float, steps: int, weight_decay: float, published: bool) -> optax.GradientTransformation:
    """AdamW with 50 steps of warm-up and a cosine. Unless `published`, gradients are clipped and matrices alone decay."""
    rule = decay_ret_clip if published else decay_matrices
    return optax.chain(
        optax.identity() if published else optax.clip_by_global_norm(1.0),
        adamw(cosine(lr, steps, min(50, steps // 2)), (0.9, 0.98), 1e-6, weight_decay, rule),
        clip_params({"^log_scale/": (0.0, MAX_LOG_SCALE)}),
    )
