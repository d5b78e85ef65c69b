"""A ViT and a decoder of maps as one model: what segmentation and landmarks share.

Pure functions of an objective that has the fields of `Maps`. Parameters are "image/..." and "decoder/..."; the decoder's
batch statistics are carried in `extra`, of the whole global batch on any mesh.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.unetr import UNETR, Linear
from fundax.encoders.vit import ViT
from fundax.encoders.vit_outputs import chosen_layers
from fundax.errors import UserError
from fundax.types import Extra, Params


class Maps(Protocol):
    """image: the encoder; decoder: reads `blocks` of it; `frozen`: the encoder takes no part in learning.

    mean, std: of RGB in [0, 1], by which images u8 are normalised.
    """

    @property
    def image(self) -> ViT: ...
    @property
    def decoder(self) -> UNETR | Linear: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    @property
    def frozen(self) -> bool: ...


def init(model: Maps, rng: jax.Array) -> tuple[Params, Extra]:
    """Fresh parameters and, for a decoder that has them, batch statistics. Raises UserError where the parts do not fit."""
    check(model)
    first, second = jax.random.split(rng)
    side = model.image.image_size
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    params = {"image": model.image.init(first, image)["params"]}
    tokens = (jnp.zeros((1, (side // model.image.patch) ** 2, model.image.width)),) * len(model.blocks)
    decoder = dict(model.decoder.init(second, tokens, image))
    return params | {"decoder": decoder.pop("params")}, decoder


def check(model: Maps) -> None:
    """Raises UserError for patches that differ, an image the patches do not fill, or a number of blocks."""
    if model.image.patch != model.decoder.patch:
        raise UserError(f"the encoder has patches of {model.image.patch}, the decoder of {model.decoder.patch}")
    if model.image.image_size % model.image.patch:
        raise UserError(f"patches of {model.image.patch} do not fill an image of {model.image.image_size} pixels")
    if wrong := [block for block in model.blocks if not 0 <= block < model.image.depth]:
        raise UserError(f"the decoder reads block {wrong[0]}, the encoder has 0 to {model.image.depth - 1}")


def logits(model: Maps, params: Params, extra: Extra, image: Any) -> jax.Array:
    """f32 [B h w K] of images u8 (or normalised, floating) [B h w 3], by the running statistics, nothing dropped."""
    image = layers.normalize(image, model.mean, model.std, model.image.dtype)
    tokens = chosen_layers(model.image, params["image"], image, model.blocks)
    return model.decoder.apply({"params": params["decoder"], **extra}, tokens, image)  # type: ignore[return-value]


def training_logits(model: Maps, params: Params, extra: Extra, image: Any, rng: jax.Array) -> tuple[jax.Array, Extra]:
    """As `logits`, by the statistics of the batch and with dropout; and the statistics moved on.

    A frozen encoder runs as in evaluation, and no gradient reaches it.
    """
    image = layers.normalize(image, model.mean, model.std, model.image.dtype)
    drop, path = jax.random.split(rng)
    rngs = None if model.frozen or not model.image.drop_path else {"drop_path": path}
    tokens = chosen_layers(model.image, params["image"], image, model.blocks, rngs)
    if model.frozen:
        tokens = jax.lax.stop_gradient(tokens)
    variables = {"params": params["decoder"], **extra}
    out, moved = model.decoder.apply(
        variables, tokens, image, train=True, mutable=["batch_stats"], rngs={"dropout": drop}
    )
    return out, dict(moved)  # type: ignore[return-value]
