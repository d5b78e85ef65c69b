"""RET-CLIP's checkpoints, both ways, and Chinese-CLIP's as initial weights.

Key names are those of the public repositories sStonemason/RET-CLIP and OFA-Sys/Chinese-CLIP."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders.bert import BERT
from fundax.encoders.positions import aligned_corners, resize_positions
from fundax.encoders.vit import ViT
from fundax.interop import bundle as folder
from fundax.interop import keymap
from fundax.interop.bundle import Bundle
from fundax.interop.keymap import Row
from fundax.interop.weights import State, read_state
from fundax.objectives.ret_clip import LEVELS, SUFFIX, RetCLIP
from fundax.params import flatten, stack_blocks, unstack_blocks
from fundax.types import Params, UserError

NAME = "RET-CLIP"


CONFIG, WEIGHTS = "ret_clip.json", "ret_clip.pt"  # the peer has no configuration file: ours says what shapes do not


CONFIG_OPTIONAL = True


USAGE = """
import torch

state = torch.load("FOLDER/ret_clip.pt", weights_only=True)  # flat, every key begins with "module."
model.load_state_dict(state)  # the peer's model, wrapped in DistributedDataParallel as its own script does
"""


IGNORED = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "position_ids")  # used by nothing there


_HEAD_WIDTHS = {1280: 80}  # of ViT-H/14; every other tower of the peer has heads of 64


# Fields that shapes do not show, whose defaults are the peer's.
_MEANING = {
    "image": ("activation", "epsilon", "pool", "norm_after_pool"),
    "text": ("activation", "epsilon", "pool", "pool_layers"),
}


_log = logging.getLogger("fundax")


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
        state: as `fundax.weights.read_state` gives it, from the released flat file or a training checkpoint. Left
            and right text heads may be numbered 0, 2 or 2, 4; with 2, 4 a warning is given.
        image_size: another one than the checkpoint's resizes the positions by the peer's rule.
        head_width, text_heads: where they are not the published sizes' (64, or 80 at width 1280; width / 64).
        fields: of RetCLIP.
    Raises:
        UserError: missing or unknown keys, by name; the code's versions before 2024-07-16.
    """
    state = canonical(state)
    objective = _objective(state, image_size, head_width, text_heads, fields)
    return objective, read(objective, state, NAME)


def from_fundax(objective: RetCLIP, params: Params) -> State:
    """RET-CLIP's state dict (fp32), without prefix.

    Raises UserError for parameters it has no place for, and for a model that the peer's code would compute otherwise.
    """
    rows = table(objective, {})
    for tower, module, plain in (("image", objective.image, ViT), ("text", objective.text, BERT)):
        for name in _MEANING[tower]:
            ours, theirs = getattr(module, name), getattr(plain, name)
            if ours != theirs:
                said = [getattr(value, "__name__", value) for value in (ours, theirs)]
                raise UserError(f"{NAME} cannot hold this model: {tower}.{name} is {said[0]}, there it is {said[1]}")
    return keymap.write(rows, params, NAME)


def write_checkpoint(objective: RetCLIP, params: Params, path: str | Path) -> None:
    """The flat .pt with "module." before every key, as released and as the peer's --resume reads it; needs torch."""
    state = from_fundax(objective, params)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: writing a .pt file needs torch: pip install 'fundax[torch]'") from error
    torch.save({f"module.{key}": torch.from_numpy(value.copy()) for key, value in state.items()}, path)


def read(objective: RetCLIP, state: State, source: str) -> Params:
    """Parameters for `objective`, positions resized to its image size. Raises UserError naming keys that do not fit."""
    state, shapes = canonical(state), keymap.shapes_of(objective)
    rows = table(objective, state)
    return keymap.read(rows, fit_positions(state, shapes["image/position"][0]), shapes, source, IGNORED)


