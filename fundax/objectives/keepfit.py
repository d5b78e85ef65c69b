"""KeepFIT (arXiv:2405.11338) and KeepFIT V2 (arXiv:2501.15798): FLAIR plus the knowledge of a few expert reports.

Every batch has a public half (`image`, `text`, `category`) and an elite half of expert data (`elite/image`,
`elite/text`). V1 follows github.com/lxirich/MM-Retinal; golden tests compare with it. V2's formula and loss weights are
not public: mixing semantic with appearance similarity, and the report branch, are our design after its abstract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.report_decoder import ReportDecoder, token_loss
from fundax.objectives.keepfit_reference import V2, Attention, Reference, agreeing
from fundax.types import Batch, Extra, Metrics, Params, UserError

ELITE = "elite/"
FUSIONS = ("fuse_public", "fuse_elite")


class TwoTowers(Protocol):
    """The objective of both halves: FLAIR, or another with the same methods."""

    @property
    def embed(self) -> int: ...
    @property
    def image(self) -> Any: ...
    @property
    def text(self) -> Any: ...
    @property
    def mean(self) -> Any: ...
    @property
    def std(self) -> Any: ...
    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]: ...
    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]: ...
    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]: ...
    def features(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], Extra]: ...
    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]: ...


# Width, depth and heads of the caption decoder for the sizes of objectives.flair.SIZES.
SIZES = {"smoke": (16, 1, 2), "tiny": (128, 2, 4), "base": (512, 3, 8)}


def caption_decoder(size: str, tokenizer: Any) -> ReportDecoder:
    """The decoder of expert texts of a row of SIZES; `tokenizer` has vocab_size, context, start, end and pad."""
    width, depth, heads = SIZES[size]
    ids = {"bos": tokenizer.start, "eos": tokenizer.end, "pad": tokenizer.pad}
    return ReportDecoder(tokenizer.vocab_size, tokenizer.context - 1, width, depth, heads, width, **ids)


@dataclass(frozen=True)
class KeepFIT:
    """loss = public + elite_weight * elite + reference.weight * reference + caption_weight * caption.

    The public and the elite loss are those of `base` on each half. An elite text matches only its own image, unless the
    batch has `elite/category`. KeepFIT(base, V1) is the published first version.

    reference: the cross-modal reference loss (keepfit_reference.py); None leaves it out. It compares `appearance` with
        `elite/appearance`, f32 [B A] of unit length. With `status` and `elite/status` in the batch (0 normal, 1 abnormal,
        -1 unknown), normal images are not matched to abnormal references.
    fusion: attention that adds elite texts to public texts and the reverse before the comparison: an ablation of V1.
    caption: a decoder that generates the elite text from its image's tokens: our reading of V2's generative branch.
    appearance: A. by_status: batches have `status` and `elite/status`.

    With accumulated gradients, attention weights are not dropped out.
    """

    base: TwoTowers | Any
    reference: Reference | None = V2
    elite_weight: float = 1.0
    fusion: Attention | None = None
    caption: ReportDecoder | None = None
    caption_weight: float = 0.5
    appearance: int = 4096
    by_status: bool = False

    @property
    def embed(self) -> int:
        """E of the features."""
        return self.base.embed

    @property
    def image(self) -> Any:
        """The image encoder of the base."""
        return self.base.image

    @property
    def text(self) -> Any:
        """The text encoder of the base."""
        return self.base.text

    @property
    def mean(self) -> Any:
        """Mean of images, the base's."""
        return self.base.mean

    @property
    def std(self) -> Any:
        """Deviation of images, the base's."""
        return self.base.std

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The base's keys, elite/image and elite/text, appearances if `reference` uses them, status with `by_status`."""
        spec = self.base.batch_spec(batch)
        spec |= {ELITE + name: spec[name] for name in ("image", "text")}
        if self._needs_appearance:
            vector = jax.ShapeDtypeStruct((batch, self.appearance), jnp.float32)
            spec |= {"appearance": vector, "elite/appearance": vector}
        if self.by_status:
            status = jax.ShapeDtypeStruct((batch,), jnp.int32)
            spec |= {"status": status, "elite/status": status}
        return spec

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """The base's parameters, and those of reference, fuse_public, fuse_elite and caption if they are used."""
        keys = jax.random.split(rng, 5)
        params, extra = self.base.init(keys[0], batch)
        if self.reference is not None:
            params["reference"] = self.reference.init(keys[1], self.embed)
        if self.fusion is not None:
            params |= {name: self.fusion.init(keys[2 + i], self.embed) for i, name in enumerate(FUSIONS)}
        if self.caption is not None:
            tokens = jnp.zeros((1, 2, self.base.image.width), jnp.float32)
            params["caption"] = self.caption.init(keys[4], tokens, batch["elite/text"][:1, :-1])["params"]
        return params, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """The base's outputs for `image` and `text`. The elite data are needed in training only."""
        return self.base.forward(params, extra, batch)

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """image_features and text_features f32 [B E] of both halves (elite/...); caption and caption_words f32 [B], the
        -log p of each elite report and its length.
        """
        return self.encode_next(params, extra, batch, rng)[0]

    def encode_next(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], Extra]:
        """The features of `encode`, and the next extra state."""
        keys = jax.random.split(rng, 3)
        public, elite = halves(batch)
        if missing := [name for name in ("image", "text") if name not in elite]:
            raise UserError(
                f"KeepFIT: the batch has no {ELITE}{missing[0]}; add a source of elite data, one example per public one"
            )
        features, extra = self.base.features(params, extra, public, keys[0])
        elite_features, extra = self.base.features(params, extra, elite, keys[1])
        names = ("image_features", "text_features")
        out = {name: features[name] for name in names} | {ELITE + name: elite_features[name] for name in names}
        if self.caption is not None:
            sums = self._caption_loss(params, elite_features["image_tokens"], elite["text"], keys[2])
            out |= dict(zip(("caption", "caption_words"), sums, strict=True))
        return out, extra

    def compare(
        self, params: Params, features: Mapping[str, jax.Array], batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, and its terms; `rng` is for the dropout of attention weights."""
        public, elite = halves(features)
        public_batch, elite_batch = halves(batch)
        keys = [None] * 3 if rng is None else list(jax.random.split(rng, 3))
        if self.fusion is not None:
            public, elite = self._fused(params, public, elite, keys)
        loss, metrics = self.base.compare(params, public, public_batch)
        metrics = dict(metrics) | {"loss_public": loss}
        if self.elite_weight:
            metrics["loss_elite"], elite_metrics = self.base.compare(params, elite, elite_batch)
            loss = loss + self.elite_weight * metrics["loss_elite"]
            metrics["elite_image_to_text"] = elite_metrics["image_to_text"]
        if self.reference is not None:
            metrics["loss_reference"] = self._reference_loss(params, halves(features), batch, keys[2])
            loss = loss + self.reference.weight * metrics["loss_reference"]
        if self.caption is not None:
            words = jnp.maximum(features["caption_words"].sum(), 1)
            metrics["loss_caption"] = features["caption"].sum() / words
            loss = loss + self.caption_weight * metrics["loss_caption"]
        return loss, metrics | {"loss": loss}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """The sum of the terms. Each half is normalised with its own batch statistics."""
        keys = jax.random.split(rng)
        features, extra = self.encode_next(params, extra, batch, keys[0])
        loss, metrics = self.compare(params, features, batch, keys[1])
        return loss, (extra, metrics)

    @property
    def _needs_appearance(self) -> bool:
        return self.reference is not None and self.reference.lam < 1

    def _caption_loss(
        self, params: Params, tokens: jax.Array, text: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        assert self.caption is not None
        log_p = apply(self.caption, params["caption"], tokens, text[:, :-1], rngs={"dropout": rng})
        return token_loss(log_p, text[:, 1:], text[:, 1:] != self.caption.pad)

    def _fused(
        self, params: Params, public: dict[str, jax.Array], elite: dict[str, jax.Array], keys: list[Any]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Add to the texts of each half what attention takes from the other half."""
        assert self.fusion is not None
        added = []
        for name, own, other, key in zip(FUSIONS, (public, elite), (elite, public), keys, strict=False):
            images = own["image_features"], other["image_features"]
            fused = self.fusion(params[name], *images, other["text_features"], key)
            added.append(own | {"text_features": own["text_features"] + fused})
        return added[0], added[1]

    def _reference_loss(
        self, params: Params, sides: tuple[dict[str, jax.Array], ...], batch: Batch, rng: jax.Array | None
    ) -> jax.Array:
        """The unweighted reference loss."""
        assert self.reference is not None
        public, elite = sides
        appearance = mask = None
        if self._needs_appearance and {"appearance", "elite/appearance"} <= batch.keys():
            appearance = l2_normalize(batch["appearance"]) @ l2_normalize(batch["elite/appearance"]).T
        if "status" in batch and "elite/status" in batch:
            mask = agreeing(batch["status"], batch["elite/status"])
        examples = elite["image_features"], elite["text_features"]
        text = self.reference.text(
            params["reference"], public["image_features"], examples, appearance=appearance, mask=mask, rng=rng
        )
        rows = None if mask is None else mask.any(1)  # images without any valid reference are excluded
        if "valid" in batch:
            rows = batch["valid"] if rows is None else rows & batch["valid"]
        return self.reference.distance(public["text_features"], text, rows)


def halves(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a batch into its public half and its elite half; the keys of the latter lose the prefix."""
    public = {name: value for name, value in batch.items() if not name.startswith(ELITE)}
    return public, {name.removeprefix(ELITE): value for name, value in batch.items() if name.startswith(ELITE)}
