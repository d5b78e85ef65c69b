"""KeepFIT (arXiv:2405.11338, arXiv:2501.15798): a few expert reports injected into many categorical photographs.

A step sees a public half (`image`, `text`, `category`) and an elite half (`elite/image`, `elite/text`). The variants
of V1 are those of github.com/lxirich/MM-Retinal, held by golden tests. V2's loss weights and formula are not public:
the mixture of semantic and appearance similarity and the report branch are our design after its abstract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from fundax.encoders.layers import l2_normalize
from fundax.encoders.report_decoder import ReportDecoder, token_loss
from fundax.objectives.keepfit_reference import V2, Attention, Reference, agreeing
from fundax.types import Batch, Extra, Metrics, Params, UserError

ELITE = "elite/"


FUSIONS = ("fuse_public", "fuse_elite")


class TwoTowers(Protocol):
    """The objective that both halves train: FLAIR, or another with its methods."""

    @property
    def embed(self) -> int: ...
    @property
    def image(self) -> Any: ...
    @property
    def text(self) -> Any: ...
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

    public, elite: the loss of `base` on each half; an elite text is right for its own image alone, unless the batch
        has `elite/category`.
    reference: see fundax.reference; None leaves it out. Its appearances are `appearance` and `elite/appearance`,
        f32 [B A] of unit length. Where the batch has `status` and `elite/status` (0 normal, 1 abnormal, -1 unknown),
        a normal eye takes no advice from an abnormal one.
    fusion: attention that adds elite texts to public ones and back before they are compared (an ablation of V1).
    caption: a decoder that writes the elite text from the tokens of its image; our reading of V2's generative branch.
    V1 is KeepFIT(base, reference.V1). Accumulated gradients leave the dropout of the attention weights out.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "text", "category", "elite/image", "elite/text")

    base: TwoTowers | Any
    reference: Reference | None = V2
    elite_weight: float = 1.0
    fusion: Attention | None = None
    caption: ReportDecoder | None = None
    caption_weight: float = 0.5
    appearance: int = 4096  # A, the length of the appearance vectors
    by_status: bool = False  # batches hold `status` and `elite/status`

    @property
    def embed(self) -> int:
        """E of the features."""
        return self.base.embed

    @property
    def image(self) -> Any:
        """The image tower of the base."""
        return self.base.image

    @property
    def text(self) -> Any:
        """The text tower of the base."""
        return self.base.text

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The base's, the same image and text as elite/..., appearances where `reference` uses them, status if told."""
        spec = self.base.batch_spec(batch)
        spec |= {ELITE + name: spec[name] for name in ("image", "text")}
        if self._sees:
            vector = jax.ShapeDtypeStruct((batch, self.appearance), jnp.float32)
            spec |= {"appearance": vector, "elite/appearance": vector}
        if self.by_status:
            status = jax.ShapeDtypeStruct((batch,), jnp.int32)
            spec |= {"status": status, "elite/status": status}
        return spec

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """The base's parameters, and those of reference, fuse_public, fuse_elite and caption where there are such."""
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
        """The base's outputs for `image` and `text`: what elite knowledge has taught is in the towers."""
        return self.base.forward(params, extra, batch)

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """image_features, text_features, the same as elite/..., f32 [B E]; caption, caption_words f32 [B]: -log p of
        each elite report, and its length.
        """
        del step
        return self._encode(params, extra, batch, rng)[0]

    def compare(
        self, params: Params, features: Mapping[str, jax.Array], batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, and its parts; `rng` drives the dropout of attention weights."""
        public, elite = halves(features)
        public_batch, elite_batch = halves(batch)
        keys = [None] * 3 if rng is None else list(jax.random.split(rng, 3))
        if self.fusion is not None:
            public, elite = self._fused(params, public, elite, keys)
        loss, metrics = self.base.compare(params, public, public_batch)
        metrics = dict(metrics) | {"loss_public": loss}
        if self.elite_weight:
            metrics["loss_elite"], found = self.base.compare(params, elite, elite_batch)
            loss = loss + self.elite_weight * metrics["loss_elite"]
            metrics["elite_image_to_text"] = found["image_to_text"]
        if self.reference is not None:
            metrics["loss_reference"] = self._guided(params, halves(features), batch, keys[2])
            loss = loss + self.reference.weight * metrics["loss_reference"]
        if self.caption is not None:
            words = jnp.maximum(features["caption_words"].sum(), 1)
            metrics["loss_caption"] = features["caption"].sum() / words
            loss = loss + self.caption_weight * metrics["loss_caption"]
        return loss, metrics | {"loss": loss}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Needs `image`, `text`, `category`, `elite/image`, `elite/text`; each half has its own batch statistics."""
        del step
        keys = jax.random.split(rng)
        features, extra = self._encode(params, extra, batch, keys[0])
        loss, metrics = self.compare(params, features, batch, keys[1])
        return loss, (extra, metrics)

    @property
    def _sees(self) -> bool:
        return self.reference is not None and self.reference.lam < 1

    def _encode(self, params: Params, extra: Extra, batch: Batch, rng: jax.Array) -> tuple[dict[str, jax.Array], Extra]:
        keys = jax.random.split(rng, 3)
        public, elite = halves(batch)
        if missing := [name for name in ("image", "text") if name not in elite]:
            raise UserError(
                f"KeepFIT: the batch has no {ELITE}{missing[0]}; mix an elite source in (elite batches 1:1)"
            )
        found, extra = self.base.features(params, extra, public, keys[0])
        told, extra = self.base.features(params, extra, elite, keys[1])
        names = ("image_features", "text_features")
        out = {name: found[name] for name in names} | {ELITE + name: told[name] for name in names}
        if self.caption is not None:
            sums = self._captioned(params, told["image_tokens"], elite["text"], keys[2])
            out |= dict(zip(("caption", "caption_words"), sums, strict=True))
        return out, extra

    def _captioned(
        self, params: Params, tokens: jax.Array, text: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        assert self.caption is not None
        log_p: Any = self.caption.apply({"params": params["caption"]}, tokens, text[:, :-1], rngs={"dropout": rng})
        return token_loss(log_p, text[:, 1:], text[:, 1:] != self.caption.pad)

    def _fused(
        self, params: Params, public: dict[str, jax.Array], elite: dict[str, jax.Array], keys: list[Any]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Texts with what the other half's images and texts add to them."""
        assert self.fusion is not None
        added = []
        for name, own, other, key in zip(FUSIONS, (public, elite), (elite, public), keys, strict=False):
            images = own["image_features"], other["image_features"]
            fused = self.fusion(params[name], *images, other["text_features"], key)
            added.append(own | {"text_features": own["text_features"] + fused})
        return added[0], added[1]

    def _guided(
        self, params: Params, sides: tuple[dict[str, jax.Array], ...], batch: Batch, rng: jax.Array | None
    ) -> jax.Array:
        """The reference's loss, unweighted."""
        assert self.reference is not None
        public, elite = sides
        appearance = mask = None
        if self._sees and {"appearance", "elite/appearance"} <= batch.keys():
            appearance = l2_normalize(batch["appearance"]) @ l2_normalize(batch["elite/appearance"]).T
        if "status" in batch and "elite/status" in batch:
            mask = agreeing(batch["status"], batch["elite/status"])
        told = elite["image_features"], elite["text_features"]
        text = self.reference.text(
            params["reference"], public["image_features"], told, appearance=appearance, mask=mask, rng=rng
        )
        rows = None if mask is None else mask.any(1)  # nobody in the batch may speak for the others
        if "valid" in batch:
            rows = batch["valid"] if rows is None else rows & batch["valid"]
        return self.reference.distance(public["text_features"], text, rows)


def halves(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The public half of a batch, and the elite half without its prefix."""
    public = {name: value for name, value in batch.items() if not name.startswith(ELITE)}
    return public, {name.removeprefix(ELITE): value for name, value in batch.items() if name.startswith(ELITE)}
