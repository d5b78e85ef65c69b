"""The open_clip format: CLIP and CustomTextCLIP with open_clip's own ViT and text transformer (open_clip 2.30 to 3.3).

Key names and the meaning of open_clip_config.json are those of the public repository mlfoundations/open_clip."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fundax.encoders import layers
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import folder, keymap
from fundax.interop.checkpoint import OPENAI, Checkpoint, Format, clip_text, largest_difference, preprocessing_of, probe
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP, MEAN, STD
from fundax.objectives.ret_clip import RetCLIP
from fundax.runtime.workdir import read_json, write_json
from fundax.types import Extra, Params, UserError

NAME = "open_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
CLIP_VOCABULARY = 49408
# A buffer of older versions, and what OpenAI's files say of their sizes in tensors.
IGNORED = ("attn_mask", "context_length", "input_resolution", "vocab_size")
_RESIZE, _INTERPOLATION = ("squash", "shortest", "longest"), ("bicubic", "bilinear")
_POOL = {"tok": "token", "avg": "mean"}
_TEXT_POOL = {"argmax": "argmax", "eos": "eot", "last": "last", "first": "first"}
# Fields of open_clip's configuration that are read here, and those that change no number of the model.
_VISION = {
    *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "pool_type", "final_ln_after_pool"),
    *("no_ln_pre", "ls_init_value", "patch_dropout", "norm_kwargs", "act_kwargs", "output_tokens"),
}
_TEXT = {
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "no_causal_mask"),
    *("proj_bias", "ls_init_value", "norm_kwargs", "act_kwargs", "eos_id", "bos_id", "pad_id", "output_tokens"),
    *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "final_ln_after_pool"),
}
_MODEL = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"),
    *("nonscalar_logit_scale", "output_dict", "cast_dtype"),
}
USAGE = """
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
"""


def detect(state: State) -> bool:
    """Whether these are the keys of an open_clip model with open_clip's own ViT and text transformer."""
    needed = {"visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"}
    return needed <= state.keys() and bool({"token_embedding.weight", "text.token_embedding.weight"} & state.keys())


def to_fundax(state: State, config: Mapping[str, Any]) -> tuple[CLIP, Params]:
    """The objective that `config` describes and its parameters (fp32).

    Args:
        state: open_clip's state dict, its text encoder at the top or under "text.".
        config: open_clip_config.json, or its "model_cfg" alone.
    Raises:
        UserError: a field of `config` that has no counterpart here; keys or shapes that do not fit it.
    """
    objective = objective_of(config)
    return objective, read(objective, state, NAME)


def from_fundax(objective: CLIP, params: Params, custom_text: bool | None = None) -> State:
    """open_clip's state dict (fp32) of a CLIP. `custom_text` None takes CustomTextCLIP only where it is needed.

    Raises UserError for a model that open_clip cannot hold.
    """
    check(objective)
    custom_text = needs_custom_text(objective) if custom_text is None else custom_text
    return keymap.write(rows(objective, custom_text), params, NAME)


def read(objective: CLIP, state: State, source: str) -> Params:
    """Parameters for `objective` from a state dict whose model it fits. Raises UserError naming keys that do not."""
    state = without_decoder(state)
    return keymap.read(table(objective, state), state, keymap.shapes_of(objective), source, IGNORED)


def without_decoder(state: State) -> State:
    """Remove the masked-image decoder that EyeCLIP's released file holds in its image encoder."""
    return {key: value for key, value in state.items() if not key.startswith(("visual.decoder.", "visual.decoder_"))}


def read_as(objective: CLIP | RetCLIP, state: State, source: str) -> tuple[Params, Extra]:
    """Read parameters with position tables of their stored length; of a RetCLIP the encoders and the image projection."""
    state = without_decoder(state)
    if isinstance(objective, RetCLIP):
        width = state["visual.proj"].shape[1] if "visual.proj" in state else objective.embed
        params, extra = read_as(CLIP(objective.image, objective.text, width), state, source)
        del params["project"]["text"]
        return {name: params[name] for name in ("image", "text", "project")}, extra
    found = table(objective, state)
    shapes = keymap.stored_positions(found, state, keymap.shapes_of(objective))
    return keymap.read(found, state, shapes, source, IGNORED), {}


def table(objective: CLIP, state: State) -> list[Row]:
    """The rows that fit a state dict. Raises UserError for a model that open_clip cannot hold."""
    check(objective)
    return rows(objective, custom_text=any(key.startswith("text.") for key in state))


