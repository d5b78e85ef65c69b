"""ViTs under timm's key names, which DINO, iBOT and RETFound share: bare state dicts, timm's folders, initial weights.

Source: the layouts in the public repositories facebookresearch/dino, bytedance/ibot, rmaphoh/RETFound_MAE and
huggingface/pytorch-image-models; config.json is what timm's `push_to_hf_hub` writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.interop import bundle as folder
from fundax.interop import encoder, vit
from fundax.interop.bundle import Bundle
from fundax.interop.weights import read_state
from fundax.params import stack_blocks, unstack_blocks
from fundax.runtime import serialize
from fundax.runtime.checkpoint import load_params
from fundax.types import Params

NAME = "timm"


CONFIG, WEIGHTS = "config.json", "model.safetensors"


_log = logging.getLogger("fundax")


USAGE = """
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
"""


# ------------------------------------------------------------------------------------------------ initial weights


def initial(path: str | Path, objective: Any) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: the encoder (`image`) of a VisionFM, DINO, iBOT, timm or RETFound checkpoint.

    Positions are moved to the model's grid; mask token and heads stay as they are. A run of fundax (or an import) gives
    all it has of the same shapes, heads among it. Raises UserError (when called) naming keys that are missing or
    unknown, and tensors of another shape.
    """

    def fill(params: Params) -> Params:
        tower = encoder.bare(objective.image)
        if (Path(path) / "checkpoints").is_dir():
            return _from_run(load_params(path)[0], params, tower.patches + 1)
        tree = stacked(vit.read(tower, encoder.load_encoder(path), str(path)), params["image"])
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
    state = encoder.from_fundax(bundle.objective, bundle.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, bundle, {})
        folder.write_json(temporary / CONFIG, config_of(bundle))
        folder.write_card(temporary, bundle, "timm", USAGE, "image-feature-extraction")


def config_of(bundle: Bundle) -> dict[str, Any]:
    """timm's config.json. A model of several normalisations is written with the first; the record has them all."""
    tower, side = bundle.objective.image, bundle.objective.image.image_size
    pooled = tower.norm_after_pool and tower.pool == "mean"
    arguments = {"img_size": side, "patch_size": tower.patch, "embed_dim": tower.width, "depth": tower.depth,
                 "num_heads": tower.heads, "mlp_ratio": tower.mlp_ratio, "init_values": tower.layer_scale,
                 "global_pool": "avg" if pooled else "token"}  # fmt: skip
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
    objective, params = encoder.to_fundax(read_state(path), str(path), heads, **fields)
    record = Path(path) / folder.RECORD
    if record.is_file():  # of ours: it knows every modality's normalisation
        objective = replace(serialize.from_json(folder.read_json(record)["objective"]), image=objective.image)
    return Bundle(objective, params, {"image_size": objective.image.image_size})


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """The largest difference of unit features between timm and fundax; None where timm is not installed."""
    try:
        import timm  # pyright: ignore[reportAttributeAccessIssue]
        import torch
    except ImportError:
        return None
    create: Any = timm.create_model  # type: ignore[attr-defined]  # pyright takes this file for the package
    model = create(f"local-dir:{Path(path).resolve()}", pretrained=True).eval()

    def pooled(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(image)).numpy()

    return encoder.unit_difference(bundle, pooled)