def table(objective: RetCLIP, state: State) -> list[Row]:
    """Every parameter of ours with the peer's key and layout."""
    del state  # one layout only
    if not isinstance(objective, RetCLIP):
        raise UserError(f"{NAME} checkpoints hold RetCLIP models, not {type(objective).__name__}")
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
    """The two towers, which Chinese-CLIP has too."""
    rows = [
        Row("image/class_token", ("visual.class_embedding",), keymap.SAME),
        Row("image/position", ("visual.positional_embedding",), keymap.SAME),
        Row("image/patch/kernel", ("visual.conv1.weight",), keymap.CONV),
        *keymap.norm("image/pre_norm", "visual.ln_pre"),
        *keymap.norm("image/norm", "visual.ln_post"),
        *keymap.norm("text/embed_norm", "bert.embeddings.LayerNorm"),
    ]
    for name in ("word", "position", "token_type"):
        keys = (f"bert.embeddings.{name}_embeddings.weight",)
        rows.append(Row(f"text/{name}/embedding", keys, keymap.SAME))
    for i in range(image_depth):
        rows += _image_block(f"image/block_{i}", f"visual.transformer.resblocks.{i}")
    for i in range(text_depth):
        rows += _text_block(f"text/block_{i}", f"bert.encoder.layer.{i}")
    return rows


def _image_block(ours: str, theirs: str) -> list[Row]:
    return [
        *keymap.norm(f"{ours}/norm1", f"{theirs}.ln_1"),
        Row(f"{ours}/attention/qkv/kernel", (f"{theirs}.attn.in_proj_weight",), keymap.PACKED_KERNEL),
        Row(f"{ours}/attention/qkv/bias", (f"{theirs}.attn.in_proj_bias",), keymap.PACKED_BIAS),
        *keymap.linear(f"{ours}/attention/out", f"{theirs}.attn.out_proj"),
        *keymap.norm(f"{ours}/norm2", f"{theirs}.ln_2"),
        *keymap.linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc"),
        *keymap.linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj"),
    ]


def _text_block(ours: str, theirs: str) -> list[Row]:
    qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
    return [
        Row(f"{ours}/attention/qkv/kernel", tuple(f"{key}.weight" for key in qkv), keymap.SPLIT_KERNEL),
        Row(f"{ours}/attention/qkv/bias", tuple(f"{key}.bias" for key in qkv), keymap.SPLIT_BIAS),
        *keymap.linear(f"{ours}/attention/out", f"{theirs}.attention.output.dense"),
        *keymap.norm(f"{ours}/norm1", f"{theirs}.attention.output.LayerNorm"),
        *keymap.linear(f"{ours}/mlp/fc1", f"{theirs}.intermediate.dense"),
        *keymap.linear(f"{ours}/mlp/fc2", f"{theirs}.output.dense"),
        *keymap.norm(f"{ours}/norm2", f"{theirs}.output.LayerNorm"),
    ]


# ------------------------------------------------------------------------------- other forms of the same keys

_RENAMED = (
    (re.compile(r"\.attn\.Wqkv\.(weight|bias)$"), r".attn.in_proj_\1"),  # flash-attention builds
    (re.compile(r"\.attention\.self\.out_proj\."), ".attention.output.dense."),
    (re.compile(r"\.LayerNorm\.gamma$"), ".LayerNorm.weight"),  # born in TensorFlow
    (re.compile(r"\.LayerNorm\.beta$"), ".LayerNorm.bias"),
)


def canonical(state: State) -> State:
    """The same tensors under the keys of the code since 2024-07-16. Raises UserError for a model before that."""
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
    """The same tensors with the image's position table moved to `rows` rows by the peer's rule (corners aligned)."""
    key = "visual.positional_embedding"
    if key not in state:
        return state
    return state | {key: resize_positions(np.asarray(state[key], np.float32), rows, aligned_corners)}


# ------------------------------------------------------------------------------------------------------- folders


