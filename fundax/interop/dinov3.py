"""The Hugging Face DINOv3ViTModel format: ViTs with registers and rotary positions (arXiv:2508.10104).

Its keys have no bias, ours are zero there and are written. Key names are those of the files that transformers reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders import layers
from fundax.encoders.backbone import Encoder
from fundax.encoders.vit import ViT, init_dino
from fundax.interop import dinov2, folder, keymap, processor, vit
from fundax.interop.checkpoint import IMAGENET, Checkpoint, Format
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.objectives.ibot import IBOT
from fundax.params import unstack_blocks
from fundax.runtime import serialize
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Params, UserError

NAME = "Hugging Face DINOv3ViTModel"
CONFIG, WEIGHTS = dinov2.CONFIG, dinov2.WEIGHTS


def detect(state: State) -> bool:
    """Whether these are the keys of a DINOv3ViTModel."""
    return {"embeddings.cls_token", "layer.0.attention.q_proj.weight"} <= state.keys()


def rows(tower: ViT) -> list[Row]:
    """The table of an encoder."""
    found = [
        Row("class_token", ("embeddings.cls_token",), vit.TWO),
        Row("patch/kernel", ("embeddings.patch_embeddings.weight",), keymap.CONV),
        Row("patch/bias", ("embeddings.patch_embeddings.bias",), keymap.SAME),
        *keymap.norm("norm", "norm"),
    ]
    if tower.registers:
        found.append(Row("registers", ("embeddings.register_tokens",), vit.ONE))
    for i in range(tower.depth):
        here, there = f"block_{i}", f"layer.{i}"
        found += [
            *keymap.norm(f"{here}/norm1", f"{there}.norm1"),
            *keymap.split_attention(f"{here}/attention", [f"{there}.attention.{name}_proj" for name in "qkv"]),
            *keymap.linear(f"{here}/attention/out", f"{there}.attention.o_proj"),
            *keymap.layer_scale(here, f"{there}.layer_scale{{n}}.lambda1"),
            *keymap.norm(f"{here}/norm2", f"{there}.norm2"),
            *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.up_proj"),
            *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.down_proj"),
        ]
    return found


def from_fundax(objective: Encoder, params: Params) -> State:
    """The state dict (fp32). Raises UserError for an encoder that DINOv3ViTModel cannot hold."""
    tower = vit.bare(objective.image)
    wanted = {"pool": "token", "norm_after_pool": False, "pre_norm": False, "patch_bias": True, "class_token": True}
    wrong = [name for name, value in wanted.items() if getattr(tower, name) != value]
    wrong += ["rotary"] * (tower.rotary is None) + ["layer_scale"] * (tower.layer_scale is None)
    wrong += ["activation"] * (tower.activation.__name__ != "gelu_exact")
    if wrong:
        raise UserError(f"{NAME} cannot hold a ViT with {', '.join(f'{n} = {getattr(tower, n)}' for n in wrong)}")
    tree = {name: leaf for name, leaf in unstack_blocks(params["image"]).items() if name != "mask_token"}
    blank = np.zeros((1, tower.registers, tower.width), np.float32)
    state = keymap.write(rows(tower), tree, NAME) | {"embeddings.mask_token": np.zeros((1, 1, tower.width), np.float32)}
    return state if tower.registers else state | {"embeddings.register_tokens": blank}


def config_of(objective: Encoder) -> dict[str, Any]:
    """config.json."""
    tower = objective.image
    return {
        "architectures": ["DINOv3ViTModel"], "model_type": "dinov3_vit", "hidden_size": tower.width,
        "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads,
        "intermediate_size": int(tower.width * tower.mlp_ratio), "image_size": tower.image_size,
        "patch_size": tower.patch, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": tower.epsilon,
        "rope_theta": tower.rotary, "num_register_tokens": tower.registers, "layerscale_value": tower.layer_scale,
        "query_bias": True, "key_bias": True, "value_bias": True, "proj_bias": True, "mlp_bias": True,
        "use_gated_mlp": False, "dtype": "float32",
    }  # fmt: skip


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModel opens without fundax.

    Raises UserError for a model DINOv3ViTModel cannot hold, and for a folder that is there and not empty.
    """
    state, preprocessor = from_fundax(model.objective, model.params), dinov2.preprocessor_of(model)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, {})
        write_json(temporary / CONFIG, config_of(model.objective))
        write_json(temporary / processor.FILE, preprocessor)
        folder.write_card(temporary, model, "transformers", dinov2.USAGE, "image-feature-extraction")


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of weights with config.json in their folder; UserError for anything missing or that does not fit."""
    del modality
    config, state = read_json(folder_of(path) / CONFIG), dict(state)
    if config.get("use_gated_mlp") or config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path}: a DINOv3 with a gated MLP (H+ and 7B) is not supported; expected S, B or L")
    state.pop("embeddings.mask_token", None)
    registers, width = config.get("num_register_tokens", 0), config["hidden_size"]
    if not registers:
        state.pop("embeddings.register_tokens", None)
    for i in range(config["num_hidden_layers"]):
        state.setdefault(f"layer.{i}.attention.k_proj.bias", np.zeros(width, np.float32))
    tower = ViT(
        image_size=config["image_size"], patch=config["patch_size"], width=width, depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"], mlp_ratio=config["intermediate_size"] / width,
        activation=layers.gelu_exact, epsilon=config["layer_norm_eps"], patch_bias=True, pre_norm=False, any_size=True,
        init_std=0.02, init_blocks=init_dino, layer_scale=config.get("layerscale_value", 1.0), registers=registers,
        rotary=float(config.get("rope_theta", 100.0)),
    )  # fmt: skip
    settings = processor.read(folder_of(path))
    facts: dict[str, Any] = processor.preprocessing_of(settings, path) if settings else {"image_size": tower.image_size}
    tower = tower.clone(image_size=facts["image_size"])  # rotary positions do not store it
    params = keymap.read(rows(tower), state, vit.shapes_of(tower), str(path))
    moments = [(tuple(facts.pop(name)),) for name in ("mean", "std") if name in facts]
    record = folder.read_record(path)  # it has the normalisation of every modality
    objective = serialize.from_json(record["objective"]) if record else Encoder(tower, *moments)
    assumed = "" if record or settings else IMAGENET
    return Checkpoint(replace(objective, image=tower), {"image": params}, facts, assumed=assumed)


def fits(objective: Any) -> bool:
    """Whether an image encoder has rotary positions."""
    return getattr(objective.image, "rotary", None) is not None


FORMAT = Format(
    "huggingface", NAME, (Encoder, IBOT), (WEIGHTS, CONFIG), detect, read_model, write_folder, dinov2.USAGE, fits=fits,
    configured=True, select=vit.encoder_of, difference=dinov2.difference, narrow=True, shards=True, order=8,
)  # fmt: skip
