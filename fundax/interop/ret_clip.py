"""The RET-CLIP format, and Chinese-CLIP's as initial weights.

Key names are those of the public repositories sStonemason/RET-CLIP and OFA-Sys/Chinese-CLIP."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders.bert import BERT
from fundax.encoders.positions import aligned_corners, resize_positions
from fundax.encoders.vit import ViT
from fundax.interop import folder, keymap
from fundax.interop.bert import bert_rows
from fundax.interop.checkpoint import Checkpoint, Format, preprocessing_of
from fundax.interop.keymap import Row
from fundax.interop.weights import State, folder_of, write_torch
from fundax.objectives.ret_clip import LEVELS, SUFFIX, RetCLIP
from fundax.runtime.workdir import read_optional_json, write_json
from fundax.types import Extra, Params, UserError

NAME = "RET-CLIP"
CONFIG, WEIGHTS = "ret_clip.json", "ret_clip.pt"  # RET-CLIP has no configuration file: ours says what shapes do not
USAGE = """
import torch

state = torch.load("FOLDER/ret_clip.pt", weights_only=True)  # flat, every key begins with "module."
model.load_state_dict(state)  # RET-CLIP's model, wrapped in DistributedDataParallel as its own script does
"""


IGNORED = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "position_ids")  # unused by RET-CLIP
_HEAD_WIDTHS = {1280: 80}  # of ViT-H/14; all its other encoders have heads of width 64
# Fields that shapes do not show, whose defaults are those of RET-CLIP's code.
_MEANING = {
    "image": ("activation", "epsilon", "pool", "norm_after_pool"),
    "text": ("activation", "epsilon", "pool", "pool_layers"),
}


def detect(state: State) -> bool:
    """Whether these are the keys of a RET-CLIP model."""
    return "visual.conv1.weight" in state and any(key.startswith("global_feature_mapping.") for key in state)


def to_fundax(
    state: State,
    *,
    image_size: int | None = None,
    head_width: int | None = None,
    text_heads: int | None = None,
    **fields: Any,
) -> tuple[RetCLIP, Params]:
    """The objective and its parameters (fp32, layers unstacked) from a state dict without its "module." prefixes.

    Args:
        state: flat state dict (`weights.read_state`) of the released file or of a training checkpoint. Left and right
            text heads may be numbered 0, 2 or 2, 4; with 2, 4 a warning is logged.
        image_size: size of the images; if it differs from the checkpoint's, positions are resized by RET-CLIP's rule.
        head_width, text_heads: sizes of attention heads, if they are not the published ones (64, or 80 at width 1280;
            width / 64).
        fields: further fields of RetCLIP.
    Raises:
        UserError: missing or unknown keys, by name; the code's versions before 2024-07-16.
    """
    state = canonical(state)
    objective = _objective(state, image_size, head_width, text_heads, fields)
    return objective, read(objective, state, NAME)


def from_fundax(objective: RetCLIP, params: Params) -> State:
    """RET-CLIP's state dict (fp32), without prefix.

    Raises UserError for parameters it has no place for, and for a model that RET-CLIP's code would compute differently.
    """
    rows = table(objective)
    for tower, module, plain in (("image", objective.image, ViT), ("text", objective.text, BERT)):
        for name in _MEANING[tower]:
            ours, theirs = getattr(module, name), getattr(plain, name)
            if ours != theirs:
                names = [getattr(value, "__name__", value) for value in (ours, theirs)]
                raise UserError(f"{NAME} cannot hold this model: {tower}.{name} is {names[0]}, there it is {names[1]}")
    return keymap.write(rows, params, NAME)


def write_checkpoint(objective: RetCLIP, params: Params, path: str | Path) -> None:
    """The flat .pt with "module." before every key, as released and as RET-CLIP's --resume reads it."""
    write_torch({f"module.{key}": value for key, value in from_fundax(objective, params).items()}, path)


def read(objective: RetCLIP, state: State, source: str) -> Params:
    """Parameters for `objective`, positions resized to its image size. Raises UserError naming keys that do not fit."""
    state, shapes = canonical(state), keymap.shapes_of(objective)
    return keymap.read(table(objective), fit_positions(state, shapes["image/position"][0]), shapes, source, IGNORED)


