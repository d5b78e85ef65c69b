"""The Hugging Face Dinov2Model format, which holds the ViTs of DINO, iBOT and VisionFM exactly.

A ViT without layer scales is written with scales of 1. Key names are those of the files that transformers reads and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders import layers
from fundax.encoders.backbone import Encoder
from fundax.encoders.positions import pixel_centres, resize_positions
from fundax.encoders.vit import ViT, init_dino
from fundax.interop import folder, keymap, processor, vit
from fundax.interop.checkpoint import IMAGENET, Checkpoint, Format, stored_preprocessing
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.objectives.ibot import IBOT
from fundax.params import unstack_blocks
from fundax.runtime import serialize
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Params, UserError

NAME = "Hugging Face Dinov2Model"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = {False: ("dinov2", "Dinov2Model"), True: ("dinov2_with_registers", "Dinov2WithRegistersModel")}
USAGE = """
from transformers import AutoImageProcessor, AutoModel

model, process = AutoModel.from_pretrained("FOLDER"), AutoImageProcessor.from_pretrained("FOLDER")
"""


def rows(tower: ViT) -> list[Row]:
    """The table of an encoder."""
    found = [
        Row("class_token", ("embeddings.cls_token",), vit.TWO),
        Row("position", ("embeddings.position_embeddings",), vit.ONE),
        Row("patch/kernel", ("embeddings.patch_embeddings.projection.weight",), keymap.CONV),
        Row("patch/bias", ("embeddings.patch_embeddings.projection.bias",), keymap.SAME),
        *keymap.norm("norm", "layernorm"),
    ]
    if tower.registers:
        found.append(Row("registers", ("embeddings.register_tokens",), vit.ONE))
    for i in range(tower.depth):
        here, there = f"block_{i}", f"encoder.layer.{i}"
        qkv = [f"{there}.attention.attention.{name}" for name in ("query", "key", "value")]
        found += [
            *keymap.norm(f"{here}/norm1", f"{there}.norm1"),
            *keymap.split_attention(f"{here}/attention", qkv),
            *keymap.linear(f"{here}/attention/out", f"{there}.attention.output.dense"),
            *keymap.norm(f"{here}/norm2", f"{there}.norm2"),
            *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
            *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
        ]
        if tower.layer_scale is not None:
            found += keymap.layer_scale(here, f"{there}.layer_scale{{n}}.lambda1")
    return found


def from_fundax(objective: Encoder, params: Params) -> State:
    """The state dict (fp32). Raises UserError for an encoder that Dinov2Model cannot hold."""
    tower = vit.bare(objective.image)
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
    if tower.rotary is not None:
        raise UserError(f"{NAME} has a position table; this ViT has rotary positions")
    if not tower.qkv_bias or tower.activation.__name__ != "gelu_exact" or hidden % tower.width:
        raise UserError(f"{NAME} has exact GELU, biases and an MLP of a whole multiple of the width; this one differs")


def config_of(objective: Encoder) -> dict[str, Any]:
    """config.json."""
    tower = objective.image
    kind = KINDS[bool(tower.registers)]
    return {
        "architectures": [kind[1]], "model_type": kind[0], "hidden_size": tower.width,
        "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads, "mlp_ratio": int(tower.mlp_ratio),
        "image_size": tower.image_size, "patch_size": tower.patch, "num_channels": 3, "hidden_act": "gelu",
        "layer_norm_eps": tower.epsilon, "layerscale_value": tower.layer_scale or 1.0, "qkv_bias": True,
        "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "use_swiglu_ffn": False, "torch_dtype": "float32",
        **({"num_register_tokens": tower.registers} if tower.registers else {}),
    }  # fmt: skip


def preprocessor_of(model: Checkpoint) -> dict[str, Any]:
    """preprocessor_config.json; a model of several normalisations is written with the first, the record has them all."""
    facts = stored_preprocessing(model.objective, model.preprocessing)
    first = {name: list(getattr(model.objective, name)[0]) for name in ("mean", "std")}
    return processor.config_of(facts | first, "BitImageProcessor")


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModel opens without fundax.

    Raises UserError for a model Dinov2Model cannot hold, and for a folder that is there and not empty.
    """
    state, preprocessor = from_fundax(model.objective, model.params), preprocessor_of(model)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, {})
        write_json(temporary / CONFIG, config_of(model.objective))
        write_json(temporary / processor.FILE, preprocessor)
        folder.write_card(temporary, model, "transformers", USAGE, "image-feature-extraction")


def detect(state: State) -> bool:
    """Whether these are the keys of a Dinov2Model."""
    return {"embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"} <= state.keys()


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The encoder of weights with config.json in their folder; layer scales that are all 1 are left out.

    Raises UserError for anything missing or that does not fit.
    """
    config, state = read_json(folder_of(path) / CONFIG), dict(state)
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
            registers=config.get("num_register_tokens", 0),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{path}/{CONFIG}: {error} is missing") from error
    settings = processor.read(folder_of(path))
    own = {"image_size": tower.image_size}
    facts: dict[str, Any] = processor.preprocessing_of(settings, path) if settings else own
    if facts["image_size"] != tower.image_size:  # the published models were trained at 518 pixels and are used at 224
        tower = tower.clone(image_size=facts["image_size"])
        if tower.image_size % tower.patch:
            raise UserError(f"{path}: patches of {tower.patch} pixels do not fill photographs of {tower.image_size}")
        state = fit_positions(state, tower.patches + 1)
    params = keymap.read(rows(tower), state, vit.shapes_of(tower), str(path))
    moments = [(tuple(facts.pop(name)),) for name in ("mean", "std") if name in facts]
    record = folder.read_record(path)  # it has the normalisation of every modality
    objective = serialize.from_json(record["objective"]) if record else Encoder(tower, *moments)
    assumed = "" if record or settings else IMAGENET
    return Checkpoint(replace(objective, image=tower), {"image": params}, facts, assumed=assumed)


def fit_positions(state: State, rows: int) -> State:
    """Resize the position table [1 N D] of a state dict to `rows` rows, as transformers does for other image sizes."""
    key = "embeddings.position_embeddings"
    return state | {key: resize_positions(state[key][0], rows, pixel_centres)[None]}


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """The largest difference of unit features between transformers and fundax; None where torch is not installed."""
    try:
        import torch
        from transformers import AutoModel
    except ImportError:
        return None
    program = AutoModel.from_pretrained(str(path), dtype=torch.float32).eval()

    def pooled(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(image)).pooler_output.numpy()

    return vit.unit_difference(model, pooled)


def fits(objective: Any) -> bool:
    """Whether an image encoder has a position table; rotary positions are DINOv3's."""
    return getattr(objective.image, "rotary", None) is None


FORMAT = Format(
    "huggingface", NAME, (Encoder, IBOT), (WEIGHTS, CONFIG), detect, read_model, write_folder, USAGE,
    fits=fits, configured=True, select=vit.encoder_of, difference=difference, narrow=True, shards=True, order=8,
)  # fmt: skip
