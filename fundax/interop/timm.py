"""The formats of timm and RETFound: image encoders in timm's folders, in plain files, and in {"model": ...}.

Source: the layouts in the public repositories facebookresearch/dino, bytedance/ibot, rmaphoh/RETFound_MAE and
huggingface/pytorch-image-models; config.json is what timm's `push_to_hf_hub` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources.modality_folders import moments
from fundax.encoders.backbone import BackboneWithHead, Encoder
from fundax.interop import folder, vit
from fundax.interop.checkpoint import IMAGENET, Checkpoint, Format, stored_preprocessing
from fundax.interop.weights import State, folder_of, write_torch
from fundax.objectives.clip import CLIP
from fundax.objectives.ibot import IBOT
from fundax.objectives.ret_clip import RetCLIP
from fundax.runtime import serialize
from fundax.runtime.workdir import read_optional_json, write_json
from fundax.types import UserError

NAME = "timm"
CROP_MODES = {"shortest": "center", "squash": "squash"}
POOLS = {"token": "token", "mean": "avg", "attention": "map"}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
USAGE = """
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
"""
RETFOUND_USAGE = """
import torch

state = torch.load("FOLDER/retfound.pth", weights_only=True)["model"]
"""


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that `timm.create_model("local-dir:...", pretrained=True)` opens.

    Raises UserError for a model timm's ViT cannot hold, and for a folder that is there and not empty.
    """
    state = vit.from_fundax(model.objective, model.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, {})
        write_json(temporary / CONFIG, config_of(model))
        folder.write_card(temporary, model, "timm", USAGE, "image-feature-extraction")


def config_of(model: Checkpoint) -> dict[str, Any]:
    """timm's config.json. A model of several normalisations is written with the first; the record has them all.

    Raises UserError for a resize that timm does not have.
    """
    facts = stored_preprocessing(model.objective, model.preprocessing)
    if facts["resize"] not in CROP_MODES:
        raise UserError(f"{NAME} has no resize '{facts['resize']}'; expected {', '.join(CROP_MODES)}")
    tower, side = model.objective.image, model.objective.image.image_size
    pool = POOLS[tower.pool]
    named = {function: name for name, function in vit.ACTIVATIONS.items()}
    arguments = {"img_size": side, "patch_size": tower.patch, "embed_dim": tower.width, "depth": tower.depth,
                 "num_heads": tower.heads, "mlp_ratio": tower.mlp_ratio, "init_values": tower.layer_scale,
                 "global_pool": pool, "act_layer": named[tower.activation], "class_token": tower.class_token,
                 "reg_tokens": tower.registers, "qkv_bias": tower.qkv_bias}  # fmt: skip
    arguments |= {"fc_norm": tower.norm_after_pool} if pool == "avg" else {}
    pretrained = {
        "tag": "fundax", "custom_load": False, "input_size": [3, side, side], "fixed_input_size": True,
        "interpolation": facts["interpolation"], "crop_pct": side / (facts.get("resize_to") or side),
        "crop_mode": CROP_MODES[facts["resize"]], "mean": list(model.objective.mean[0]),
        "std": list(model.objective.std[0]), "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    architecture = "vit_base_patch16_clip_224" if tower.pre_norm else "vit_base_patch16_224"
    return {"architecture": architecture, "num_classes": 0, "num_features": tower.width,
            "global_pool": pool, "model_args": arguments,
            "pretrained_cfg": pretrained}  # fmt: skip


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of a bare state dict, a pretraining's teacher, or a folder with timm's config.json.

    Without a configuration, images are normalised as those of `modality`, "" as ImageNet's. Raises UserError for anything
    missing, damaged or of another model.
    """
    config = read_optional_json(folder_of(path) / CONFIG)
    stored = config.get("pretrained_cfg", {}) if "architecture" in config else {}
    fields = {name: (tuple(stored[name]),) for name in ("mean", "std") if name in stored}
    if modality:
        fields |= dict(zip(("mean", "std"), moments((modality,)), strict=True))
    arguments = config.get("model_args", {})
    default = "quick_gelu" if "quickgelu" in str(config.get("architecture")) else "gelu"
    named = arguments.get("act_layer") or default
    if named not in vit.ACTIVATIONS:
        raise UserError(f"{path}: act_layer is {named!r}; supported: {', '.join(vit.ACTIVATIONS)}")
    objective, params = vit.to_fundax(state, str(path), arguments.get("num_heads"), vit.ACTIVATIONS[named], **fields)
    facts = resize_rule(stored, objective.image.image_size)
    record = folder.read_record(path)
    if record and path.is_dir():  # written by fundax: the record has every modality's normalisation
        objective = replace(serialize.from_json(record["objective"]), image=objective.image)
        return Checkpoint(objective, params, record["preprocessing"])
    return Checkpoint(objective, params, facts, assumed="" if "mean" in fields else IMAGENET)


def resize_rule(stored: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Preprocessing of a pretrained_cfg, with timm's defaults."""
    if not stored:
        return {"image_size": size}
    if tuple(stored.get("input_size", (3, size, size))[1:]) != (size, size):
        raise UserError(
            f"pretrained_cfg.input_size is {stored['input_size']}, but the positions are those of {size} pixels"
        )
    modes = {theirs: ours for ours, theirs in CROP_MODES.items()}
    mode, edge = stored.get("crop_mode") or "center", math.floor(size / (stored.get("crop_pct") or 0.875))
    if mode not in modes:
        raise UserError(f"pretrained_cfg.crop_mode is {mode!r}; supported: {', '.join(modes)}")
    rule = {"resize": modes[mode], "interpolation": stored.get("interpolation") or "bicubic"}
    return {"image_size": size, **rule, **({"resize_to": edge} if edge != size else {})}


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """The largest difference of unit features between timm and fundax; None if timm is not installed."""
    try:
        import timm  # pyright: ignore[reportAttributeAccessIssue]
        import torch
    except ImportError:
        return None
    create: Any = timm.create_model  # type: ignore[attr-defined]  # pyright takes this file for the package
    program = create(f"local-dir:{Path(path).resolve()}", pretrained=True).eval()

    def pooled(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(image)).numpy()

    return vit.unit_difference(model, pooled)


def write_retfound(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write a folder with retfound.pth, the form of github.com/rmaphoh/RETFound_MAE.

    Its MAE mode reads {"model": encoder}, its DINOv2 mode {"teacher": encoder}.

    Raises UserError for an encoder that the format cannot hold, and for a folder that is not empty.
    """
    state = vit.from_fundax(model.objective, model.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch({"model": state, "teacher": state}, temporary / "retfound.pth")
        folder.write_record(temporary, state, model, {})
        folder.write_card(temporary, model, "fundax", RETFOUND_USAGE, "image-feature-extraction")


FORMAT = Format(
    "timm", NAME, (Encoder, IBOT, BackboneWithHead, CLIP, RetCLIP), (WEIGHTS, CONFIG), vit.detect, read_model, write_folder, USAGE,
    select=vit.encoder_of, difference=difference, narrow=True, order=9,
)  # fmt: skip
RETFOUND = Format(  # its encoder is timm's, and export --to timm compares that
    "retfound", "RETFound", (Encoder, IBOT, BackboneWithHead), ("retfound.pth",), vit.detect, read_model, write_retfound,
    RETFOUND_USAGE, select=vit.encoder_of, order=10,
)  # fmt: skip
