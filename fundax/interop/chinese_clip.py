"""The Hugging Face ChineseCLIPModel format: CLIP's image encoder, a BERT read at its first token, one projection each.

Key names are those of the files that transformers' public repository reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fundax.encoders.bert import BERT
from fundax.encoders.vit import ViT
from fundax.interop import bert, huggingface, keymap, processor
from fundax.interop.checkpoint import OPENAI, Checkpoint, Format
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of
from fundax.objectives.clip import CLIP
from fundax.runtime.workdir import read_json
from fundax.types import Params, UserError

NAME = "Hugging Face ChineseCLIPModel"
IGNORED = (*huggingface.IGNORED, "embeddings.token_type_ids", *(f"text_model.{key}" for key in bert.UNUSED))


def detect(state: State) -> bool:
    """Whether these are the keys of a ChineseCLIPModel."""
    return {"text_model.embeddings.word_embeddings.weight", "visual_projection.weight"} <= state.keys()


def rows(objective: CLIP) -> list[Row]:
    """The table of every parameter: its path with ChineseCLIPModel's key and layout."""
    return [
        Row("log_scale", ("logit_scale",), keymap.SAME),
        *huggingface.vision_rows(objective.image.depth),
        *keymap.linear("project/image", "visual_projection", bias=False),
        *bert.bert_rows("text", "text_model", objective.text.depth),
        *keymap.linear("project/text", "text_projection", bias=False),
    ]


def to_fundax(state: State, config: Mapping[str, Any]) -> tuple[CLIP, Params]:
    """The objective that config.json describes and its parameters (fp32); UserError for keys or shapes that do not fit."""
    objective = objective_of(config)
    return objective, keymap.read(rows(objective), state, keymap.shapes_of(objective), NAME, IGNORED)


def from_fundax(objective: CLIP, params: Params) -> State:
    """The state dict (fp32). Raises UserError for a model that ChineseCLIPModel cannot hold."""
    check(objective)
    return keymap.write(rows(objective), params, NAME)


def objective_of(config: Mapping[str, Any]) -> CLIP:
    """The objective of a config.json of model_type "chinese_clip". Raises UserError for another model or activation."""
    if config.get("model_type") != "chinese_clip":
        raise UserError(f"config.json is of model_type {config.get('model_type')!r}; expected 'chinese_clip'")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    image = ViT(
        image_size=vision.get("image_size", 224),
        patch=vision.get("patch_size", 32),
        depth=vision.get("num_hidden_layers", 12),
        **huggingface.shared({"intermediate_size": 3072, **vision}, 768, 12, "vision_config"),
    )
    words = bert.objective_of({**text, "model_type": "bert"}).text
    return CLIP(
        image, words, config.get("projection_dim", 512), init_logit_scale=config.get("logit_scale_init_value", 2.6592)
    )


def described(path: Path) -> CLIP | None:
    """The model of a folder without its weights, with the mean and deviation of its image processor; None of another class."""
    config = read_json(path / huggingface.CONFIG)
    if config.get("model_type") != "chinese_clip":
        return None
    facts = processor.preprocessing_of(processor.read(path), path)
    return dataclasses.replace(objective_of(config), mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def config_of(objective: CLIP) -> dict[str, Any]:
    """config.json of the ChineseCLIPModel. Raises UserError for a model that it cannot hold."""
    check(objective)
    image = huggingface.vision_config(objective.image) | {"model_type": "chinese_clip_vision_model"}
    assert isinstance(objective.text, BERT)  # which check says
    text = bert.model_config(objective.text) | {"model_type": "chinese_clip_text_model"}
    for part in (image, text):
        del part["architectures"], part["dtype"]
    return {
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "dtype": "float32",
        "projection_dim": objective.embed,
        "logit_scale_init_value": objective.init_logit_scale,
        "vision_config": image,
        "text_config": text,
    }


def check(objective: CLIP) -> None:
    """Raise UserError naming what ChineseCLIPModel does not have."""
    image, text = objective.image, objective.text
    wrong = huggingface.wrong_image(image) | {
        f"a {type(text).__name__} of texts": not isinstance(text, BERT),
        "text pooling other than the first token": (getattr(text, "pool", ""), getattr(text, "pool_layers", ()))
        != ("cls", (-1,)),
        "features of images without projection": not objective.image_projection,
        "a text projection with bias": objective.text_bias,
        "a bias of the logits": objective.init_logit_bias is not None,
    }
    if any(wrong.values()):
        raise UserError(f"{NAME} cannot hold {', '.join(words for words, yes in wrong.items() if yes)}")


def fits(objective: CLIP) -> bool:
    """Whether a CLIP reads texts with a BERT."""
    return isinstance(objective.text, BERT)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write the folder that transformers' AutoModel, AutoProcessor and pipelines open without fundax.

    Raises UserError for a model that ChineseCLIPModel cannot hold, and for a folder that is there and not empty.
    """
    state = from_fundax(model.objective, model.params)
    kind = "ChineseCLIPImageProcessor"
    huggingface.write_files(model, out, overwrite, config_of(model.objective), state, kind)


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of weights with config.json in their folder; UserError for anything missing, damaged or of another model."""
    del modality
    path = folder_of(path)
    objective, params = to_fundax(state, read_json(path / huggingface.CONFIG))
    settings, size = processor.read(path), objective.image.image_size
    facts = processor.preprocessing_of(settings or {"size": size, "crop_size": size}, path)
    moments = {name: tuple(facts[name]) for name in ("mean", "std")}
    return Checkpoint(dataclasses.replace(objective, **moments), params, facts, assumed="" if settings else OPENAI)


FORMAT = Format(
    "huggingface", NAME, (CLIP,), (huggingface.WEIGHTS, huggingface.CONFIG), detect, read_model, write_folder,
    huggingface.USAGE, fits=fits, configured=True, difference=huggingface.difference, narrow=True, shards=True,
    objective_of=described, order=3,
)  # fmt: skip