def write_folder(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """A folder with the flat ret_clip.pt, what its shapes do not say (ret_clip.json), and the tokenizer; needs torch.

    Raises UserError for another model than RET-CLIP, and for a folder that is there and not empty.
    """
    objective = bundle.objective
    with folder.fresh_folder(out, overwrite) as temporary:
        write_checkpoint(objective, bundle.params, temporary / WEIGHTS)
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(temporary)
        facts = {
            "head_width": objective.image.width // objective.image.heads,
            "text_heads": objective.text.heads,
            "context": objective.context,
            "dropout": objective.text.dropout,
            "pad_id": objective.text.pad_id,
        }
        folder.write_json(temporary / CONFIG, facts | {"preprocessing": folder.preprocessing_of(bundle)})
        folder.write_card(temporary, bundle, "fundax", USAGE)


def read_folder(path: str | Path) -> Bundle:
    """The model of a folder that write_folder wrote. Raises UserError for anything missing or damaged."""
    return bundle_of(read_state(Path(path) / WEIGHTS), Path(path))


def bundle_of(state: State, path: Path) -> Bundle:
    """The model of a state dict, with ret_clip.json of its folder where there is one: a released file has none."""
    facts = folder.read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    preprocessing = facts.get("preprocessing", {})
    fields: dict[str, Any] = {name: tuple(preprocessing[name]) for name in ("mean", "std") if name in preprocessing}
    fields |= {name: facts[name] for name in ("context",) if name in facts}
    heads = {name: facts[name] for name in ("head_width", "text_heads") if name in facts}
    objective, params = to_fundax(state, **heads, **fields)
    text = {name: facts[name] for name in ("dropout", "pad_id") if name in facts}
    return Bundle(replace(objective, text=objective.text.clone(**text)), params, preprocessing)


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """None: the peer's code is no package that could be installed; golden vectors hold the layout instead."""
    return None


# --------------------------------------------------------------------------------------------- initial weights


def initial(path: str | Path, objective: RetCLIP) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: all of a RET-CLIP checkpoint, or the towers of a Chinese-CLIP one.

    Raises UserError (when called) naming keys that are missing, unknown or of another shape.
    """

    def fill(params: Params) -> Params:
        state = read_state(path)
        if not detect(state):
            return chinese_clip(path)(params)
        loaded = read(objective, state, str(path))
        return {name: stack_blocks(tree) if "blocks" in params[name] else tree for name, tree in loaded.items()}

    return fill


def chinese_clip(path: str | Path) -> Callable[[Params], Params]:
    """A step of Recipe.init_from: both towers and the image projection from a Chinese-CLIP (or RET-CLIP) checkpoint.

    The nine heads and the scales stay as they are: Chinese-CLIP has none that fit. Image positions are resized by
    the peer's rule, text positions beyond the model's are cut.
    Raises UserError (when called) naming keys that are missing or of another shape.
    """

    def fill(params: Params) -> Params:
        ours = unstack_blocks(params)
        depths = [sum(name.startswith("block_") for name in ours[tower]) for tower in ("image", "text")]
        rows = [*tower_rows(*depths), Row("project/image/kernel", ("visual.proj",), keymap.SAME)]
        shapes = {path: np.shape(leaf) for path, leaf in flatten(ours).items()}
        state = fit_positions(canonical(read_state(path)), shapes["image/position"][0])
        wanted = {key for row in rows for key in row.keys}
        state = {key: value for key, value in state.items() if key in wanted}
        table = "bert.embeddings.position_embeddings.weight"
        if table in state:
            state[table] = state[table][: shapes["text/position/embedding"][0]]
        towers = {row.path: shapes[row.path] for row in rows}
        loaded = ours | keymap.read(rows, state, towers, str(path))
        loaded["project"] = ours["project"] | loaded["project"]
        _log.info("%s: towers loaded; heads and scales are new", path)
        return {name: stack_blocks(tree) if "blocks" in params[name] else tree for name, tree in loaded.items()}

    return fill


def _objective(
    state: Mapping[str, np.ndarray],
    image_size: int | None,
    head_width: int | None,
    text_heads: int | None,
    fields: Mapping[str, Any],
) -> RetCLIP:
    """What the shapes of a state dict say, and what they do not say from the arguments."""
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