def rows(objective: CLIP, custom_text: bool) -> list[Row]:
    """The table of every parameter: its path with open_clip's key and layout."""
    image, text, prefix = objective.image, clip_text(objective, NAME), "text." if custom_text else ""
    found = [
        Row("log_scale", ("logit_scale",), keymap.SAME),
        Row("image/class_token", ("visual.class_embedding",), keymap.SAME),
        Row("image/position", ("visual.positional_embedding",), keymap.SAME),
        Row("image/patch/kernel", ("visual.conv1.weight",), keymap.CONV),
        *(keymap.norm("image/pre_norm", "visual.ln_pre") if image.pre_norm else []),
        *_blocks("image", "visual.", image),
        *keymap.norm("image/norm", "visual.ln_post"),
        Row("project/image/kernel", ("visual.proj",), keymap.SAME),
        Row("text/token/embedding", (f"{prefix}token_embedding.weight",), keymap.SAME),
        Row("text/position", (f"{prefix}positional_embedding",), keymap.SAME),
        *_blocks("text", prefix, text),
        *keymap.norm("text/norm", f"{prefix}ln_final"),
    ]
    if objective.init_logit_bias is not None:
        found.append(Row("logit_bias", ("logit_bias",), keymap.SAME))
    if objective.text_bias:
        return found + keymap.linear("project/text", f"{prefix}text_projection")
    return [*found, Row("project/text/kernel", (f"{prefix}text_projection",), keymap.SAME)]


def _blocks(ours: str, theirs: str, tower: ViT | TextTransformer) -> list[Row]:
    found = []
    for i in range(tower.depth):
        here, there = f"{ours}/block_{i}", f"{theirs}transformer.resblocks.{i}"
        found += keymap.clip_block(here, there)
        if tower.layer_scale is not None:
            found += keymap.layer_scale(here, f"{there}.ls_{{n}}.gamma")
    return found


# ------------------------------------------------------------------------------------- configuration


def objective_of(config: Mapping[str, Any]) -> CLIP:
    """The objective of an open_clip_config.json, or of its "model_cfg" alone.

    Raises UserError for a field that is missing or has no counterpart here: ResNet, timm and Hugging Face encoders.
    """
    preprocess, config = config.get("preprocess_cfg", {}), config.get("model_cfg", config)
    for part in ("vision_cfg", "text_cfg", "embed_dim"):
        if part not in config:
            raise UserError(f"the open_clip configuration has no '{part}'")
    vision, text = config["vision_cfg"], config["text_cfg"]
    _refuse_others(config, _MODEL, "")
    _refuse_others(vision, _VISION, "vision_cfg.")
    _refuse_others(text, _TEXT, "text_cfg.")
    bias = config.get("init_logit_bias")
    return CLIP(
        image=_image_tower(vision, _activation(config, vision)),
        text=_text_tower(text, _activation(config, text)),
        embed=config["embed_dim"],
        mean=tuple(preprocess.get("mean", MEAN)),
        std=tuple(preprocess.get("std", STD)),
        contrast=contrastive.softmax_contrastive if bias is None else contrastive.sigmoid_contrastive,
        text_bias=bool(text.get("proj_bias", False)),
        init_logit_scale=config.get("init_logit_scale", math.log(1 / 0.07)),
        init_logit_bias=bias,
    )


def _image_tower(cfg: Mapping[str, Any], activation: layers.Activation) -> ViT:
    if not isinstance(cfg.get("layers", 12), int):
        raise UserError("vision_cfg.layers is a list: ResNet encoders of open_clip are not supported, only ViTs")
    sizes = cfg.get("image_size", 224)
    sizes = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
    if len(set(sizes)) != 1:
        raise UserError(f"vision_cfg.image_size is {sizes}; only square images are supported")
    width = cfg.get("width", 768)
    return ViT(
        image_size=sizes[0],
        patch=cfg.get("patch_size", 16),
        width=width,
        depth=cfg.get("layers", 12),
        heads=width // cfg.get("head_width", 64),
        pre_norm=not cfg.get("no_ln_pre", False),
        pool=_choice(_POOL, cfg.get("pool_type", "tok"), "vision_cfg.pool_type"),
        norm_after_pool=bool(cfg.get("final_ln_after_pool", False)),
        mask_ratio=cfg.get("patch_dropout", 0.0),
        **_shared(cfg, activation),
    )


