"""The Hugging Face CLIPModel format (transformers 4 and 5): state dicts, config.json and whole folders.

Key names are those of the files that transformers' public repository reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import folder, keymap, processor
from fundax.interop.checkpoint import OPENAI, Checkpoint, Format, clip_text, largest_difference, preprocessing_of, probe
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Extra, Params, UserError

NAME = "Hugging Face CLIPModel"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
IGNORED = ("embeddings.position_ids",)  # buffers in files of transformers 4
ACTIVATIONS = {
    "quick_gelu": layers.quick_gelu,
    "gelu": layers.gelu_exact,
    "gelu_pytorch_tanh": layers.gelu_tanh,
}
_LEGACY_EOS = 2  # in old configs: pool at the highest id, wherever it is
USAGE = """
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="FOLDER")
print(classify("eye.jpg", candidate_labels=["diabetic retinopathy", "a healthy eye"], hypothesis_template="{}"))
"""


def detect(state: State) -> bool:
    """Whether these are the keys of a CLIPModel."""
    return {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"} <= state.keys()


def to_fundax(state: State, config: Mapping[str, Any]) -> tuple[CLIP, Params]:
    """The objective that config.json describes and its parameters (fp32).

    Raises UserError for a config of another model, and for keys or shapes that do not fit it.
    """
    objective = objective_of(config)
    return objective, read(objective, state, NAME)


def from_fundax(objective: CLIP, params: Params) -> State:
    """The state dict (fp32) of a CLIPModel; a logit_bias is left out, as it changes no ranking.

    Raises UserError for a model that CLIPModel cannot hold.
    """
    check(objective)
    return keymap.write(rows(objective), {k: v for k, v in params.items() if k != "logit_bias"}, NAME)


def read(objective: CLIP, state: State, source: str) -> Params:
    """Parameters for `objective` from a state dict whose model it fits. Raises UserError naming keys that do not."""
    check(objective)
    return keymap.read(rows(objective), state, keymap.shapes_of(objective), source, IGNORED)


def read_as(objective: CLIP, state: State, source: str) -> tuple[Params, Extra]:
    """Read parameters, without extra state; position tables keep their stored length."""
    check(objective)
    shapes = keymap.stored_positions(rows(objective), state, keymap.shapes_of(objective))
    return keymap.read(rows(objective), state, shapes, source, IGNORED), {}


def rows(objective: CLIP) -> list[Row]:
    """The table of every parameter: its path with CLIPModel's key and layout."""
    text = "text_model"
    return [
        Row("log_scale", ("logit_scale",), keymap.SAME),
        *vision_rows(objective.image.depth),
        *keymap.linear("project/image", "visual_projection", bias=False),
        Row("text/token/embedding", (f"{text}.embeddings.token_embedding.weight",), keymap.SAME),
        Row("text/position", (f"{text}.embeddings.position_embedding.weight",), keymap.SAME),
        *blocks("text", text, objective.text.depth),
        *keymap.norm("text/norm", f"{text}.final_layer_norm"),
        *keymap.linear("project/text", "text_projection", bias=False),
    ]


def vision_rows(depth: int) -> list[Row]:
    """The rows of the image encoder, which are those of a CLIPVisionModel."""
    vision = "vision_model"
    return [
        Row("image/class_token", (f"{vision}.embeddings.class_embedding",), keymap.SAME),
        Row("image/position", (f"{vision}.embeddings.position_embedding.weight",), keymap.SAME),
        Row("image/patch/kernel", (f"{vision}.embeddings.patch_embedding.weight",), keymap.CONV),
        *keymap.norm("image/pre_norm", f"{vision}.pre_layrnorm"),  # their spelling
        *blocks("image", vision, depth),
        *keymap.norm("image/norm", f"{vision}.post_layernorm"),
    ]


def blocks(ours: str, theirs: str, depth: int) -> list[Row]:
    """The rows of the transformer blocks of an encoder, which SiglipModel has too."""
    found = []
    for i in range(depth):
        here, there = f"{ours}/block_{i}", f"{theirs}.encoder.layers.{i}"
        qkv = [f"{there}.self_attn.{name}_proj" for name in "qkv"]
        found += [
            *keymap.norm(f"{here}/norm1", f"{there}.layer_norm1"),
            *keymap.split_attention(f"{here}/attention", qkv),
            *keymap.linear(f"{here}/attention/out", f"{there}.self_attn.out_proj"),
            *keymap.norm(f"{here}/norm2", f"{there}.layer_norm2"),
            *keymap.linear(f"{here}/mlp/fc1", f"{there}.mlp.fc1"),
            *keymap.linear(f"{here}/mlp/fc2", f"{there}.mlp.fc2"),
        ]
    return found


