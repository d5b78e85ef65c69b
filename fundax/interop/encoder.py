"""An image encoder read from and written to files under timm's names, which DINO, iBOT, VisionFM and RETFound share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders.backbone import Encoder
from fundax.encoders.vit import ViT
from fundax.interop import keymap, vit
from fundax.interop.bundle import Bundle
from fundax.interop.weights import State, load_torch, read_state, strip_prefixes
from fundax.params import unstack_blocks
from fundax.types import Params, UserError

NAME = "timm"


PARTS = ("teacher", "student", "model")  # in which pretraining programs keep an encoder, the better one first


# What may be left out, with what it is: the heads of the pretraining or of a fine-tuning, MAE's decoder, mask tokens.
DROPPED = ("head.", "dino_head.", "ibot_head.", "decoder_", "mask_token", "masked_embed")


_RENAMED = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))  # as RETFound's loader of its DINOv2 variant


def detect(state: State) -> bool:
    """Whether a flat state dict is a ViT under these names."""
    return vit.detect(encoder_state(state))


def encoder_state(state: Mapping[str, Any]) -> State:
    """An encoder's tensors without the prefixes that wrappers left, and without what DROPPED names."""
    found: State = {}
    for key, value in strip_prefixes(state).items():
        key = key.replace("module.", "").removeprefix("backbone.")
        for old, new in _RENAMED:
            key = key.replace(old, new)
        if not key.startswith(DROPPED):
            found[key] = np.asarray(value)
    return found


def load_encoder(path: str | Path) -> State:
    """The encoder of a file or folder: a bare state dict, or the teacher (else student, else model) of a checkpoint.

    Raises UserError where there is none, or it is damaged.
    """
    if Path(path).suffix in (".pth", ".pt", ".bin"):
        loaded = load_torch(path)
        part = next((loaded[name] for name in PARTS if isinstance(loaded.get(name), Mapping)), loaded)
        state = {key: _array(value, key, path) for key, value in part.items()}
    else:
        state = read_state(path)
        part = next((f"{name}." for name in PARTS if f"{name}.backbone.cls_token" in state), "")
        state = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
    return encoder_state(state)


def _array(value: Any, key: str, path: str | Path) -> np.ndarray:
    if not hasattr(value, "numpy"):
        raise UserError(f"{path}: '{key}' is of type {type(value).__name__}; expected tensors")
    return value.float().numpy()


def to_fundax(state: State, source: str, heads: int | None = None, **fields: Any) -> tuple[Encoder, Params]:
    """The encoder whose shapes a state dict has, and its parameters; `fields` are Encoder's.

    heads: of attention; None takes 64 channels in each, as all published sizes have.
    Raises UserError naming keys that are missing or unknown, and tensors of another shape.
    """
    state = encoder_state(state)
    tower = vit.tower_of(state, source, heads=heads)
    return Encoder(tower, **fields), {"image": vit.read(tower, state, source)}


def from_fundax(objective: Encoder, params: Params) -> State:
    """The bare state dict (fp32). Raises UserError for a tower of another kind (pre_norm, no biases, ...)."""
    tower = bare(objective.image)
    _check(tower)
    tree = {name: leaf for name, leaf in unstack_blocks(params["image"]).items() if name != "mask_token"}
    gamma = vit.GAMMA[1]  # as timm calls it
    return keymap.write(vit.rows(tower, gamma=gamma), tree, NAME)


def bare(tower: ViT) -> ViT:
    """A tower as it computes features: no mask token, nothing dropped, layers not stacked."""
    return tower.clone(mask_token=False, drop_path=0.0, scan=False)


def _check(tower: ViT) -> None:
    wanted = {"pre_norm": False, "patch_bias": True, "qkv_bias": True, "class_token": True}
    for name, value in wanted.items():
        if getattr(tower, name) != value:
            raise UserError(f"{NAME}'s ViT has {name} = {value}, this one {getattr(tower, name)}")
    if tower.activation.__name__ != "gelu_exact" or tower.pool not in ("token", "mean"):
        raise UserError(f"{NAME}'s ViT has exact GELU and pools the class token or the mean; this one differs")


def unit_difference(bundle: Bundle, program: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest difference of unit vectors between our features and those of another program.

    `program` takes normalised images f32 [2 3 h w], as torch lays them out, to features [2 D].
    """
    side = bundle.objective.image.image_size
    image = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    theirs = program(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    objective = replace(bundle.objective, image=bare(bundle.objective.image).clone(dtype="float32"))
    params = {"image": {k: v for k, v in unstack_blocks(bundle.params["image"]).items() if k != "mask_token"}}
    ours = np.asarray(jax.jit(objective.forward)(params, {}, {"image": image})["image_raw"])
    ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (ours, theirs))
    return float(np.abs(ours - theirs).max())
