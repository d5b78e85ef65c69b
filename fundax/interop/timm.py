"""ViTs under timm's key names, which DINO, iBOT and RETFound share: bare state dicts, timm's folders, initial weights.

Source: the layouts in the public repositories facebookresearch/dino, bytedance/ibot, rmaphoh/RETFound_MAE and
huggingface/pytorch-image-models; config.json is what timm's `push_to_hf_hub` writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax import folder, layout, spec, vit_layout
from fundax.checkpoint import load_params
from fundax.encoders.layers import stack_blocks, unstack_blocks
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.vit import ViT
from fundax.errors import UserError
from fundax.folder import Bundle
from fundax.objectives.encoder import Encoder
from fundax.types import Params
from fundax.weights import State, load_torch, read_state, strip_prefixes

NAME = "timm"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PARTS = ("teacher", "student", "model")  # in which pretraining programs keep an encoder, the better one first
# What may be left out, with what it is: the heads of the pretraining or of a fine-tuning, MAE's decoder, mask tokens.
DROPPED = ("head.", "dino_head.", "ibot_head.", "decoder_", "mask_token", "masked_embed")
_RENAMED = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))  # as RETFound's loader of its DINOv2 variant
_log = logging.getLogger("fundax")
USAGE = """
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
"""


def detect(state: State) -> bool:
    """Whether a flat state dict is a ViT under these names."""
    return vit_layout.detect(encoder_state(state))


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
    tower = vit_layout.tower_of(state, source, heads=heads)
    return Encoder(tower, **fields), {"image": vit_layout.read(tower, state, source)}


def from_fundax(objective: Encoder, params: Params) -> State:
    """The bare state dict (fp32). Raises UserError for a tower of another kind (pre_norm, no biases, ...)."""
    tower = bare(objective.image)
    _check(tower)
    tree = {name: leaf for name, leaf in unstack_blocks(params["image"]).items() if name != "mask_token"}
    gamma = vit_layout.GAMMA[1]  # as timm calls it
    return layout.write(vit_layout.rows(tower, gamma=gamma), tree, NAME)


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


# ------------------------------------------------------------------------------------------------ initial weights


def initial(path: str | Path, objective: Any) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: the encoder (`image`) of a VisionFM, DINO, iBOT, timm or RETFound checkpoint.

    Positions are moved to the model's grid; mask token and heads stay as they are. A run of fundax (or an import) gives
    all it has of the same shapes, heads among it. Raises UserError (when called) naming keys that are missing or
    unknown, and tensors of another shape.
    """

    def fill(params: Params) -> Params:
        tower = bare(objective.image)
        if (Path(path) / "checkpoints").is_dir():
            return _from_run(load_params(path)[0], params, tower.patches + 1)
        tree = stacked(vit_layout.read(tower, load_encoder(path), str(path)), params["image"])
        _log.info("%s: encoder loaded; heads are new", path)
        return params | {"image": params["image"] | tree}

    return fill


def _from_run(loaded: Params, params: Params, rows: int) -> Params:
    image = {**unstack_blocks(loaded["image"])}
    image["position"] = resize_positions(np.asarray(image["position"]), rows, pixel_centres)
    image = {name: leaf for name, leaf in image.items() if name != "mask_token" or name in params["image"]}
    head = loaded.get("head")
    same = head is not None and jax.tree.map(np.shape, head) == jax.tree.map(np.shape, params["head"])
    _log.info("encoder loaded%s", " with its heads" if same else "; heads are new")
    new = params | {"image": params["image"] | stacked(image, params["image"])}
    return new | {"head": head} if same else new


def stacked(tree: Params, like: Params) -> Params:
    """A tower's parameters with its layers stacked where those of `like` are."""
    return stack_blocks(tree) if "blocks" in like else tree


# -------------------------------------------------------------------------------------------------------- folders


def write_folder(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """The folder that `timm.create_model("local-dir:...", pretrained=True)` opens.

    Raises UserError for a model timm's ViT cannot hold, and for a folder that is there and not empty.
    """
    state = from_fundax(bundle.objective, bundle.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, bundle, {})
        folder.write_json(temporary / CONFIG, config_of(bundle))
        folder.write_card(temporary, bundle, "timm", USAGE, "image-feature-extraction")


def config_of(bundle: Bundle) -> dict[str, Any]:
    """timm's config.json. A model of several normalisations is written with the first; the record has them all."""
    tower, side = bundle.objective.image, bundle.objective.image.image_size
    pooled = tower.norm_after_pool and tower.pool == "mean"
    arguments = {"img_size": side, "patch_size": tower.patch, "embed_dim": tower.width, "depth": tower.depth,
                 "num_heads": tower.heads, "mlp_ratio": tower.mlp_ratio, "init_values": tower.layer_scale}  # fmt: skip
    pretrained = {
        "tag": "fundax", "custom_load": False, "input_size": [3, side, side], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "mean": list(bundle.objective.mean[0]),
        "std": list(bundle.objective.std[0]), "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    return {"architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": tower.width,
            "global_pool": "avg" if pooled else "token", "model_args": arguments,
            "pretrained_cfg": pretrained}  # fmt: skip


def read_folder(path: str | Path) -> Bundle:
    """The model of a folder with timm's config.json. Raises UserError for anything missing, damaged or of another model."""
    config = folder.read_json(Path(path) / CONFIG)
    found = config.get("pretrained_cfg", {})
    fields = {name: (tuple(found[name]),) for name in ("mean", "std") if name in found}
    heads = config.get("model_args", {}).get("num_heads")
    objective, params = to_fundax(read_state(path), str(path), heads, **fields)
    record = Path(path) / folder.RECORD
    if record.is_file():  # of ours: it knows every modality's normalisation
        objective = replace(spec.from_json(folder.read_json(record)["objective"]), image=objective.image)
    return Bundle(objective, params, {"image_size": objective.image.image_size})


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """The largest difference of unit features between timm and fundax; None where timm is not installed."""
    try:
        import timm  # pyright: ignore[reportAttributeAccessIssue]
        import torch
    except ImportError:
        return None
    side = bundle.objective.image.image_size
    image = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    with torch.no_grad():
        model = timm.create_model(  # type: ignore[attr-defined]
            f"local-dir:{Path(path).resolve()}", pretrained=True
        ).eval()
        theirs = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    return unit_difference(bundle, image, theirs)


def unit_difference(bundle: Bundle, image: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of unit vectors between another program's features [B D] and ours, of normalised images."""
    objective = replace(bundle.objective, image=bare(bundle.objective.image).clone(dtype="float32"))
    params = {"image": {k: v for k, v in unstack_blocks(bundle.params["image"]).items() if k != "mask_token"}}
    ours = np.asarray(jax.jit(objective.forward)(params, {}, {"image": image})["image_raw"])
    ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (ours, theirs))
    return float(np.abs(ours - theirs).max())
