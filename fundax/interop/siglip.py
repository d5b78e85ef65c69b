"""The Hugging Face SiglipModel format: a ViT with attention pooling and a bidirectional text transformer.

Key names are those of the files that transformers' public repository reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import huggingface, keymap, processor, vit
from fundax.interop.checkpoint import Checkpoint, Format, clip_text
from fundax.interop.keymap import Layout, Row
from fundax.interop.weights import State, folder_of
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP
from fundax.runtime.workdir import read_json
from fundax.types import Params, UserError

NAME = "Hugging Face SiglipModel"
NUMBER = Layout(lambda t: t[0].reshape(()), lambda x: [x.reshape(1)])  # stored as [1]
DEFAULTS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}  # of SiglipImageProcessor
ASSUMED = "mean and deviation 0.5, squashed to a square"
CONTEXT = 64  # transformers' pipeline pads texts to this length, and the text encoder reads the padding
_IMAGE: dict[str, Any] = {
    "class_token": False,
    "patch_bias": True,
    "pre_norm": False,
    "pool": "attention",
    "norm_after_pool": False,
}


def detect(state: State) -> bool:
    """Whether these are the keys of a SiglipModel."""
    return {"vision_model.head.probe", "text_model.head.weight"} <= state.keys()


def rows(objective: CLIP) -> list[Row]:
    """The table of every parameter: its path with SiglipModel's key and layout."""
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    return [
        Row("log_scale", ("logit_scale",), NUMBER),
        Row("logit_bias", ("logit_bias",), NUMBER),
        Row("image/position", (f"{vision}.embeddings.position_embedding.weight",), keymap.SAME),
        Row("image/patch/kernel", (f"{vision}.embeddings.patch_embedding.weight",), keymap.CONV),
        Row("image/patch/bias", (f"{vision}.embeddings.patch_embedding.bias",), keymap.SAME),
        *huggingface.blocks("image", vision, objective.image.depth),
        *keymap.norm("image/norm", f"{vision}.post_layernorm"),
        Row("image/pool/probe", (f"{head}.probe",), vit.ONE),
        *keymap.packed_attention("image/pool/attention", f"{head}.attention"),
        *keymap.linear("image/pool/attention/out", f"{head}.attention.out_proj"),
        *keymap.norm("image/pool/norm", f"{head}.layernorm"),
        *keymap.linear("image/pool/mlp/fc1", f"{head}.mlp.fc1"),
        *keymap.linear("image/pool/mlp/fc2", f"{head}.mlp.fc2"),
        Row("text/token/embedding", (f"{text}.embeddings.token_embedding.weight",), keymap.SAME),
        Row("text/position", (f"{text}.embeddings.position_embedding.weight",), keymap.SAME),
        *huggingface.blocks("text", text, objective.text.depth),
        *keymap.norm("text/norm", f"{text}.final_layer_norm"),
        *keymap.linear("project/text", f"{text}.head"),
    ]


def to_fundax(state: State, config: Mapping[str, Any]) -> tuple[CLIP, Params]:
    """The objective that config.json describes and its parameters (fp32); UserError for keys or shapes that do not fit."""
    objective = objective_of(config)
    table, shapes = rows(objective), keymap.shapes_of(objective)
    return objective, keymap.read(table, state, shapes, NAME, huggingface.IGNORED)


def from_fundax(objective: CLIP, params: Params) -> State:
    """The state dict (fp32). Raises UserError for a model that SiglipModel cannot hold."""
    check(objective)
    return keymap.write(rows(objective), params, NAME)


def objective_of(config: Mapping[str, Any]) -> CLIP:
    """The objective of a config.json of model_type "siglip". Raises UserError for another model or activation."""
    if config.get("model_type") != "siglip":
        raise UserError(f"config.json is of model_type {config.get('model_type')!r}; expected 'siglip'")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    if not vision.get("vision_use_head", True):
        raise UserError("vision_config.vision_use_head is false; expected a model with attention pooling")
    defaults = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "intermediate_size": 3072}
    image = ViT(
        image_size=vision.get("image_size", 224),
        patch=vision.get("patch_size", 16),
        depth=vision.get("num_hidden_layers", 12),
        **_IMAGE,
        **huggingface.shared(defaults | dict(vision), 768, 12, "vision_config"),
    )
    words = TextTransformer(
        vocab=text.get("vocab_size", 32000),
        context=text.get("max_position_embeddings", 64),
        depth=text.get("num_hidden_layers", 12),
        causal=False,
        pool="last",
        **huggingface.shared(defaults | dict(text), 768, 12, "text_config"),
    )
    embed = text.get("projection_size") or words.width
    return CLIP(
        image=image, text=words, embed=embed, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), text_bias=True, image_projection=False,
        contrast=contrastive.sigmoid_contrastive, init_logit_bias=0.0,
    )  # fmt: skip


