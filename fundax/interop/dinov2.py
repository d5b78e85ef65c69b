"""Hugging Face's Dinov2Model, both ways: the class that holds DINO's, iBOT's and VisionFM's ViTs exactly.

A ViT without layer scales is written with scales of 1. Key names are those of the files that transformers reads and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders import layers
from fundax.encoders.backbone import Encoder
from fundax.encoders.vit import ViT, init_dino
from fundax.interop import bundle as folder
from fundax.interop import encoder, keymap, vit
from fundax.interop.bundle import Bundle
from fundax.interop.keymap import Row
from fundax.interop.weights import State, read_state
from fundax.params import unstack_blocks
from fundax.runtime import serialize
from fundax.types import Params, UserError

NAME = "Hugging Face Dinov2Model"


CONFIG, WEIGHTS = "config.json", "model.safetensors"


USAGE = """
from transformers import AutoImageProcessor, AutoModel

model, process = AutoModel.from_pretrained("FOLDER"), AutoImageProcessor.from_pretrained("FOLDER")
"""


def rows(tower: ViT) -> list[Row]:
    """The table of a tower without its layer scales."""
    found = [
        Row("class_token", ("embeddings.cls_token",), vit.TWO),
        Row("position", ("embeddings.position_embeddings",), vit.ONE),
        Row("patch/kernel", ("embeddings.patch_embeddings.projection.weight",), keymap.CONV),
        Row("patch/bias", ("embeddings.patch_embeddings.projection.bias",), keymap.SAME),
        *keymap.norm("norm", "layernorm"),
    ]
    for i in range(tower.depth):
        here, there = f"block_{i}", f"encoder.layer.{i}"
        qkv = [f"{there}.attention.attention.{name}" for name in ("query", "key", "value")]
        found += [
            *keymap.norm(f"{here}/norm1", f"{there}.norm1"),
            Row(f"{here}/attention/qkv/kernel", tuple(f"{key}.weight" for key in qkv), keymap.SPLIT_KERNEL),
            Row(f"{here}/attention/qkv/bias", tuple(f"{key}.bias" for key in qkv), keymap.SPLIT_BIAS),
            *keymap.linear(f"{here}/attention/out", f"{there}.attention.output.dense"),
            *keymap.norm(f"{here}/norm2", f"{there}.norm2"),
            *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
            *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
        ]
        if tower.layer_scale is not None:
            found += [
                Row(f"{here}/layer_scale{n}/gamma", (f"{there}.layer_scale{n}.lambda1",), keymap.SAME) for n in "12"
            ]
    return found


def from_fundax(objective: Encoder, params: Params) -> State:
    """The state dict (fp32). Raises UserError for a tower that Dinov2Model cannot hold."""
    tower = encoder.bare(objective.image)
    _check(tower)
    tree = {name: leaf for name, leaf in unstack_blocks(params["image"]).items() if name != "mask_token"}
    state = keymap.write(rows(tower), tree, NAME) | {"embeddings.mask_token": np.zeros((1, tower.width), np.float32)}
    if tower.layer_scale is None:
        state |= {f"encoder.layer.{i}.layer_scale{n}.lambda1": np.ones(tower.width, np.float32)
                  for i in range(tower.depth) for n in "12"}  # fmt: skip
    return state


def _check(tower: ViT) -> None:
    hidden = tower.width * tower.mlp_ratio
    if tower.pool != "token" or tower.norm_after_pool or tower.pre_norm or not (tower.patch_bias and tower.class_token):
        raise UserError(f"{NAME} pools the class token of a ViT without a norm before its blocks; this one differs")
    if tower.activation.__name__ != "gelu_exact" or hidden % tower.width:
        raise UserError(f"{NAME} has exact GELU and an MLP of a whole multiple of the width; this one differs")


def config_of(objective: Encoder) -> dict[str, Any]:
    """config.json."""
    tower = objective.image
    return {
        "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": tower.width,
        "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "mlp_ratio": int(tower.mlp_ratio),
        "image_size": tower.image_size, "patch_size": tower.patch, "num_channels": 3, "hidden_act": "gelu",
        "layer_norm_eps": tower.epsilon, "layerscale_value": tower.layer_scale or 1.0, "qkv_bias": True,
        "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "use_swiglu_ffn": False, "torch_dtype": "float32",
    }  # fmt: skip


def preprocessor_of(objective: Encoder) -> dict[str, Any]:
    """preprocessor_config.json; a model of several normalisations is written with the first, the record has them all."""
    side = objective.image.image_size
    return {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"height": side, "width": side}, "resample": 3, "do_center_crop": False, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(objective.mean[0]),
        "image_std": list(objective.std[0]),
    }  # fmt: skip


def write_folder(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """The folder that transformers' AutoModel opens with no code of ours.

    Raises UserError for a model Dinov2Model cannot hold, and for a folder that is there and not empty.
    """
    state = from_fundax(bundle.objective, bundle.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, bundle, {})
        folder.write_json(temporary / CONFIG, config_of(bundle.objective))
        folder.write_json(temporary / "preprocessor_config.json", preprocessor_of(bundle.objective))
        folder.write_card(temporary, bundle, "transformers", USAGE, "image-feature-extraction")


def detect_folder(path: str | Path) -> bool:
    """Whether a folder holds such a model."""
    config = Path(path) / CONFIG
    return config.is_file() and folder.read_json(config).get("model_type") == "dinov2"


def read_folder(path: str | Path) -> Bundle:
    """The model of a folder. Layer scales that are all 1 are none. Raises UserError for what is missing or does not fit."""
    config, state = folder.read_json(Path(path) / CONFIG), dict(read_state(path))
    state.pop("embeddings.mask_token", None)
    gammas = [key for key in state if key.endswith(".lambda1")]
    plain = all(np.all(state[key] == 1) for key in gammas)
    if plain:
        state = {key: value for key, value in state.items() if key not in gammas}
    try:
        tower = ViT(
            image_size=config["image_size"], patch=config["patch_size"], width=config["hidden_size"],
            depth=config["num_hidden_layers"], heads=config["num_attention_heads"], mlp_ratio=config["mlp_ratio"],
            activation=layers.gelu_exact, epsilon=config["layer_norm_eps"], patch_bias=True, pre_norm=False,
            any_size=True, init_std=0.02, init_blocks=init_dino, layer_scale=None if plain else 1e-5,
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{path}/{CONFIG}: {error} is missing") from error
    params = keymap.read(rows(tower), state, vit.shapes_of(tower), str(path))
    return Bundle(replace(_recorded(path), image=tower), {"image": params}, {"image_size": tower.image_size})


def _recorded(path: str | Path) -> Encoder:
    """Normalisation: of our record, else of preprocessor_config.json, else ImageNet's."""
    record, processor = Path(path) / folder.RECORD, Path(path) / "preprocessor_config.json"
    if record.is_file():
        return serialize.from_json(folder.read_json(record)["objective"])
    tower = ViT(16, 16, 8, 1, 1)  # replaced by the caller
    if not processor.is_file():
        return Encoder(tower)
    facts = folder.read_json(processor)
    return Encoder(tower, (tuple(facts["image_mean"]),), (tuple(facts["image_std"]),))


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """The largest difference of unit features between transformers and fundax; None where torch is not installed."""
    try:
        import torch
        from transformers import AutoModel
    except ImportError:
        return None
    model = AutoModel.from_pretrained(str(path)).eval()

    def pooled(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(image)).pooler_output.numpy()

    return encoder.unit_difference(bundle, pooled)
