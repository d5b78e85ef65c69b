"""FLAIR (arXiv:2308.07898): contrastive pretraining on fundus photographs with text descriptions of their categories.

The computation is that of github.com/jusiro/FLAIR (Apache-2.0); golden tests compare with it. Extensions, all optional:
negatives of the global batch, soft targets from a table of similarities, a ViT as image encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.backbone import apply_encoder
from fundax.encoders.bert import BERT
from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.pixels import normalize
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.losses import contrastive
from fundax.losses.contrastive import NEGATIVES, Negatives, Targets, accuracy, bounded, label_aware
from fundax.losses.relations import Repeats, relations
from fundax.types import Batch, Extra, Metrics, Params, UserError

POOL_LAYERS = (1, 2, -1)  # the hidden states that FLAIR averages


# Image size, width and units of the ResNet, fields of BERT, width of the features. base is published.
SIZES: dict[str, tuple[int, tuple[int, tuple[int, ...]], dict[str, int], int]] = {
    "smoke": (32, (4, (1, 1)), {"context": 32, "width": 16, "depth": 2, "heads": 2, "hidden": 16}, 16),
    "tiny": (64, (16, (1, 1, 1)), {"context": 77, "width": 128, "depth": 4, "heads": 4, "hidden": 256}, 128),
    "base": (512, (64, (3, 4, 6, 3)), {"width": 768, "depth": 12, "heads": 12, "hidden": 3072}, 512),
}


@dataclass(frozen=True)
class FLAIR:
    """Contrastive pretraining in which all texts of an image's category are positives.

    context: tokens of a caption; BERT has text.context positions.
    project, normalize: FLAIR's two flags. Both: normalise, project to `embed` dimensions, normalise again. Only
        `project`: project. Without `project`: the encoders' outputs.
    mean, std: mean and deviation of the images. The default only divides by 255, as FLAIR's code does.
    negatives, targets: see losses.label_aware.
    repeats: what pairs of rows with equal texts, or of one patient, are to each other, if their categories differ
        (losses/relations.py). patients: batches have `patient`.

    Batch statistics of a ResNet are in `extra`.
    """

    image: ResNet | ViT
    text: BERT
    embed: int = 512
    context: int = 77
    project: bool = True
    normalize: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    negatives: Negatives = "global"
    targets: Targets = contrastive.matching_targets
    repeats: Repeats = "mask"
    patients: bool = False
    init_logit_scale: float = math.log(1 / 0.07)
    resize: ClassVar[str] = "canvas"  # of the program and of all its data: the longer side to the size, then black
    interpolation: ClassVar[str] = "bilinear"

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES:
            raise UserError(f"FLAIR: negatives is {self.negatives!r}; expected one of {', '.join(NEGATIVES)}")

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3], text i32 [B L], category i32 [B]; with `patients` also patient i32 [B]."""
        size = self.image.image_size
        patient = {"patient": jax.ShapeDtypeStruct((batch,), jnp.int32)} if self.patients else {}
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch, self.context), jnp.int32),
            "category": jax.ShapeDtypeStruct((batch,), jnp.int32),
            **patient,
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters; `extra` is {"image": batch statistics}, or empty for a ViT."""
        keys = jax.random.split(rng, 4)
        variables = self.image.init(keys[0], self._pixels(batch["image"][:1]))
        params: Params = {
            "image": variables["params"],
            "text": self.text.init(keys[1], batch["text"][:1])["params"],
            "log_scale": jnp.asarray(self.init_logit_scale, jnp.float32),
        }
        if self.project:
            shapes = {"image": (self.image.width, self.embed), "text": (self.text.width, self.embed)}
            params["project"] = {
                name: {"kernel": layers.uniform(shape[0] ** -0.5)(key, shape, jnp.float32)}
                for (name, shape), key in zip(shapes.items(), keys[2:], strict=True)
            }
        return params, ({"image": variables["batch_stats"]} if "batch_stats" in variables else {})

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """For `image` and `text`, if in the batch: *_raw and *_features f32 [B E], before and after normalising.

        Also visual [B D], the pooled output of the image encoder, and logit_scale. Uses running statistics.
        """
        out: dict[str, jax.Array] = {}
        if "image" in batch:
            tower, _ = self._image(params, extra, batch["image"], None)
            out["visual"] = tower["pooled"]
            out |= self._projected(params, "image", tower["pooled"])
        if "text" in batch:
            out |= self._projected(params, "text", self._text(params, batch["text"], None))
        return out | {"logit_scale": jnp.exp(bounded(params["log_scale"]))}

    def features(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], Extra]:
        """Training outputs: image_features and text_features f32 [B E], image_tokens [B N D]; and the next extra state.

        Uses batch statistics and dropout.
        """
        keys = jax.random.split(rng)
        tower, extra = self._image(params, extra, batch["image"], keys[0])
        text = self._text(params, batch["text"], keys[1])
        raw = self._projected(params, "image", tower["pooled"]) | self._projected(params, "text", text)
        kept = {name: raw[name] for name in ("image_features", "text_features")}
        return kept | {"image_tokens": tower["tokens"]}, extra

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """image_features and text_features of training, f32 [B E]."""
        return self.encode_next(params, extra, batch, rng)[0]

    def encode_next(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], Extra]:
        """The features of `encode`, and the next extra state."""
        out, extra = self.features(params, extra, batch, rng)
        return {name: out[name] for name in ("image_features", "text_features")}, extra

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, and its metrics.

        Without `category` in the batch a text matches only its own image. Examples that are not `valid` are left out.
        """
        image, text = features["image_features"], features["text_features"]
        scale = jnp.exp(bounded(params["log_scale"]))
        mask, given = batch.get("valid"), {name: batch.get(name) for name in ("text", "patient", "category")}
        rows = relations(self.repeats, mask=mask, **given)
        options: dict[str, Any] = {"related": rows.related, "negatives": self.negatives}
        loss = label_aware(image, text, scale, rows.group, mask=mask, targets=self.targets, **options)
        to_text, to_image = accuracy(image, text, mask, group=rows.group, **options)
        metrics = {"loss": loss, "image_to_text": to_text, "text_to_image": to_image, "logit_scale": scale}
        return loss, metrics | rows.counts

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """losses.label_aware of `image`, `text` and `category`."""
        features, extra = self.features(params, extra, batch, rng)
        loss, metrics = self.compare(params, features, batch)
        return loss, (extra, metrics)

    def _pixels(self, image: jax.Array) -> jax.Array:
        return normalize(image, self.mean, self.std, self.image.dtype)

    def _image(
        self, params: Params, extra: Extra, image: jax.Array, rng: jax.Array | None
    ) -> tuple[dict[str, jax.Array], Extra]:
        """Outputs of the image encoder, and the next extra state; `rng` is given in training."""
        rngs = {"mask": rng} if rng is not None and getattr(self.image, "mask_ratio", 0) else None
        pixels, train = self._pixels(image), rng is not None
        return apply_encoder(self.image, params["image"], extra, pixels, train=train, rngs=rngs)

    def _text(self, params: Params, text: jax.Array, rng: jax.Array | None) -> jax.Array:
        rngs = {"dropout": rng} if rng is not None and self.text.dropout else {}
        return apply(self.text, params["text"], text, rngs=rngs)["pooled"]

    def _projected(self, params: Params, name: str, pooled: jax.Array) -> dict[str, jax.Array]:
        """`name`_raw and `name`_features f32 [B E] from the pooled output [B D] of an encoder."""
        raw = features = pooled.astype(jnp.float32)
        if self.project:
            kernel = params["project"][name]["kernel"]
            raw = project(l2_normalize(raw) if self.normalize else raw, kernel)
            features = l2_normalize(raw) if self.normalize else raw
        return {f"{name}_raw": raw, f"{name}_features": features}


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x f32 [B D] times kernel [D E] in full fp32, as FLAIR's projections, which run outside mixed precision."""
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def text_encoder(size: str, vocab: int, **fields: Any) -> BERT:
    """The text encoder of a row of SIZES; `fields` are BERT's. Raises UserError for an unknown size."""
    return BERT(vocab=vocab, **_row(size)[2], **{"pool": "mean", "pool_layers": POOL_LAYERS} | fields)


def flair(
    size: str,
    *,
    vocab: int,
    image_size: int = 0,
    image: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    **fields: Any,
) -> FLAIR:
    """FLAIR of a row of SIZES. `image` and `text` are fields of ResNet and BERT, the others of FLAIR; image_size: another
    one than the row's. Raises UserError for an unknown size."""
    side, (width, units), _, embed = _row(size)
    images = ResNet(image_size or side, width, units, **(image or {}))
    return FLAIR(images, text_encoder(size, vocab, **(text or {})), **{"embed": embed} | fields)


def _row(size: str) -> Any:
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    return SIZES[size]