def _text_tower(cfg: Mapping[str, Any], activation: layers.Activation) -> TextTransformer:
    pool = _choice(_TEXT_POOL, cfg.get("pool_type", "argmax"), "text_cfg.pool_type")
    return TextTransformer(
        vocab=cfg.get("vocab_size", 49408),
        context=cfg.get("context_length", 77),
        width=cfg.get("width", 512),
        depth=cfg.get("layers", 12),
        heads=cfg.get("heads", 8),
        causal=not cfg.get("no_causal_mask", False),
        pool=pool,
        eot_id=cfg.get("eos_id", 2) if pool == "eot" else None,
        **_shared(cfg, activation),
    )


def _shared(cfg: Mapping[str, Any], activation: layers.Activation) -> dict[str, Any]:
    return {
        "mlp_ratio": cfg.get("mlp_ratio", 4.0),
        "activation": activation,
        "epsilon": (cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
        "layer_scale": cfg.get("ls_init_value"),
    }


def _activation(config: Mapping[str, Any], tower: Mapping[str, Any]) -> layers.Activation:
    if config.get("quick_gelu", False):
        return layers.quick_gelu
    return layers.gelu_tanh if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else layers.gelu_exact


def _choice(table: Mapping[str, str], value: str, field: str) -> Any:
    if value not in table:
        raise UserError(f"{field} is '{value}'; supported: {', '.join(table)}")
    return table[value]


def _refuse_others(cfg: Mapping[str, Any], known: set[str], prefix: str) -> None:
    """Raise UserError for unknown fields that are switched on."""
    if others := sorted(f"{prefix}{key}" for key, value in cfg.items() if key not in known and value):
        raise UserError(f"the open_clip configuration has fields without a counterpart here: {', '.join(others)}")


def config_of(objective: CLIP) -> dict[str, Any]:
    """The "model_cfg" with which open_clip builds this model. Raises UserError if it cannot."""
    check(objective)
    image, text = objective.image, clip_text(objective, NAME)
    pools = {ours: theirs for theirs, ours in (_POOL | _TEXT_POOL).items()}
    vision_cfg = {
        "image_size": image.image_size,
        "patch_size": image.patch,
        "width": image.width,
        "layers": image.depth,
        "head_width": image.width // image.heads,
        **({"no_ln_pre": True} if not image.pre_norm else {}),
        **({"pool_type": pools[image.pool]} if image.pool != "token" else {}),
        **({"final_ln_after_pool": True} if image.norm_after_pool else {}),
        **_shared_config(image),
    }
    text_cfg = {
        "context_length": text.context,
        "vocab_size": text.vocab,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        **({"no_causal_mask": True} if not text.causal else {}),
        **({"pool_type": pools[text.pool]} if text.pool != "argmax" else {}),
        **({"eos_id": text.eot_id} if text.pool == "eot" else {}),
        **({"proj_bias": True} if objective.text_bias else {}),
        **_shared_config(text),
    }
    bias = objective.init_logit_bias
    return {
        "embed_dim": objective.embed,
        "quick_gelu": image.activation is layers.quick_gelu,
        **({"custom_text": True} if needs_custom_text(objective) else {}),
        "init_logit_scale": objective.init_logit_scale,
        **({"init_logit_bias": bias} if bias is not None else {}),
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
    }


def _shared_config(tower: ViT | TextTransformer) -> dict[str, Any]:
    return {
        **({"mlp_ratio": tower.mlp_ratio} if tower.mlp_ratio != 4 else {}),
        **({"ls_init_value": tower.layer_scale} if tower.layer_scale is not None else {}),
        **({"norm_kwargs": {"eps": tower.epsilon}} if tower.epsilon != 1e-5 else {}),
        **({"act_kwargs": {"approximate": "tanh"}} if tower.activation is layers.gelu_tanh else {}),
    }


def needs_custom_text(objective: CLIP) -> bool:
    """Whether open_clip needs CustomTextCLIP instead of its CLIP class for this model."""
    text = clip_text(objective, NAME)
    plain = text.causal and text.pool == "argmax" and not objective.text_bias
    return not plain or objective.init_logit_bias is not None


def check(objective: CLIP) -> None:
    """Raise UserError naming what open_clip's own encoders do not have."""
    if not isinstance(objective, CLIP):
        raise UserError(f"{NAME} holds CLIP models, not {type(objective).__name__}")
    image, text = objective.image, clip_text(objective, NAME)
    known = (layers.quick_gelu, layers.gelu_exact, layers.gelu_tanh)
    wrong = {
        "an image encoder without class token": not image.class_token,
        "a patch embedding with bias": image.patch_bias,
        "attention without bias": not image.qkv_bias,
        "registers or rotary positions": bool(image.registers) or image.rotary is not None,
        f"pooling by {image.pool}": image.pool not in _POOL.values(),
        "another activation": image.activation not in known or text.activation not in known,
        "features of images without projection (SigLIP)": not objective.image_projection,
        "QuickGELU in one encoder only": (image.activation is known[0]) != (text.activation is known[0]),
    }
    if any(wrong.values()):
        raise UserError(f"{NAME} cannot hold {', '.join(words for words, yes in wrong.items() if yes)}")


# ------------------------------------------------------------------------------------------- folders


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that `open_clip.create_model_from_pretrained("local-dir:OUT")` opens.

    Raises UserError for a model that open_clip cannot hold, and for a folder that is there and not empty.
    """
    config = {"model_cfg": config_of(model.objective), "preprocess_cfg": _preprocess_config(model)}
    state = from_fundax(model.objective, model.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        folder.write_model(temporary, WEIGHTS, state, model, {})
        if model.tokenizer is not None and not _is_clip_vocabulary(temporary):
            # with any name, open_clip reads the tokenizer from the folder instead of using CLIP's
            config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "fundax"
        write_json(temporary / CONFIG, config)
        folder.write_card(temporary, model, "open_clip", USAGE)


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of weights with open_clip_config.json in their folder; the tokenizer's files are left to the caller.

    Raises UserError for anything missing, damaged or without a counterpart here.
    """
    config = read_json(folder_of(path) / CONFIG)
    objective, params = to_fundax(state, config)
    stored, size = config.get("preprocess_cfg", {}), objective.image.image_size
    if stored.get("size", size) not in (size, [size, size], (size, size)):
        raise UserError(f"{path}: preprocess_cfg.size is {stored['size']}, but the model takes {size} pixels")
    facts = {
        "image_size": size,
        "mean": list(objective.mean),
        "std": list(objective.std),
        "resize": stored.get("resize_mode", "shortest"),
        "interpolation": stored.get("interpolation", "bicubic"),
    }
    return Checkpoint(objective, params, facts, assumed="" if stored else OPENAI)


def difference(path: str | Path, model: Checkpoint) -> float | None:
    """Largest difference of unit features between the folder in open_clip and the model here; None without open_clip."""
    try:
        import torch

        open_clip = importlib.import_module("open_clip")  # this file has the same name
    except ImportError:
        return None
    image, text = probe(model)
    program, _ = open_clip.create_model_from_pretrained(f"local-dir:{Path(path).absolute()}")
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())  # [B 3 h w]
        features = program.eval()(pixels, torch.from_numpy(text).long())[:2]
    return largest_difference(model, image, text, features[0].numpy(), features[1].numpy())