def table(objective: RetCLIP) -> list[Row]:
    """The table of every parameter, but for the decoder of a reconstruction branch."""
    if not isinstance(objective, RetCLIP):
        raise UserError(f"{NAME} checkpoints hold RetCLIP models, not {type(objective).__name__}")
    if not isinstance(objective.text, BERT):
        raise UserError(f"{NAME} checkpoints have a BERT; this model has a {type(objective.text).__name__}")
    rows = tower_rows(objective.image.depth, objective.text.depth)
    rows.append(Row("project/image/kernel", ("visual.proj",), keymap.SAME))
    for level in LEVELS:
        theirs = "global" if level == "patient" else level
        rows.append(Row(f"log_scale/{level}", (f"logit_scale{SUFFIX[level]}",), keymap.SAME))
        rows += keymap.linear(f"project/{level}", f"{theirs}_feature_mapping", bias=False)
        rows += keymap.linear(f"project/text_{level}/fc1", f"text_projection{SUFFIX[level]}.0")
        rows += keymap.linear(f"project/text_{level}/fc2", f"text_projection{SUFFIX[level]}.2")
    return rows


def tower_rows(image_depth: int, text_depth: int) -> list[Row]:
    """The rows of the two encoders, which Chinese-CLIP has too."""
    rows = [
        Row("image/class_token", ("visual.class_embedding",), keymap.SAME),
        Row("image/position", ("visual.positional_embedding",), keymap.SAME),
        Row("image/patch/kernel", ("visual.conv1.weight",), keymap.CONV),
        *keymap.norm("image/pre_norm", "visual.ln_pre"),
        *keymap.norm("image/norm", "visual.ln_post"),
    ]
    for i in range(image_depth):
        rows += keymap.clip_block(f"image/block_{i}", f"visual.transformer.resblocks.{i}")
    return rows + bert_rows("text", "bert", text_depth)


# ------------------------------------------------------------------------------- other forms of the same keys

_RENAMED = (
    (re.compile(r"\.attn\.Wqkv\.(weight|bias)$"), r".attn.in_proj_\1"),  # flash-attention builds
    (re.compile(r"\.attention\.self\.out_proj\."), ".attention.output.dense."),
    (re.compile(r"\.LayerNorm\.gamma$"), ".LayerNorm.weight"),  # born in TensorFlow
    (re.compile(r"\.LayerNorm\.beta$"), ".LayerNorm.bias"),
)


def canonical(state: State) -> State:
    """Rename the keys of a state dict to those of the code since 2024-07-16. Raises UserError for older models."""
    older = [k for k in state if k.startswith("single_feature_mapping") or re.match(r"\w+_feature_mapping.bias", k)]
    if older:
        raise UserError(
            f"{NAME}: {older[0]} belongs to the code before 2024-07-16, another architecture that is not supported"
        )
    found: State = {}
    for key, value in _renumbered(state).items():
        for pattern, name in _RENAMED:
            key = pattern.sub(name, key)
        if match := re.fullmatch(r"(.*\.attention\.self)\.Wqkv\.(weight|bias)", key):
            for name, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                found[f"{match[1]}.{name}.{match[2]}"] = third
        else:
            found[key] = value
    return found


def _renumbered(state: State) -> State:
    """Left and right text heads numbered 2, 4 become 0, 2."""
    names = [
        f"text_projection{SUFFIX[level]}"
        for level in LEVELS
        if f"text_projection{SUFFIX[level]}.4.weight" in state
        and f"text_projection{SUFFIX[level]}.0.weight" not in state
    ]
    if not names:
        return dict(state)
    warnings.warn(
        f"{', '.join(names)}: layers are numbered 2 and 4, as in the file first published. They are read as 0 and 2; "
        "what stood at 0 and 1 has no parameters and may have pooled over tokens, so that features of these heads "
        "can differ from the authors'. The patient level is not affected.",
        stacklevel=3,
    )
    moved = {f"{name}.{old}.": f"{name}.{new}." for name in names for old, new in ((2, 0), (4, 2))}
    return {next((new + k.removeprefix(old) for old, new in moved.items() if k.startswith(old)), k): v
            for k, v in state.items()}  # fmt: skip


def fit_positions(state: State, rows: int) -> State:
    """Resize the image position table of a state dict to `rows` rows by RET-CLIP's rule (aligned corners)."""
    key = "visual.positional_embedding"
    if key not in state:
        return state
    return state | {key: resize_positions(np.asarray(state[key], np.float32), rows, aligned_corners)}


