"""Contrastive pretraining on visits: any subset of eyes and modalities, with texts of views, eyes and the visit.

The images of a batch are packed (data_pipelines/pipeline/packing.py); missing views and missing texts drop their terms. Ideas
come from RET-CLIP (arXiv:2405.14137: levels of a patient), EyeCLIP (arXiv:2409.06644: contrast between the modalities of an
eye) and MultiMAE (arXiv:2204.01678: reconstruction across modalities). See docs/methods/visits.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fundax.encoders.autoencoder import MaskedDecoder, pixel_loss
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.pixels import CLIP_MEAN, CLIP_STD, RGB, normalize
from fundax.encoders.view_pool import Views, placed, places
from fundax.encoders.vit import ViT, kept_patches
from fundax.losses import contrastive
from fundax.losses.contrastive import accuracy, contrast, contrast_pairs
from fundax.losses.relations import Repeats, equal_rows, relations
from fundax.objectives import clip as image_text
from fundax.objectives.visit_levels import SIDES, TRIPARTITE, WeightedViews, flat
from fundax.types import Batch, Extra, Metrics, Params, UserError


@dataclass(frozen=True)
class CrossReconstruction:
    """Masked reconstruction across modalities: hidden patches of a view are predicted from its visible patches and those of
    another modality of the same eye (as MultiMAE, arXiv:2204.01678, on views instead of aligned maps).

    ratio: part of the patches that is masked. weight: of the pixel loss in the total.
    """

    decoder: MaskedDecoder
    ratio: float = 0.75
    weight: float = 1.0


@dataclass(frozen=True)
class Visit:
    """Image-text terms at every level that has texts, and image-image terms between the modalities of an eye.

    loss = sum of weights[name] * term, where a term is the mean over its pairs, and 0 without any. RET-CLIP is
    Visit(levels=BothEyes(), weights={...: 1}); CLIP is a Visit whose visits have one view and a text of the visit.

    modalities: names, in the order of `view_modality`.
    image: the ViT; with image.kinds = M every modality has its own patch embedding. separate: one ViT for each modality; all
        of them see every image, so the step costs M times as much.
    mean, std: mean and deviation of RGB, one row or one for each modality.
    most: places V of a visit. images, texts: slots for each visit of a batch (data_pipelines.pipeline.packing.Pack).
    weights: of the terms of `levels` by name; `images` is the contrast between modalities, 0 leaves it out.
    repeats: what views and texts of one patient, and equal texts, are to each other (losses/relations.py).
    """

    image: ViT
    text: TextTransformer | BERT
    embed: int
    modalities: tuple[str, ...]
    levels: Any = None
    context: int = 77
    mean: tuple[RGB, ...] = (CLIP_MEAN,)
    std: tuple[RGB, ...] = (CLIP_STD,)
    separate: bool = False
    most: int = 8
    images: int = 4
    texts: int = 1
    weights: tuple[tuple[str, float], ...] = (("visit", 1.0), ("eye", 1.0), ("view", 1.0), ("images", 1.0))
    contrast: Callable[..., jax.Array] = contrastive.softmax_contrastive
    negatives: Literal["global", "plain", "ring"] = "global"
    repeats: Repeats = "mask"
    reconstruction: CrossReconstruction | None = None

    def __post_init__(self) -> None:
        if self.levels is None:
            object.__setattr__(self, "levels", WeightedViews(len(self.modalities)))
        if self.image.kinds not in (1, len(self.modalities)) or len(self.mean) not in (1, len(self.modalities)):
            raise UserError(
                f"Visit: image.kinds and the rows of mean are 1 or {len(self.modalities)}, one per modality"
            )
        if len(self.mean) != len(self.std):
            raise UserError("Visit: mean and std have the same number of rows")
        if self.separate and (self.image.kinds > 1 or self.reconstruction is not None):
            raise UserError("Visit: separate encoders have image.kinds=1 and no reconstruction")
        known = {"visit", "eye", "view", "images"} if isinstance(self.levels, WeightedViews) else set(TRIPARTITE)
        if unknown := {name for name, _ in self.weights} - known:
            raise UserError(f"Visit: weights of {', '.join(sorted(unknown))}; its terms are {', '.join(sorted(known))}")

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """images u8 [N h w 3], row, slot, view_modality, view_eye, view_text_at i32 [N]; texts i32 [T L]; text_at, patient
        i32 [B], eye_text_at i32 [B 2]. N and T are `images` and `texts` times B.
        """
        side, count = self.image.image_size, batch * self.images
        of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
        slots = ("row", "slot", "view_modality", "view_eye", "view_text_at")
        return {
            "images": of(jnp.uint8, count, side, side, 3),
            **{name: of(jnp.int32, count) for name in slots},
            "texts": of(jnp.int32, batch * self.texts, self.context),
            "text_at": of(jnp.int32, batch),
            "eye_text_at": of(jnp.int32, batch, len(SIDES)),
            "patient": of(jnp.int32, batch),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters: image, text, those of `levels`, and decoder with a reconstruction; no extra state."""
        keys = jax.random.split(rng, 4)
        first = batch["view_modality"][:1]
        pixels = self._normalized(batch["images"][:1], first)
        towers = {name: self.image.init(jax.random.fold_in(keys[0], k), pixels, kind=first)["params"]
                  for k, name in enumerate(self.modalities if self.separate else ("",))}  # fmt: skip
        params: Params = {
            "image": towers if self.separate else towers[""],
            "text": self.text.init(keys[1], batch["texts"][:1])["params"],
            **self.levels.init(keys[2], self.image.width, self.text.width, self.embed),
        }
        if self.reconstruction is not None:
            tokens, none = jnp.zeros((1, 2, self.image.width)), jnp.zeros((1, 1), jnp.int32)
            params["decoder"] = self.reconstruction.decoder.init(keys[3], tokens, none, tokens, none[0] > 0)["params"]
        return params, {}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Unit features f32 for what is in the batch, *_features; image_features [B E] are those of the visits.

        Visits: packed (`images` or `view_raw` f32 [N E], with row, slot, view_modality, view_eye and valid), in places
        (`views` u8 [B V h w 3], view_present, view_modality, view_eye), or one `image` u8 [B h w 3] of each, with `modality`
        and `eye` where they are known. This gives view_raw and view_features [N E], and the features of `levels`.
        Texts: `text` i32 [B L] or `texts` i32 [T L] gives text_features. Always logit_scale.
        """
        out: dict[str, jax.Array] = {}
        batch = in_slots(batch)
        if "images" in batch or "view_raw" in batch:
            raw = batch["view_raw"] if "view_raw" in batch else self._view_raw(params, batch, None)
            views = self._views(raw, batch)
            out |= {"view_raw": raw, "view_features": l2_normalize(raw), **self.levels.image(params, views)}
        if (ids := batch.get("text", batch.get("texts"))) is not None:
            out |= self.levels.text(params, apply(self.text, params["text"], ids)["pooled"])
        scales = params["log_scale"]
        return out | {"logit_scale": jnp.exp(scales.get("text", scales.get("patient")))}

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """view_raw f32 [N E] and text_hidden [T D], before anything that joins the views of a visit.

        Raises UserError with a reconstruction, which needs the views of a visit together.
        """
        if self.reconstruction is not None:
            raise UserError("the reconstruction across modalities needs whole batches: leave out --accumulate")
        return self._encoded(params, batch, rng)

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features, and of each term its value and its number of pairs."""
        weights, metrics = dict(self.weights), {}
        views = self._views(features["view_raw"], batch)
        out = {"view_features": l2_normalize(features["view_raw"]), **self.levels.image(params, views)}
        out |= self.levels.text(params, features["text_hidden"])
        owner, texts = self._owners(batch), equal_rows(batch["texts"])
        total = jnp.zeros((), jnp.float32)
        for name, term in self.levels.terms(params, out, views, batch).items():
            if not weights.get(name):
                continue
            numbers = {"text": _at(texts, term.text_at), "patient": _at(owner, term.row)}
            rows = relations(self.repeats, mask=term.there, **numbers)
            options: dict[str, Any] = {"group": rows.group, "related": rows.related, "negatives": self.negatives}
            loss = contrast(self.contrast, term.image, term.text, (term.scale,), mask=term.there, **options)
            total = total + weights[name] * loss
            if not metrics:  # the first level
                to_text, to_image = accuracy(term.image, term.text, term.there, **options)
                metrics = {
                    "image_to_text": to_text,
                    "text_to_image": to_image,
                    "logit_scale": term.scale,
                    **rows.counts,
                }
            metrics |= {f"loss_{name}": loss, f"pairs_{name}": term.there.sum().astype(jnp.float32)}
        if weights.get("images"):
            loss, count = self._between_images(params, views, owner)
            metrics |= {"loss_images": loss, "pairs_images": count}
            total = total + weights["images"] * loss
        return total, {"loss": total, **metrics}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """The weighted sum of the terms."""
        loss, metrics = self.compare(params, self._encoded(params, batch, rng), batch)
        if self.reconstruction is not None:
            metrics["loss_reconstruction"] = self._rebuilt(params, batch, jax.random.fold_in(rng, 2))
            loss = loss + self.reconstruction.weight * metrics["loss_reconstruction"]
        return loss, (extra, metrics | {"loss": loss})

    def _encoded(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(rng)
        rngs = {"dropout": keys[1]} if getattr(self.text, "dropout", 0) else None
        hidden = apply(self.text, params["text"], batch["texts"], rngs=rngs)["pooled"]
        return {"view_raw": self._view_raw(params, batch, keys[0]), "text_hidden": hidden}

    def _view_raw(self, params: Params, batch: Batch, rng: jax.Array | None) -> jax.Array:
        """Features f32 [N E] of the images, before normalising."""
        kind, rngs = batch["view_modality"], {"mask": rng} if rng is not None and self.image.mask_ratio else None
        pixels = self._normalized(batch["images"], kind)
        if not self.separate:
            return self.levels.view(params, apply(self.image, params["image"], pixels, kind=kind, rngs=rngs)["pooled"])
        hidden = jnp.zeros((), self.image.dtype)
        for k, name in enumerate(self.modalities):
            own = apply(self.image, params["image"][name], pixels, rngs=rngs)["pooled"]
            hidden = jnp.where((kind == k)[:, None], own, hidden)
        return self.levels.view(params, hidden)

    def _normalized(self, image: Any, modality: Any) -> jax.Array:
        return normalize(image, self.mean, self.std, self.image.dtype, modality)

    def _views(self, raw: jax.Array, batch: Batch) -> Views:
        rows = len(next(batch[name] for name in ("text_at", "valid", "patient") if name in batch))
        at = places(batch["row"], batch["slot"], rows, self.most)
        about = (placed(batch[name], at) for name in ("view_modality", "view_eye"))
        return Views(placed(raw, at), at < len(raw), *about)

    def _owners(self, batch: Batch) -> jax.Array:
        """Numbers i32 [B] of the patients; a visit of an unknown patient has a number of its own."""
        rows = jnp.arange(len(batch["text_at"]), dtype=jnp.int32)
        own = jnp.int32(2**31 - 1) - rows
        return jnp.where(batch["patient"] < 0, own, batch["patient"]) if "patient" in batch else own

    def _between_images(self, params: Params, views: Views, owner: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean loss over the pairs of modalities of an eye, and the number of these pairs."""
        features, there = self.levels.modality(params, views)  # [M 2 B E], [M 2 B]
        pairs = list(itertools.combinations(range(len(self.modalities)), 2))
        if not pairs:
            return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        masks = [(there[a] & there[b]).reshape(-1) for a, b in pairs]
        rows = relations(self.repeats, patient=jnp.tile(owner, len(SIDES)))
        first, second = ([flat(features[pair[k]]) for pair in pairs] for k in range(2))
        scales = [jnp.exp(params["log_scale"]["image"])] * len(pairs)
        options: dict[str, Any] = {"related": rows.related, "negatives": self.negatives}
        losses = contrast_pairs(self.contrast, first, second, scales, masks=masks, **options)
        counts = [mask.sum().astype(jnp.float32) for mask in masks]
        total: jax.Array = sum(counts, start=jnp.zeros((), jnp.float32))
        loss: jax.Array = sum((n * one for n, one in zip(counts, losses, strict=True)), start=jnp.zeros(()))
        return loss / jnp.maximum(total, 1), total

    def _rebuilt(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        """Mean pixel loss of the hidden patches of all views."""
        branch, keys = self.reconstruction, jax.random.split(rng)
        assert branch is not None
        kind, row = batch["view_modality"], batch["row"]
        pixels = self._normalized(batch["images"], kind)
        noise = jax.random.uniform(keys[0], (len(pixels), self.image.patches))
        tower = self.image.clone(mask_ratio=branch.ratio)
        tokens, kept = (
            apply(tower, params["image"], pixels, noise, kind=kind)["tokens"],
            kept_patches(noise, branch.ratio),
        )
        other, found = self._partners(batch, keys[1])
        predicted = apply(branch.decoder, params["decoder"], tokens, kept, placed(tokens, other), found)
        error = pixel_loss(predicted, pixels, kept, self.image.patch)
        there = row >= 0
        return jnp.where(there, error, 0.0).sum() / jnp.maximum(there.sum(), 1)

    def _partners(self, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The slot i32 [N] of a random other modality of the same eye, and whether there is one."""
        rows = len(batch["text_at"])
        at = places(batch["row"], batch["slot"], rows, self.most)
        kind, eye = (placed(batch[name], at) for name in ("view_modality", "view_eye"))
        fits = (eye[:, :, None] == eye[:, None]) & (eye[:, :, None] < len(SIDES)) & (kind[:, :, None] != kind[:, None])
        there = at < len(batch["row"])
        fits = fits & there[:, :, None] & there[:, None]  # [B V V]
        chosen = jnp.where(fits, jax.random.uniform(rng, fits.shape), -1.0).argmax(-1)
        partner = jnp.where(fits.any(-1), jnp.take_along_axis(at, chosen, 1), len(batch["row"]))
        row, slot = jnp.maximum(batch["row"], 0), jnp.minimum(batch["slot"], self.most - 1)
        found = jnp.where(batch["row"] >= 0, partner[row, slot], len(batch["row"]))
        return found, found < len(batch["row"])


def in_slots(batch: Batch) -> dict[str, Any]:
    """A batch of `views` in places, or of one `image` for each visit, as a packed one; others are returned as they are."""
    given = dict(batch)
    if "views" in given:
        views, present = given.pop("views"), jnp.asarray(given.pop("view_present"))
        rows, most = present.shape
        number = jnp.broadcast_to(jnp.arange(rows)[:, None], present.shape)
        given |= {name: jnp.asarray(given[name]).reshape(-1) for name in ("view_modality", "view_eye")}
        given |= {"images": views.reshape(rows * most, *views.shape[2:]), "valid": present.any(1)}
        given |= {"row": jnp.where(present, number, -1).reshape(-1), "slot": jnp.tile(jnp.arange(most), rows)}
    elif "image" in given:
        image = given.pop("image")
        rows, zeros = jnp.arange(len(image)), jnp.zeros(len(image), jnp.int32)
        given |= {"images": image, "row": rows, "slot": zeros, "valid": jnp.ones(len(image), bool)}
        given |= {"view_modality": given.get("modality", zeros), "view_eye": given.get("eye", zeros + len(SIDES))}
    return given


def _at(numbers: jax.Array, at: jax.Array) -> jax.Array:
    """numbers[at], and -1 where `at` is negative."""
    return jnp.where(at < 0, -1, numbers[at])


@dataclass(frozen=True)
class Terms:
    """The arguments of a config for the terms of the loss of visits.

    Args:
        visit_weight: Weight of the term between visits and their reports; 0 leaves it out.
        eye_weight: Weight of the term between eyes and their reports; 0 leaves it out.
        view_weight: Weight of the term between single views and their reports; 0 leaves it out.
        image_weight: Weight of the contrast between the modalities of an eye; 0 leaves it out.
        reconstruction_weight: Weight of the masked reconstruction across modalities; 0 leaves it out.
        repeats: Pairs of one patient or with equal texts: no negatives (mask), positives if texts are equal (share), or negatives.
    """

    visit_weight: float = 1.0
    eye_weight: float = 1.0
    view_weight: float = 1.0
    image_weight: float = 1.0
    reconstruction_weight: float = 0.0
    repeats: Repeats = "mask"

    def fields(self) -> dict[str, Any]:
        """The arguments of `visit` that these settings decide."""
        each = {
            "visit": self.visit_weight,
            "eye": self.eye_weight,
            "view": self.view_weight,
            "images": self.image_weight,
        }
        return {"weights": tuple(each.items()), "reconstruction": self.reconstruction_weight, "repeats": self.repeats}

    def levels(self) -> tuple[str, ...]:
        """The levels whose texts are needed."""
        each = {"visit": self.visit_weight, "eye": self.eye_weight, "view": self.view_weight}
        return tuple(name for name, weight in each.items() if weight)


def visit(
    size: str, modalities: tuple[str, ...], *, vocab: int, context: int, reconstruction: float = 0.0, **fields: Any
) -> Visit:
    """A Visit with the encoders of objectives.clip.clip of that size, and a patch embedding for each modality.

    reconstruction: weight of the reconstruction across modalities. `fields` named scan, remat, dtype, attention and image_size
    go to the encoders, others to Visit.
    """
    both = {name: fields.pop(name) for name in ("scan", "remat", "dtype", "attention", "image_size") if name in fields}
    towers = image_text.clip(size, vocab=vocab, context=context, **both)
    image = towers.image.clone(kinds=1 if fields.get("separate") else len(modalities))
    if reconstruction:
        decoder = MaskedDecoder(image.patch, image.patches, image.width // 2, 2, max(image.heads // 2, 1), image.remat)
        fields["reconstruction"] = CrossReconstruction(decoder, weight=reconstruction)
    return Visit(image, towers.text, towers.embed, modalities, context=context, **fields)