# ------------------------------------------------------------------------------------- configuration


def objective_of(config: Mapping[str, Any]) -> CLIP:
    """The objective of a config.json of model_type "clip". Raises UserError for another model or activation."""
    if config.get("model_type") != "clip":
        raise UserError(f"config.json is of model_type {config.get('model_type')!r}; expected 'clip'")
    # transformers 4 wrote the values that differ from the defaults a second time, and those count
    vision = {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    text = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    vocab, eos = text.get("vocab_size", 49408), text.get("eos_token_id", 49407)
    highest = eos in (_LEGACY_EOS, vocab - 1)
    return CLIP(
        image=ViT(
            image_size=vision.get("image_size", 224),
            patch=vision.get("patch_size", 32),
            depth=vision.get("num_hidden_layers", 12),
            **shared(vision, 768, 12, "vision_config"),
        ),
        text=TextTransformer(
            vocab=vocab,
            context=text.get("max_position_embeddings", 77),
            depth=text.get("num_hidden_layers", 12),
            pool="argmax" if highest else "eot",
            eot_id=None if highest else eos,
            **shared(text, 512, 8, "text_config"),
        ),
        embed=config.get("projection_dim", 512),
        init_logit_scale=config.get("logit_scale_init_value", 2.6592),
    )


def described(path: Path) -> CLIP | None:
    """The model of a folder without its weights, with the mean and deviation of its image processor; None of another class."""
    config = read_json(path / CONFIG)
    if config.get("model_type") != "clip":
        return None
    facts = processor.preprocessing_of(processor.read(path), path)
    return dataclasses.replace(objective_of(config), mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def shared(cfg: Mapping[str, Any], width: int, heads: int, where: str) -> dict[str, Any]:
    """The fields that both encoders have, of a part of config.json named `where`, with its defaults."""
    name = cfg.get("hidden_act", "quick_gelu")
    if name not in ACTIVATIONS:
        raise UserError(f"{where}.hidden_act is '{name}'; supported: {', '.join(ACTIVATIONS)}")
    width = cfg.get("hidden_size", width)
    return {
        "width": width,
        "heads": cfg.get("num_attention_heads", heads),
        "mlp_ratio": cfg.get("intermediate_size", 4 * width) / width,
        "activation": ACTIVATIONS[name],
        "epsilon": cfg.get("layer_norm_eps", 1e-5),
    }


def config_of(objective: CLIP, tokenizer: Any = None) -> dict[str, Any]:
    """config.json of the CLIPModel. `tokenizer` (with start, end, pad) says where texts end; without one they end
    with the highest id of the vocabulary. Raises UserError for a model that CLIPModel cannot hold."""
    check(objective)
    image, text = objective.image, clip_text(objective, NAME)
    end = text.eot_id if text.pool == "eot" else getattr(tokenizer, "end", text.vocab - 1)
    if end == _LEGACY_EOS:
        raise UserError(f"{NAME} takes the end-of-text id {_LEGACY_EOS} for 'the highest id': use another vocabulary")
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": objective.embed,
        "logit_scale_init_value": objective.init_logit_scale,
        "vision_config": _vision_config(image, objective.embed),
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "bos_token_id": getattr(tokenizer, "start", text.vocab - 2),
            "eos_token_id": end,
            "pad_token_id": getattr(tokenizer, "pad", 0),
            **shared_config(text),
            "projection_dim": objective.embed,
        },
    }


def vision_config(tower: ViT) -> dict[str, Any]:
    """config.json of a CLIPVisionModel."""
    return {"architectures": ["CLIPVisionModel"], "dtype": "float32", **_vision_config(tower, tower.width)}


def _vision_config(tower: ViT, embed: int) -> dict[str, Any]:
    size = {"image_size": tower.image_size, "patch_size": tower.patch, "num_channels": 3}
    return {"model_type": "clip_vision_model", **size, **shared_config(tower), "projection_dim": embed}