# ------------------------------------------------------------------------------------------------------- folders


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write a folder with the flat ret_clip.pt, what its shapes do not say (ret_clip.json), and the tokenizer.

    Raises UserError for another model than RET-CLIP, and for a folder that is there and not empty.
    """
    objective = model.objective
    with folder.fresh_folder(out, overwrite) as temporary:
        write_checkpoint(objective, model.params, temporary / WEIGHTS)
        if model.tokenizer is not None:
            model.tokenizer.save(temporary)
        facts = {
            "head_width": objective.image.width // objective.image.heads,
            "text_heads": objective.text.heads,
            "context": objective.context,
            "dropout": objective.text.dropout,
            "pad_id": objective.text.pad_id,
        }
        write_json(temporary / CONFIG, facts | {"preprocessing": preprocessing_of(model)})
        folder.write_card(temporary, model, "fundax", USAGE)


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The model of a state dict, with ret_clip.json of its folder where there is one: a released file has none."""
    facts = read_optional_json(folder_of(path) / CONFIG)
    preprocessing = facts.get("preprocessing", {})
    fields: dict[str, Any] = {name: tuple(preprocessing[name]) for name in ("mean", "std") if name in preprocessing}
    fields |= {name: facts[name] for name in ("context",) if name in facts}
    heads = {name: facts[name] for name in ("head_width", "text_heads") if name in facts}
    objective, params = to_fundax(state, **heads, **fields)
    text = {name: facts[name] for name in ("dropout", "pad_id") if name in facts}
    return Checkpoint(replace(objective, text=objective.text.clone(**text)), params, preprocessing)


def read_as(objective: RetCLIP, state: State, source: str) -> tuple[Params, Extra]:
    """Parameters of `objective` with position tables as long as they are stored, from a file without ret_clip.json."""
    state = canonical(state)
    found = table(objective)
    shapes = {path: shape for path, shape in keymap.shapes_of(objective).items() if not path.startswith("decoder/")}
    return keymap.read(found, state, keymap.stored_positions(found, state, shapes), source, IGNORED), {}


# ------------------------------------------------------------------------------------------------- Chinese-CLIP


def detect_chinese_clip(state: State) -> bool:
    """Whether these are the keys of a Chinese-CLIP model."""
    return {"visual.conv1.weight", "bert.embeddings.word_embeddings.weight"} <= state.keys()


def read_chinese_clip(path: Path, state: State, modality: str = "") -> Checkpoint:
    """Raises UserError: fundax has no objective for Chinese-CLIP; its encoders start a RET-CLIP."""
    raise UserError(f"{path}: fundax has no objective for Chinese-CLIP; its encoders can start a RET-CLIP (--init)")


def read_chinese_clip_as(objective: RetCLIP, state: State, source: str) -> tuple[Params, Extra]:
    """Read both encoders and the image projection. Chinese-CLIP has no counterpart of RET-CLIP's nine heads and scales.

    Raises UserError naming keys that are missing or of another shape.
    """
    depths = objective.image.depth, objective.text.depth
    found = [*tower_rows(*depths), Row("project/image/kernel", ("visual.proj",), keymap.SAME)]
    wanted = {key for row in found for key in row.keys}
    state = {key: value for key, value in canonical(state).items() if key in wanted}
    shapes = keymap.stored_positions(found, state, keymap.shapes_of(objective))
    return keymap.read(found, state, {row.path: shapes[row.path] for row in found}, source), {}


def _objective(
    state: Mapping[str, np.ndarray],
    image_size: int | None,
    head_width: int | None,
    text_heads: int | None,
    fields: Mapping[str, Any],
) -> RetCLIP:
    """The objective that the shapes of a state dict show, with what they do not show from the arguments."""
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "visual.class_embedding",
              "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
              "bert.embeddings.token_type_embeddings.weight", "bert.encoder.layer.0.intermediate.dense.weight")  # fmt: skip
    if missing := [key for key in needed if key not in state]:
        raise UserError(f"{NAME}: the checkpoint lacks {', '.join(missing)}")
    kernel, word = state["visual.conv1.weight"].shape, state["bert.embeddings.word_embeddings.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    image = ViT(
        image_size=image_size or grid * kernel[2],
        patch=kernel[2],
        width=kernel[0],
        depth=_depth(state, "visual.transformer.resblocks."),
        heads=max(kernel[0] // (head_width or _HEAD_WIDTHS.get(kernel[0], 64)), 1),
    )
    text = BERT(
        vocab=word[0],
        context=len(state["bert.embeddings.position_embeddings.weight"]),
        width=word[1],
        depth=_depth(state, "bert.encoder.layer."),
        heads=text_heads or max(word[1] // 64, 1),
        hidden=len(state["bert.encoder.layer.0.intermediate.dense.weight"]),
        token_types=len(state["bert.embeddings.token_type_embeddings.weight"]),
    )
    context = min(100, text.context)
    return RetCLIP(
        image=image, text=text, **{"embed": state["visual.proj"].shape[1], "context": context} | dict(fields)
    )


def _depth(state: Mapping[str, np.ndarray], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))


FORMAT = Format(
    "ret_clip", NAME, (RetCLIP,), (WEIGHTS, CONFIG), detect, read_model, write_folder, USAGE, read_as=read_as
)
CHINESE_CLIP = Format(
    "chinese_clip", "Chinese-CLIP", (), (), detect_chinese_clip, read_chinese_clip, None,
    read_as=read_chinese_clip_as, fills=(RetCLIP,), order=1,
)  # fmt: skip
