"""Levels of a visit: how the features of eyes and visits are made of those of views, and which texts they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.levels import LEVELS as TRIPARTITE
from fundax.encoders.levels import SUFFIX, image_levels, initial_heads, project, text_levels
from fundax.encoders.view_pool import ViewAttention, Views, placed, pooled
from fundax.types import Batch, Params

SIDES = ("left", "right")


class Term(NamedTuple):
    """Pairs of an image-text loss: unit features f32 [M E], the factor of the logits, and bool or i32 [M] about the pairs."""

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    there: jax.Array  # whether the pair has an image and a text
    text_at: jax.Array  # the row of `texts`, -1 without a text
    row: jax.Array  # the visit, -1 without one


def of_eyes(views: Views) -> jax.Array:
    """The views of the left and of the right eye, bool [2 B V]."""
    return views.present[None] & (views.eye[None] == jnp.arange(len(SIDES))[:, None, None])


class Levels(Protocol):
    """How features of eyes and visits are made of views, and how texts are compared with them."""

    def init(self, rng: jax.Array, image: int, text: int, embed: int) -> Params:
        """Parameters `project` and `log_scale`, and others, for encoders of these widths."""
        ...

    def view(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Features f32 [N E] of the image encoder's outputs [N D]."""
        ...

    def image(self, params: Params, views: Views) -> dict[str, jax.Array]:
        """Unit features of eyes and visits."""
        ...

    def text(self, params: Params, hidden: jax.Array) -> dict[str, jax.Array]:
        """Unit features f32 [T E] of the text encoder's outputs [T D]: text_features, and more for levels with heads."""
        ...

    def terms(self, params: Params, out: Mapping[str, jax.Array], views: Views, batch: Batch) -> dict[str, Term]:
        """The image-text terms by name."""
        ...