def described(path: Path) -> CLIP | None:
    """The model of a folder without its weights, with the mean and deviation of its image processor; None of another class."""
    config = read_json(path / huggingface.CONFIG)
    if config.get("model_type") != "siglip":
        return None
    facts = _facts(path, 0)[0]
    return dataclasses.replace(objective_of(config), mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def config_of(objective: CLIP, tokenizer: Any = None) -> dict[str, Any]:
    """config.json of the SiglipModel. Raises UserError for a model that it cannot hold."""
    check(objective)
    image, text = objective.image, clip_text(objective, NAME)
    size = {"image_size": image.image_size, "patch_size": image.patch, "num_channels": 3}
    ids = {name: getattr(tokenizer, ours, None) for name, ours in (("bos", "start"), ("eos", "end"), ("pad", "pad"))}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "vision_config": {"model_type": "siglip_vision_model", **size, **huggingface.shared_config(image)},
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "projection_size": objective.embed,
            **{f"{name}_token_id": value for name, value in ids.items() if value is not None},
            **huggingface.shared_config(text),
        },
    }


def check(objective: CLIP) -> None:
    """Raise UserError naming what SiglipModel does not have."""
    image, text = objective.image, clip_text(objective, NAME)
    known = list(huggingface.ACTIVATIONS.values())
    wrong = {
        **{f"an image encoder with {name} = {getattr(image, name)}": getattr(image, name) != value
           for name, value in _IMAGE.items()},
        "registers or rotary positions": bool(image.registers) or image.rotary is not None,
        "attention without bias": not image.qkv_bias,
        "layer scale": image.layer_scale is not None or text.layer_scale is not None,
        "another activation": image.activation not in known or text.activation not in known,
        "a causal text encoder": text.causal,
        f"text pooling by {text.pool}": text.pool != "last",
        "an image projection": objective.image_projection,
        "a text projection without bias": not objective.text_bias,
        "logits without bias": objective.init_logit_bias is None,
        f"features of {objective.embed} numbers from an image encoder of {image.width}": objective.embed != image.width,
    }  # fmt: skip
    if any(wrong.values()):
        raise UserError(f"{NAME} cannot hold {', '.join(words for words, yes in wrong.items() if yes)}")


def fits(objective: CLIP) -> bool:
    """Whether a CLIP is one of SigLIP's architecture, which projects texts only."""
    return not objective.image_projection


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModel, AutoProcessor and pipelines open without fundax.

    Raises UserError for a model that SiglipModel cannot hold, and for a folder that is there and not empty.
    """
    config = config_of(model.objective, model.tokenizer)
    state = from_fundax(model.objective, model.params)
    kind = "SiglipImageProcessor"
    words = {"model_input_names": ["input_ids"]}  # a SiglipModel reads the padding, so that it must get no mask
    huggingface.write_files(model, out, overwrite, config, state, kind, words=words)


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of weights with config.json in their folder; UserError for anything missing, damaged or of another model."""
    del modality
    path = folder_of(path)
    objective, params = to_fundax(state, read_json(path / huggingface.CONFIG))
    facts, assumed = _facts(path, objective.image.image_size)
    moments = {name: tuple(facts[name]) for name in ("mean", "std")}
    bias = {"init_logit_bias": float(params["logit_bias"])}
    return Checkpoint(dataclasses.replace(objective, **moments, **bias), params, facts, assumed=assumed)


def _facts(path: Path, size: int) -> tuple[dict[str, Any], str]:
    """The preprocessing of a folder, and what was assumed where it says nothing."""
    settings = processor.read(path)
    default = {"image_processor_type": "SiglipImageProcessor", **DEFAULTS, "size": size or 1}
    return processor.preprocessing_of(settings or default, path), "" if settings else ASSUMED


FORMAT = Format(
    "huggingface", NAME, (CLIP,), (huggingface.WEIGHTS, huggingface.CONFIG), detect, read_model, write_folder,
    huggingface.USAGE, fits=fits, configured=True, difference=huggingface.difference, narrow=True, shards=True,
    objective_of=described, order=3,
)  # fmt: skip