def _preprocess_config(model: Checkpoint) -> dict[str, Any]:
    facts = preprocessing_of(model)
    if facts["resize"] not in _RESIZE or facts["interpolation"] not in _INTERPOLATION:
        raise UserError(f"{NAME} has no resize '{facts['resize']}' with interpolation '{facts['interpolation']}'")
    return {
        "size": facts["image_size"],
        "mean": facts["mean"],
        "std": facts["std"],
        "interpolation": facts["interpolation"],
        "resize_mode": facts["resize"],
    }


def _is_clip_vocabulary(path: Path) -> bool:
    """Whether the tokenizer saved there is the one open_clip has built in."""
    stored = read_json(path / "tokenizer_config.json").get("tokenizer_class", "")
    vocabulary = read_json(path / "tokenizer.json").get("model", {}).get("vocab", {})
    return str(stored).startswith("CLIP") and len(vocabulary) == CLIP_VOCABULARY


FORMAT = Format(
    "open_clip", NAME, (CLIP,), (WEIGHTS, CONFIG), detect, read_model, write_folder, USAGE,
    configured=True, read_as=read_as, fills=(CLIP, RetCLIP), difference=difference, narrow=True,
    objective_of=lambda path: objective_of(read_json(path / CONFIG)), order=2,
)  # fmt: skip