def shared_config(tower: ViT | TextTransformer) -> dict[str, Any]:
    """The inverse of `shared`."""
    return {
        "hidden_size": tower.width,
        "intermediate_size": int(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": next(name for name, function in ACTIVATIONS.items() if function is tower.activation),
        "layer_norm_eps": tower.epsilon,
    }


def check(objective: CLIP) -> None:
    """Raise UserError naming what CLIPModel does not have."""
    if not isinstance(objective, CLIP):
        raise UserError(f"{NAME} holds CLIP models, not {type(objective).__name__}")
    image, text = objective.image, clip_text(objective, NAME)
    wrong = wrong_image(image) | {
        "layer scale of texts": text.layer_scale is not None,
        "another activation of texts": text.activation not in ACTIVATIONS.values(),
        "a text encoder without causal mask": not text.causal,
        f"text pooling by {text.pool}": text.pool not in ("argmax", "eot"),
        "a text projection with bias": objective.text_bias,
        "features of images without projection": not objective.image_projection,
    }
    if any(wrong.values()):
        raise UserError(f"{NAME} cannot hold {', '.join(words for words, yes in wrong.items() if yes)}")


def wrong_image(image: ViT) -> dict[str, bool]:
    """What CLIP's image encoder does not have -> whether this one has it."""
    return {
        "an image encoder without class token": not image.class_token,
        "a patch embedding with bias": image.patch_bias,
        "attention without bias": not image.qkv_bias,
        "an image encoder without a norm before its blocks": not image.pre_norm,
        f"image pooling by {image.pool}": image.pool != "token",
        "registers or rotary positions": bool(image.registers) or image.rotary is not None,
        "layer scale": image.layer_scale is not None,
        "another activation": image.activation not in ACTIVATIONS.values(),
    }


def fits(objective: CLIP) -> bool:
    """Whether a CLIP is of none of the other classes of transformers."""
    return objective.image_projection and isinstance(objective.text, TextTransformer)


# ------------------------------------------------------------------------------------------- folders


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModel, AutoProcessor and pipelines open without fundax.

    Raises UserError for a model that CLIPModel cannot hold, and for a folder that is there and not empty.
    """
    config, bias = config_of(model.objective, model.tokenizer), model.params.get("logit_bias")
    state = from_fundax(model.objective, model.params)
    left_out = {} if bias is None else {"logit_bias": float(bias)}
    write_files(model, out, overwrite, config, state, "CLIPImageProcessor", left_out)


def write_files(
    model: Checkpoint, out: str | Path, overwrite: bool, config: Mapping[str, Any], state: State, kind: str,
    left_out: Mapping[str, Any] | None = None, words: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a folder of an image-text model. Raises UserError for one that is not empty.

    kind: of the image processor. words: settings of the tokenizer besides its own.
    """
    preprocessor = processor.config_of(preprocessing_of(model), kind)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, left_out or {})
        write_json(temporary / CONFIG, config)
        write_json(temporary / processor.FILE, preprocessor)
        if words and model.tokenizer is not None:
            write_json(temporary / TOKENIZER, read_json(temporary / TOKENIZER) | dict(words))
        folder.write_card(temporary, model, "transformers", USAGE)


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of weights with config.json in their folder; the tokenizer's files are left to the caller.

    Parameters that fundax left out when it wrote the folder come back from its record.
    Raises UserError for anything missing, damaged or of another model.
    """
    path = folder_of(path)
    objective, params = to_fundax(state, read_json(path / CONFIG))
    settings, size = processor.read(path), objective.image.image_size
    facts = processor.preprocessing_of(settings or {"size": size, "crop_size": size}, path)
    left_out = folder.read_record(path).get("left_out", {})
    bias = left_out.get("logit_bias")
    changes: dict[str, Any] = {"mean": tuple(facts["mean"]), "std": tuple(facts["std"])}
    if bias is not None:
        params["logit_bias"] = np.float32(bias).reshape(())
        changes |= {"init_logit_bias": float(bias), "contrast": contrastive.sigmoid_contrastive}
    assumed = "" if settings else OPENAI
    return Checkpoint(dataclasses.replace(objective, **changes), params, facts, assumed=assumed)


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """Largest difference of unit features between the folder in transformers and the model here; None without torch."""
    try:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError:
        return None
    logging.disable_progress_bar()
    image, text = probe(model)
    program, report = AutoModel.from_pretrained(str(path), dtype=torch.float32, output_loading_info=True)
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise UserError(f"{path}: transformers does not find its keys: {report}")
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())  # [B 3 h w]
    with torch.no_grad():
        ids = torch.from_numpy(text).long()
        mask = {"attention_mask": ids != model.objective.text.pad_id} if hasattr(model.objective.text, "pad_id") else {}
        found = program.eval()(pixel_values=pixels, input_ids=ids, **mask)
    return largest_difference(model, image, text, found.image_embeds.numpy(), found.text_embeds.numpy())


FORMAT = Format(
    "huggingface", NAME, (CLIP,), (WEIGHTS, CONFIG), detect, read_model, write_folder, USAGE,
    fits=fits, configured=True, read_as=read_as, difference=difference, narrow=True, shards=True, objective_of=described, order=3,
)  # fmt: skip
