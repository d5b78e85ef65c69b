"""Where a ViT looks: attention as maps over the image, moved to a photograph's own pixels, and how much lies in a mask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders import layers
from fundax.encoders.vit import ViT
from fundax.encoders.vit_outputs import attention_maps, rollout
from fundax.errors import UserError
from fundax.types import Extra, Params


def tower_of(objective: Any, params: Params, extra: Extra) -> tuple[ViT, Params]:
    """The ViT that encodes images, and its parameters: of a self-distilled model the teacher's.

    Raises UserError where the image encoder is no ViT, or has no class token whose attention could be shown.
    """
    tower, name = getattr(objective, "image", None), type(objective).__name__
    if not isinstance(tower, ViT):
        what = f"its image encoder is a {type(tower).__name__}" if tower is not None else "it has no image encoder"
        raise UserError(f"attention is that of a ViT; this run holds {name}, and {what}")
    if not tower.class_token:
        raise UserError(
            f"this {name}'s ViT has no class token (it pools by {tower.pool}), whose attention is shown here"
        )
    owner = extra.get("teacher", params.get("model", params))  # "model": behind an adapter
    weights = dict(owner["image"])
    if tower.mask_token:  # a teacher has none, and never uses it
        weights.setdefault("mask_token", jnp.zeros(tower.width))
    return tower.clone(mask_ratio=0.0, drop_path=0.0), weights


def normalized(objective: Any, image: Any, row: int = 0) -> jax.Array:
    """u8 [B h w 3] as the objective's image encoder takes it; `row` of its means where it has one per modality."""
    holder = getattr(objective, "tower", getattr(objective, "model", objective))  # below a decoder or an adapter
    mean, std = holder.mean, holder.std
    if isinstance(mean[0], tuple | list):
        row = row if len(mean) > 1 else 0
        mean, std = mean[row], std[row]
    return layers.normalize(image, mean, std, objective.image.dtype)


def class_attention(tower: ViT, params: Params, image: jax.Array) -> dict[str, jax.Array]:
    """What the class token looks at, as maps over the grid of patches, each summing to at most 1.

    image [B h w 3], normalised. heads f32 [B H r c], the last block's attention (arXiv:2104.14294, figure 1); mean f32
    [B r c], over heads; rollout f32 [B r c] (arXiv:2005.00928), through all blocks. What is missing to 1 is the class
    token's attention to itself.
    """
    maps = attention_maps(tower, params, image, last=tower.depth)
    rows, columns = image.shape[1] // tower.patch, image.shape[2] // tower.patch
    heads = maps[-1][:, :, 0, 1:].reshape(len(image), tower.heads, rows, columns)
    return {
        "heads": heads,
        "mean": heads.mean(1),
        "rollout": rollout(maps)[:, 0, 1:].reshape(len(image), rows, columns),
    }


def top_mass(attention: np.ndarray, share: float) -> np.ndarray:
    """bool, of the map's shape [r c]: the fewest patches that hold `share` of the map's sum (DINO's figure: 0.6)."""
    flat = attention.ravel()
    order = np.argsort(-flat, kind="stable")
    before = np.cumsum(flat[order]) - flat[order]
    kept = np.zeros(flat.size, bool)
    kept[order[before < share * flat.sum()]] = True
    return kept.reshape(attention.shape)


def over_photograph(
    attention: np.ndarray, height: int, width: int, resize: str = "squash", smooth: bool = True
) -> np.ndarray:
    """A map f32 [r c] on the pixels f32 [height width] of the photograph that the model saw.

    resize: how the photograph was made square: squash, shortest (its middle was seen: 0 outside) or longest (padded).
    smooth: bilinear, else each patch keeps one value.
    """
    side = {"squash": None, "shortest": min(height, width), "longest": max(height, width)}[resize]
    if side is None:
        return _resized(attention, height, width, smooth)
    square = _resized(attention, side, side, smooth)
    if resize == "longest":
        top, left = (side - height) // 2, (side - width) // 2
        return square[top : top + height, left : left + width]
    out = np.zeros((height, width), np.float32)
    top, left = (height - side) // 2, (width - side) // 2
    out[top : top + side, left : left + side] = square
    return out


def inside(attention: np.ndarray, mask: np.ndarray, field: np.ndarray | None = None) -> tuple[float, float]:
    """(the share of attention, the share of area) that lies in a mask; both of what lies in `field`, where given.

    attention f32 [h w]; mask, field bool [h w]. Raises UserError where the field is empty or holds no attention.
    """
    field = np.ones_like(mask) if field is None else field
    total, area = float(attention[field].sum()), int(field.sum())
    if total <= 0 or not area:
        raise UserError("no attention lies in the field of view")
    both = mask & field
    return float(attention[both].sum()) / total, int(both.sum()) / area


def _resized(attention: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.asarray(attention, np.float32)).resize((width, height), how))
