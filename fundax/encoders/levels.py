"""Heads between encoders and a contrastive loss: CLIP's projections, and RET-CLIP's mappings and text heads of three levels."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.types import Params

LEVELS = ("patient", "left", "right")
# Names of the texts of a level: text_features_left, logit_scale_left. The patient level has CLIP's names.
SUFFIX = {"patient": "", "left": "_left", "right": "_right"}


def project(x: jax.Array, params: Params) -> jax.Array:
    """Project [B D] to [B E] in x's dtype; returns fp32."""
    y = (x @ params["kernel"].astype(x.dtype)).astype(jnp.float32)
    return y + params["bias"][None] if "bias" in params else y


def image_levels(
    project: Params,
    left: jax.Array | None,
    right: jax.Array | None,
    either: jax.Array | None = None,
    present: tuple[jax.Array, ...] | None = None,
) -> dict[str, jax.Array]:
    """left_raw, right_raw and image_raw f32 [B E], as far as they can be computed from projected features [B E].

    project: params["project"]. either: features of eyes of an unknown side. present: bool [B] for the left and the right
    eye; the patient feature uses the other eye in place of a missing one.
    """
    out = {}
    for eye, features in (("left", left), ("right", right)):
        if features is not None:
            out[f"{eye}_raw"] = features @ project[eye]["kernel"]
    left, right = (right if left is None else left), (left if right is None else right)
    if left is None or right is None:
        left = right = either
    elif present is not None:
        there = present[0][:, None], present[1][:, None]
        left, right = jnp.where(there[0], left, right), jnp.where(there[1], right, left)
    if left is not None and right is not None:
        out["image_raw"] = jnp.concatenate([left, right], axis=-1) @ project["patient"]["kernel"]
    return out


def text_levels(project: Params, pooled: jax.Array) -> dict[str, jax.Array]:
    """text_raw, text_raw_left and text_raw_right f32 [B E] of pooled texts [B D]."""
    pooled = pooled.astype(jnp.float32)
    return {f"text_raw{SUFFIX[level]}": _text_head(pooled, project[f"text_{level}"]) for level in LEVELS}


def _text_head(x: jax.Array, head: Params) -> jax.Array:
    x = jax.nn.relu(x @ head["fc1"]["kernel"] + head["fc1"]["bias"][None])
    return x @ head["fc2"]["kernel"] + head["fc2"]["bias"][None]


def initial_heads(rng: jax.Array, width: int, hidden: int, embed: int) -> Params:
    """Initial params["project"]: the projection of the ViT, and for each level a mapping and a text head."""
    keys = iter(jax.random.split(rng, 16))
    normal, torch = nn.initializers.normal, lambda inputs: layers.uniform(inputs**-0.5)

    def dense(outputs: int) -> Params:
        kernel = normal(hidden**-0.5)(next(keys), (hidden, outputs), jnp.float32)
        return {"kernel": kernel, "bias": torch(hidden)(next(keys), (outputs,))}

    heads: Params = {"image": {"kernel": normal(width**-0.5)(next(keys), (width, embed), jnp.float32)}}
    for level in LEVELS:
        inputs = 2 * embed if level == "patient" else embed
        heads[level] = {"kernel": torch(inputs)(next(keys), (inputs, embed))}
        heads[f"text_{level}"] = {"fc1": dense(hidden), "fc2": dense(embed)}
    return heads
