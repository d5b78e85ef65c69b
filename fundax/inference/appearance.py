"""Appearance vectors of images from a frozen model: the second similarity of KeepFIT V2's reference.

The abstract of V2 mentions local appearance, but how it is measured is not public. This implementation averages the
codes of a vector-quantised autoencoder (or the tokens of any ViT) over a 4 x 4 grid and L2-normalises the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.backbone import normalized
from fundax.encoders.vit import ViT
from fundax.interop.read import read_objective
from fundax.objectives.vector_quantize import GRID, VectorQuantize, grid_means
from fundax.runtime.checkpoint import load_params
from fundax.types import UserError

Look = Callable[[np.ndarray], np.ndarray]


def appearance_width(run: str | Path) -> int:
    """A, the length of the appearance vectors of a run. Raises UserError if the run has no suitable encoder."""
    objective = _seeing(run)
    return objective.appearance if isinstance(objective, VectorQuantize) else GRID * GRID * objective.image.width


def looking(run: str | Path, checkpoint: int | str = "") -> Look:
    """A function from images u8 [B h w 3] to appearance vectors f32 [B A].

    The run comes from configs/vector_quantize.py or contains a ViT. Images of another size are resized to the size of
    the run. The run is read at the first call. Raises UserError if the run has neither kind of encoder.
    """
    kept: list[Any] = []

    def look(images: np.ndarray) -> np.ndarray:
        if not kept:
            objective = _seeing(run)
            params, extra = jax.tree.map(jnp.asarray, load_params(run, checkpoint))
            kept.append(jax.jit(lambda x: appearance(objective, params, extra, x)))
        return np.asarray(kept[0](images))

    return look


def appearance(objective: Any, params: Any, extra: Any, images: jax.Array) -> jax.Array:
    """Encode images u8 [B h w 3] as unit vectors f32 [B A] with a frozen objective."""
    coded = isinstance(objective, VectorQuantize)
    tower: Any = objective if coded else objective.image
    side = tower.image_size
    if images.shape[1:3] != (side, side):
        shape = (len(images), side, side, 3)
        images = jnp.round(jax.image.resize(images.astype(jnp.float32), shape, "bilinear")).astype(jnp.uint8)
    if coded:
        return objective.forward(params, extra, {"image": images})["appearance"]
    pixels = normalized(objective, images)
    tokens = tower.apply({"params": params["image"]}, pixels)["tokens"][:, int(tower.class_token) :]
    fields = round(tokens.shape[1] ** 0.5)
    return grid_means(tokens.reshape(len(images), fields, fields, -1))


def _seeing(run: str | Path) -> Any:
    objective = read_objective(run)
    if isinstance(objective, VectorQuantize) or isinstance(getattr(objective, "image", None), ViT):
        return objective
    raise UserError(
        f"{run}: a {type(objective).__name__} without a ViT; expected a vector-quantised autoencoder or a ViT"
    )
