"""The encoder that a decoder is trained on: one of a run or an import, or a fresh one of a named size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders.backbone import Backbone
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT, dino_vit
from fundax.interop.bundle import read_json
from fundax.interop.load import is_run, read_objective
from fundax.interop.timm import stacked
from fundax.params import unstack_blocks
from fundax.runtime.checkpoint import load_params
from fundax.types import Params, UserError

# (pixels, patch, width, depth, heads) of encoders that two CPU cores can train; other sizes are those of encoders/vit.py
SMALL = {"smoke": (32, 16, 32, 1, 2), "tiny": (64, 16, 128, 4, 4), "small": (96, 16, 192, 6, 6)}


IMAGENET = ((0.485, 0.456, 0.406),), ((0.229, 0.224, 0.225),)


@dataclass(frozen=True)
class Start:
    """An encoder, its preprocessing, and the steps of Recipe.init_from and init_extra that fill it."""

    tower: Backbone
    facts: dict[str, Any]
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Any], Any], ...] = ()


def encoder(
    init: str = "",
    *,
    checkpoint: int | str = "latest",
    size: str = "tiny",
    drop_path: float = 0.0,
    dtype: str = "float32",
    **fields: Any,
) -> Start:
    """The encoder of `init`, a run or an import of other programs' weights; "" gives a fresh one of `size`.

    Of a self-distilled pretraining it is the teacher's. which: latest, best or a step. size: a name of SMALL or of
    encoders/vit.py; fields: of Tower. More blocks than there are become all there are.
    Of a ResNet the feature is what it pools, and its batch statistics come along. Raises UserError for weights that are
    no run yet, and for an encoder that is neither.
    """
    if not init:
        image = small(size) if size in SMALL else dino_vit(size, scan=True)
        mean, std = IMAGENET
        facts = {"image_size": image.image_size, "resize": "squash", "interpolation": "bicubic"}
        image = image.clone(drop_path=drop_path, dtype=dtype)
        return Start(_tower(image, mean, std, fields), facts | {"mean": mean, "std": std})
    if not is_run(init):
        raise UserError(f"{init} is no run; bring other weights in by: launch.py import {init} --workdir RUN")
    objective = read_objective(init)
    image = getattr(objective, "image", None)
    if not isinstance(image, ViT | ResNet):
        kind = "no image encoder" if image is None else f"an image encoder of type {type(image).__name__}"
        raise UserError(f"{init} holds {kind}; decoders start from a ViT or a ResNet")
    if isinstance(image, ResNet):
        image, fields = image.clone(dtype=dtype), {**fields, "feature": "pooled"}
    else:
        image = image.clone(mask_token=False, mask_ratio=0.0, drop_path=drop_path, dtype=dtype)
    facts = dict(read_json(Path(init) / "preprocessing.json"))
    holder = getattr(objective, "tower", objective)
    mean, std = (
        _rows(getattr(holder, name, None), default) for name, default in zip(("mean", "std"), IMAGENET, strict=True)
    )
    facts |= {"image_size": image.image_size}
    tower = _tower(image, mean, std, fields)
    if isinstance(image, ResNet):
        stats = lambda extra: extra | {"image": load_params(init, checkpoint)[1]["image"]}  # noqa: E731
        weights = lambda params: params | {"image": load_params(init, checkpoint)[0]["image"]}  # noqa: E731
        return Start(tower, facts, (weights,), (stats,))
    return Start(tower, facts, (_weights(init, checkpoint, image),))


def _weights(run: str, checkpoint: int | str, image: ViT) -> Callable[[Params], Params]:
    """A step of init_from: the encoder of a run, of a self-distilled one the teacher's, on the grid of `image`."""

    def fill(params: Params) -> Params:
        trained, extra = load_params(run, checkpoint)
        owner = extra.get("teacher", trained)
        tree = {name: leaf for name, leaf in unstack_blocks(owner["image"]).items() if name != "mask_token"}
        rows = image.patches + int(image.class_token)
        tree["position"] = resize_positions(
            np.asarray(tree["position"]), rows, pixel_centres, class_row=image.class_token
        )
        return params | {"image": stacked(tree, params["image"])}

    return fill


def convolutional(pixels: int = 96, width: int = 24, stages: tuple[int, ...] = (1, 1, 1, 1), **fields: Any) -> Start:
    """A fresh small ResNet, which learns from a few thousand images what a ViT of its cost does not."""
    mean, std = IMAGENET
    facts = {"image_size": pixels, "resize": "squash", "interpolation": "bicubic", "mean": mean, "std": std}
    return Start(_tower(ResNet(pixels, width, stages), mean, std, fields), facts)


def several(inits: Mapping[int, str], **fields: Any) -> Start:
    """An encoder for each number of a modality, all of one architecture; `fields` as `encoder`'s.

    Raises UserError where they differ in architecture or in how images are normalised.
    """
    starts = {number: encoder(path, **fields) for number, path in inits.items()}
    first = next(iter(starts.values()))
    for number, one in starts.items():
        if one.tower.image != first.tower.image:
            raise UserError(
                f"{inits[number]} has another encoder than {next(iter(inits.values()))}; expected one architecture"
            )

    def fill(params: Params) -> Params:
        image = dict(params["image"])
        for number, one in starts.items():
            held = {"image": image[f"m{number}"]}
            for step in one.init_from:
                held = step(held)
            image[f"m{number}"] = held["image"]
        return params | {"image": image}

    one = first.tower
    tower = Backbone(one.image, one.mean, one.std, one.feature, one.blocks, tuple(starts), one.frozen)
    return Start(tower, first.facts, (fill,))


def small(size: str) -> ViT:
    """A ViT of SMALL."""
    pixels, patch, width, depth, heads = SMALL[size]
    return dino_vit("S/16").clone(image_size=pixels, patch=patch, width=width, depth=depth, heads=heads)


def _tower(image: ViT | ResNet, mean: Any, std: Any, fields: Mapping[str, Any]) -> Backbone:
    depth = getattr(image, "depth", 1)
    wanted = dict(fields)
    wanted["blocks"] = min(wanted.get("blocks", 4), depth)
    return Backbone(image, mean, std, **wanted)


def _rows(found: Any, default: Any) -> Any:
    """A normalisation as rows: one for all images, or one by modality."""
    if found is None:
        return default
    return found if isinstance(found[0], tuple | list) else (tuple(found),)
