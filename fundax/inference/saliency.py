"""Saliency maps: Grad-CAM of a class, a value, a report or a text, and the similarity of patches with a text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.backbone import BackboneWithHead
from fundax.encoders.saliency import Target, grad_cam
from fundax.encoders.vit import ViT
from fundax.inference.model import Model
from fundax.objectives.adapter import Adapted
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.ensemble import member
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress
from fundax.objectives.report import Report
from fundax.types import UserError

DAYS = 365.0  # of a forecast that is explained


def saliency_maps(
    model: Model, photograph: np.ndarray, texts: Sequence[str] = (), target: str = ""
) -> dict[str, np.ndarray]:
    """Maps f32 [r c] of one photograph u8 [H W 3] by name; larger values contribute more.

    Args:
        texts: texts for an image-text model; each gives a map of similarity (`similarity: TEXT`) and a Grad-CAM.
        target: a class, value, structure or landmark of the model by name; "" is the likeliest class, the first value or
            structure, all landmarks, the report that the model writes. Without anything to explain, as for a ResNet that
            encodes images, Grad-CAM shows what adds to the length of the encoder's output.
    Raises:
        UserError: texts for a model that takes none, or a target that it does not have.
    """
    pixels = model.preprocess(photograph)[None]
    maps: dict[str, np.ndarray] = {}
    for text in texts:
        words = jnp.asarray(model.encode_text([text])[0])
        maps[f"similarity: {text}"] = model.similarity_map(photograph, text)
        maps[f"Grad-CAM: {text}"] = _cam(model, {"image": pixels, "words": words}, _text_target)
    if texts:
        return maps
    found = answer_of(model, target)
    if found is not None:
        name, compute = found
        maps[f"Grad-CAM: {name}"] = _cam(model, _batch(model, pixels), compute)
    return maps


def answer_of(model: Model, name: str = "") -> tuple[str, Target] | None:
    """The output that Grad-CAM explains: its name and its values f32 [B]; None for a ViT without a head.

    Raises UserError for a name that the model does not have.
    """
    objective = model.objective
    if isinstance(objective, Report):
        _chosen((), name)
        return "the report", _report_target
    if isinstance(objective, Forecast):
        _chosen((), name)
        return f"progression within {DAYS:g} days", _bound(_column, "logits", 0)
    if isinstance(objective, Segment | Landmark):
        names = objective.classes if isinstance(objective, Segment) else objective.names
        k = _chosen(names, name)
        if isinstance(objective, Segment):
            return names[k or 0], _bound(_mask_target, (k or 0) + int(objective.exclusive))
        return name or "all landmarks", _bound(_peak_target, k)
    if isinstance(objective, Adapted | BackboneWithHead):
        names = tuple(model.card["classes"]) or tuple(model.preprocessing.get("classes", ()))
        k = _chosen(names, name)
        if isinstance(objective, Regress):
            return names[k or 0] if names else "the value", _bound(_column, "value", k or 0)
        return name or "the likeliest class", _bound(_column, "logits", k)
    _chosen((), name)
    if isinstance(objective.image, ViT):
        return None
    return "length of the feature", _length_target


def points_at(heat: np.ndarray, mask: np.ndarray) -> tuple[bool, float]:
    """The pointing game (arXiv:1608.00507): whether the largest value of a map lies in a mask, and the mask's area share.

    heat: f32 [H W], at the photograph's resolution; mask: bool [H W]. The share is the rate of hits by chance.
    Raises UserError for a mask of another size or an empty one.
    """
    if heat.shape != mask.shape:
        raise UserError(f"a mask of {mask.shape} pixels for a photograph of {heat.shape}")
    if not mask.any():
        raise UserError("the mask is empty: there is nothing to point at")
    return bool(mask.reshape(-1)[int(heat.argmax())]), float(mask.mean())


@functools.cache  # the same object for the same numbers, so that it is compiled once
def _bound(function: Callable[..., jax.Array], *fields: Any) -> Target:
    return functools.partial(function, *fields)


def _chosen(names: Sequence[str], name: str) -> int | None:
    """The number of a name; None for ""."""
    if not name:
        return None
    if name not in names:
        raise UserError(f"--target {name!r}: the model has {', '.join(names) or 'no names to choose from'}")
    return list(names).index(name)


def _batch(model: Model, pixels: np.ndarray) -> dict[str, Any]:
    batch: dict[str, Any] = {"image": pixels}
    if isinstance(model.objective, Forecast):
        batch["days"] = np.full(len(pixels), DAYS, np.float32)
    if isinstance(model.objective, Report):
        decoder = model.objective.decoder
        ids = model.forward({"image": pixels})["report"]
        batch["text"] = np.concatenate([np.full((len(ids), 1), decoder.bos, ids.dtype), ids], axis=1)
    return batch


def _cam(model: Model, batch: dict[str, Any], target: Target) -> np.ndarray:
    row = np.full(len(batch["image"]), model.row, np.int32)
    objective, params, extra = member(model.objective, model.params, model.extra)
    found = _grad_cam(objective, target, params, extra, batch | {"modality": row})
    return np.asarray(found)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grad_cam(objective: Any, target: Target, params: Any, extra: Any, batch: Any) -> jax.Array:
    return grad_cam(objective, params, extra, batch, target)


def _text_target(objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    return objective.forward(params, extra, {"image": batch["image"]})["image_features"] @ batch["words"]


def _column(key: str, k: int | None, objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    """Column k of an output [B K]; None is the largest."""
    out = objective.forward(params, extra, batch)[key]
    return out.max(1) if k is None else out[:, k]


def _mask_target(k: int, objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    """The mean logit of a structure over the pixels that it is found in, or over all if there are none."""
    out = objective.forward(params, extra, {"image": batch["image"]})
    inside = jax.lax.stop_gradient(out["probability"][..., k] > 0.5).astype(jnp.float32)
    inside = jnp.where(inside.sum((1, 2), keepdims=True) > 0, inside, 1.0)
    return (out["logits"][..., k] * inside).sum((1, 2)) / inside.sum((1, 2))


def _peak_target(k: int | None, objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    peaks = objective.forward(params, extra, {"image": batch["image"]})["logits"].max((1, 2))
    return peaks.sum(1) if k is None else peaks[:, k]


def _report_target(objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    return objective.forward(params, extra, {"image": batch["image"], "text": batch["text"]})["log_p"]


def _length_target(objective: Any, params: Any, extra: Any, batch: Any) -> jax.Array:
    out = objective.forward(params, extra, {"image": batch["image"]})
    return jnp.square(out["visual" if "visual" in out else "image_raw"]).sum(1)