@dataclass(frozen=True)
class WeightedViews:
    """One projection of images and one of texts for all levels; eyes and visits are weighted means of views.

    A visit of one view has exactly that view's feature. heads, hidden: of encoders.ViewAttention.
    """

    modalities: int
    heads: int = 4
    hidden: int = 64
    init_logit_scale: float = math.log(1 / 0.07)

    @property
    def pool(self) -> ViewAttention:
        """The module that scores views."""
        return ViewAttention(self.modalities, self.hidden, self.heads)

    def init(self, rng: jax.Array, image: int, text: int, embed: int) -> Params:
        """CLIP's projections, the pool's parameters, and log_scale for texts and between images."""
        keys, normal = jax.random.split(rng, 3), nn.initializers.normal
        blank = jnp.zeros((1, 1), jnp.int32)
        views = Views(jnp.zeros((1, 1, embed)), blank > 0, blank, blank)
        scale = jnp.asarray(self.init_logit_scale, jnp.float32)
        return {
            "project": {
                "image": {"kernel": normal(image**-0.5)(keys[0], (image, embed))},
                "text": {"kernel": normal(text**-0.5)(keys[1], (text, embed))},
            },
            "pool": self.pool.init(keys[2], views)["params"],
            "log_scale": {"text": scale, "image": scale},
        }

    def view(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Project images as CLIP does."""
        return project(hidden, params["project"]["image"])

    def image(self, params: Params, views: Views) -> dict[str, jax.Array]:
        """image_features f32 [B E] of the visit, and eye_features f32 [B 2 E]."""
        masks = jnp.concatenate([views.present[None], of_eyes(views)])
        found = l2_normalize(pooled(views.features, apply(self.pool, params["pool"], views), masks))
        return {"image_features": found[0], "eye_features": jnp.moveaxis(found[1:], 0, 1)}

    def modality(self, params: Params, views: Views) -> tuple[jax.Array, jax.Array]:
        """Unit features f32 [M 2 B E] of the views of each modality of each eye, and whether there are any, bool [M 2 B]."""
        kinds = jnp.arange(self.modalities)[:, None, None, None]
        masks = of_eyes(views)[None] & (views.modality[None, None] == kinds)
        scores = apply(self.pool, params["pool"], views)
        return l2_normalize(pooled(views.features, scores, masks)), masks.any(-1)

    def text(self, params: Params, hidden: jax.Array) -> dict[str, jax.Array]:
        """Project texts as CLIP does."""
        return {"text_features": l2_normalize(project(hidden, params["project"]["text"]))}

    def terms(self, params: Params, out: Mapping[str, jax.Array], views: Views, batch: Batch) -> dict[str, Term]:
        """The terms visit, eye and view."""
        text, scale, rows = out["text_features"], jnp.exp(params["log_scale"]["text"]), jnp.arange(len(views.present))
        eye_row = jnp.repeat(rows, len(SIDES))
        eyes = of_eyes(views).any(-1).T.reshape(-1)

        def term(features: jax.Array, at: jax.Array, there: jax.Array, row: jax.Array) -> Term:
            return Term(features, placed(text, _beyond(at, text)), scale, there & (at >= 0), at, row)

        return {
            "visit": term(out["image_features"], batch["text_at"], views.present.any(1), rows),
            "eye": term(flat(out["eye_features"]), batch["eye_text_at"].reshape(-1), eyes, eye_row),
            "view": term(out["view_features"], batch["view_text_at"], batch["row"] >= 0, batch["row"]),
        }


@dataclass(frozen=True)
class BothEyes:
    """RET-CLIP's levels: the patient, whose feature is mapped from both eyes, and the left and the right eye.

    An eye is its first view. The parameters are those of objectives.RetCLIP, and so are the numbers, to the last bit.
    """

    init_logit_scale: float = math.log(90)

    def init(self, rng: jax.Array, image: int, text: int, embed: int) -> Params:
        """Initial parameters as those of RetCLIP."""
        scale = jnp.asarray(self.init_logit_scale, jnp.float32)
        return {"project": initial_heads(rng, image, text, embed), "log_scale": dict.fromkeys(TRIPARTITE, scale)}

    def view(self, params: Params, hidden: jax.Array) -> jax.Array:
        """The projection of the ViT, before the mapping of a level."""
        return hidden.astype(jnp.float32) @ params["project"]["image"]["kernel"]

    def image(self, params: Params, views: Views) -> dict[str, jax.Array]:
        """Unit features image_features, left_features and right_features f32 [B E]."""
        sides = of_eyes(views)
        eyes = [jnp.take_along_axis(views.features, side.argmax(1)[:, None, None], 1)[:, 0] for side in sides]
        raw = image_levels(params["project"], eyes[0], eyes[1], None, tuple(side.any(1) for side in sides))
        return {name.replace("raw", "features"): l2_normalize(x) for name, x in raw.items()}

    def text(self, params: Params, hidden: jax.Array) -> dict[str, jax.Array]:
        """Unit features text_features, text_features_left and text_features_right."""
        raw = text_levels(params["project"], hidden)
        return {name.replace("raw", "features"): l2_normalize(x) for name, x in raw.items()}

    def terms(self, params: Params, out: Mapping[str, jax.Array], views: Views, batch: Batch) -> dict[str, Term]:
        """patient, left and right. An eye takes its own text, or else that of the visit, as in RET-CLIP."""
        rows, found = jnp.arange(len(views.present)), {}
        for level in TRIPARTITE:
            own = batch["text_at"] if level == "patient" else batch["eye_text_at"][:, SIDES.index(level)]
            at = jnp.where(own >= 0, own, batch["text_at"])
            seen = views.present if level == "patient" else views.present & (views.eye == SIDES.index(level))
            image = out["image_features" if level == "patient" else f"{level}_features"]
            text = placed(out[f"text_features{SUFFIX[level]}"], _beyond(at, batch["texts"]))
            scale = jnp.exp(params["log_scale"][level])
            found[level] = Term(image, text, scale, seen.any(1) & (at >= 0), at, rows)
        return found


def _beyond(at: jax.Array, x: jax.Array) -> jax.Array:
    """Row numbers with a number beyond the rows of `x` in place of -1, which would be the last row."""
    return jnp.where(at < 0, len(x), at)


def flat(x: jax.Array) -> jax.Array:
    """Reshape [B 2 E] to [2B E]."""
    return x.reshape(-1, x.shape[-1])
