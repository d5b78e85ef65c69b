"""The encoder that a decoder is put on: of a run, of another program's checkpoint, or a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders.backbone import tower_of
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.vit import SIZES, ViT, dino_vit
from fundax.interop import encoder
from fundax.interop.load import is_run, read_objective
from fundax.params import unstack_blocks
from fundax.runtime.checkpoint import load_params
from fundax.types import Params, UserError

# encoders for small machines: patch, width, depth, heads
SMALL = {"mini": (8, 64, 4, 2), "small": (8, 128, 6, 4), "mini/16": (16, 96, 4, 3), "smoke": (8, 16, 4, 1)}


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Opened:
    """tower: at the image size asked for; mean, std: of its images; fill: a step of Recipe.init_from."""

    tower: ViT
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: Callable[[Params], Params] | None = None

    @property
    def init_from(self) -> tuple[Callable[[Params], Params], ...]:
        """For the recipe."""
        return () if self.fill is None else (self.fill,)


def new_encoder(name: str, image_size: int, **fields: Any) -> Opened:
    """Fresh weights, of a name of SMALL or of encoders.vit.SIZES; `fields` are ViT's. Raises UserError naming them."""
    if name not in SMALL:
        if name not in SIZES:
            raise UserError(f"encoder is {name!r}; expected one of {', '.join((*SMALL, *SIZES))}")
        return Opened(dino_vit(name, **fields).clone(image_size=image_size), *IMAGENET)
    patch, width, depth, heads = SMALL[name]
    sizes: dict[str, Any] = {"image_size": image_size, "patch": patch, "width": width, "depth": depth, "heads": heads}
    sizes["scan"] = name == "smoke"  # quick to compile
    return Opened(dino_vit("Ti/16", **fields).clone(**sizes), *IMAGENET)


def open_encoder(
    path: str | Path,
    image_size: int,
    moments: Any = None,
    row: int = 0,
    checkpoint: int | str = "latest",
    **fields: Any,
) -> Opened:
    """The image ViT of a run or an import, or of a VisionFM, DINO, iBOT, timm or RETFound checkpoint file.

    Of a self-distilled pretraining it is the teacher's. Positions are moved to `image_size` by VisionFM's rule. moments:
    mean and deviation of a file's images (one row each), ImageNet's where None; row: which of a run's, where it has
    several. Of a run with a decoder that fits, `fill` brings the decoder too; `fields` are ViT's.
    Raises UserError for what holds no ViT with a class token.
    """
    if is_run(path):
        objective, held = read_objective(path), None
    else:
        found = {} if moments is None else dict(zip(("mean", "std"), moments, strict=True))
        objective, params = encoder.to_fundax(encoder.load_encoder(path), str(path), **found)
        held = (params, {})
    tower = getattr(objective, "image", None)
    if not isinstance(tower, ViT):
        raise UserError(f"{path} holds {type(objective).__name__}, whose images no ViT encodes; decoders read a ViT")
    sized = encoder.bare(tower).clone(image_size=image_size, mask_ratio=0.0, **fields)
    if image_size % sized.patch:
        raise UserError(f"{path} has patches of {sized.patch} pixels, which do not fill an image of {image_size}")

    def fill(fresh: Params) -> Params:
        whole, extra = held or load_params(path, checkpoint)
        image = {k: v for k, v in unstack_blocks(tower_of(objective, whole, extra)[1]).items() if k != "mask_token"}
        image["position"] = resize_positions(np.asarray(image["position"]), sized.patches + 1, pixel_centres)
        same = "decoder" in whole and _shapes(whole["decoder"]) == _shapes(fresh["decoder"])
        return fresh | {"image": image} | ({"decoder": whole["decoder"]} if same else {})

    return Opened(sized, *_moments(objective, row), fill)


def _shapes(tree: Params) -> Any:
    return jax.tree.map(np.shape, tree)


def _moments(objective: Any, row: int) -> tuple[Any, Any]:
    """One row of mean and deviation; ImageNet's where the model has none."""
    mean: Any = getattr(objective, "mean", IMAGENET[0])
    std: Any = getattr(objective, "std", IMAGENET[1])
    if not isinstance(mean[0], Sequence):
        return tuple(mean), tuple(std)
    row = row if len(mean) > 1 else 0
    return tuple(mean[row]), tuple(std[row])
