"""The format of VisionFM's and iBOT's pretraining checkpoints: student, teacher, their heads, and the centers.

Layout: github.com/ABILab-CUHK/VisionFM and bytedance/ibot. A flat state dict has the part before each key:
"student.backbone.cls_token", "teacher.head.mlp.0.weight", "ibot_loss.center"."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.modality_folders import moments
from fundax.encoders.heads import IBOTHead
from fundax.interop import folder, keymap, vit
from fundax.interop.checkpoint import IMAGENET, Checkpoint, Format
from fundax.interop.keymap import Layout, Row
from fundax.interop.weights import State, folder_of, write_torch
from fundax.objectives.ibot import IBOT
from fundax.params import flatten
from fundax.runtime import serialize
from fundax.runtime.workdir import read_optional_json
from fundax.types import Extra, Params, UserError

NAME = "VisionFM"
WEIGHTS = "visionfm.pth"
USAGE = """
import torch

state = torch.load("FOLDER/visionfm.pth", weights_only=True)["teacher"]
"""


PARTS = ("student", "teacher", "ibot_loss")
_WEIGHT = {
    "original0": "weight_g",
    "original1": "weight_v",
}  # names of a weight-normalised layer in newer versions of torch
_PARAMETRIZED = re.compile(r"parametrizations\.weight\.(original[01])$")
COLUMN = Layout(lambda t: t[0][:, 0], lambda x: [x[:, None]])


def detect(state: State) -> bool:
    """Whether these are the keys of one of these checkpoints."""
    keys = {key.replace("module.", "") for key in state}
    return {"student.backbone.cls_token", "teacher.backbone.cls_token", "ibot_loss.center"} <= keys


def _plain(key: str) -> str:
    return _PARAMETRIZED.sub(lambda found: _WEIGHT[found[1]], key.replace("module.", ""))


def to_fundax(state: State, heads: int | None = None, **fields: Any) -> tuple[IBOT, Params, Extra]:
    """The objective that the shapes of a flat state dict show, the student's parameters, and teacher and centers.

    Args:
        state: flat state dict (`weights.read_state`).
        heads: number of attention heads; None takes 64 channels per head, as in all published sizes.
        fields: fields of IBOT that tensors do not show (steps, epoch_steps, crops, temperatures, ...).
    Raises:
        UserError: keys that are missing or unknown, and tensors of other shapes, by name.
    """
    state = {_plain(key): value for key, value in state.items()}
    tower = vit.tower_of(state, NAME, "student.backbone.", heads)
    objective = IBOT(**{"image": tower, "head": head_of(state, "student.head."), "steps": 2, "epoch_steps": 1} | fields)
    tree = keymap.read(rows(objective, state), state, _shapes(objective), NAME)
    return objective, tree["student"], {"teacher": tree["teacher"], "center": tree["center"]}


def from_fundax(objective: IBOT, params: Params, extra: Extra) -> State:
    """The flat state dict (fp32), without optimizer. Raises UserError for a head the format cannot hold."""
    if objective.head.split:
        raise UserError(f"{NAME} has one MLP for class token and patches, this head has two")
    tree = {"student": params, "teacher": extra["teacher"], "center": extra["center"]}
    return keymap.write(rows(objective, {}), tree, NAME)


def write_folder(model: Checkpoint, out: str | Path, overwrite: bool = False) -> None:
    """Write a folder with visionfm.pth as VisionFM's script saves it, without the optimizer.

    Raises UserError for another objective or a head the format cannot hold, and for a folder that is not empty.
    """
    if not isinstance(model.objective, IBOT):
        raise UserError(f"{NAME}'s format holds a pretraining (student, teacher, heads), not an encoder by itself")
    state = from_fundax(model.objective, model.params, dict(model.extra))
    parts: dict[str, State] = {part: {} for part in PARTS}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts[part][f"module.{rest}" if part == "student" else rest] = value
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch(parts, temporary / WEIGHTS)
        folder.write_record(temporary, state, model, {})
        folder.write_card(temporary, model, "fundax", USAGE, "image-feature-extraction")


def read_model(path: Path, state: State, modality: str = "") -> Checkpoint:
    """The pretraining of a flat state dict, whose images are normalised as those of `modality`, "" as ImageNet's.

    A folder that fundax wrote has a record, which says what no tensor shows.
    """
    record = read_optional_json(folder_of(path) / folder.RECORD) if path.is_dir() else {}
    if record:
        known = serialize.from_json(record["objective"])
        image = known.image.clone(scan=False)
        objective = replace(known, image=image)
        tree = keymap.read(rows(objective, {}), {_plain(k): v for k, v in state.items()}, _shapes(objective), NAME)
        extra = {"teacher": tree["teacher"], "center": tree["center"]}
        return Checkpoint(objective, tree["student"], record["preprocessing"], extra=extra)
    fields = dict(zip(("mean", "std"), moments((modality,)), strict=True)) if modality else {}
    objective, params, extra = to_fundax(state, **fields)
    return Checkpoint(
        objective, params, {"image_size": objective.image.image_size}, extra=extra, assumed="" if fields else IMAGENET
    )


def rows(objective: IBOT, state: State) -> list[Row]:
    """The table of the whole state; `state` shows which of two names a layer scale has."""
    bare = objective.image.clone(mask_token=False)
    found = [
        Row("center/token", ("ibot_loss.center",), vit.ONE),
        Row("center/patch", ("ibot_loss.center2",), vit.TWO),
    ]
    for part, tower in (("student", objective.image), ("teacher", bare)):
        gamma = vit.gamma_of(state, f"{part}.backbone.") or vit.GAMMA[0]
        found += vit.rows(tower, f"{part}/image/", f"{part}.backbone.", gamma)
        found += head_rows(objective.head, f"{part}/head/", f"{part}.head.")
    return found


def head_rows(head: IBOTHead, ours: str = "", theirs: str = "") -> list[Row]:
    """The table of a head. A shared last layer is stored under both of its names."""
    found = []
    for i in range(head.layers):
        found += keymap.linear(f"{ours}mlp/fc{i + 1}", f"{theirs}mlp.{2 * i}")
    groups = [("last_layer", ("last_layer", "last_layer2"))]
    if not head.shared:
        groups = [("last_layer", ("last_layer",)), ("last_layer2", ("last_layer2",))]
    for name, keys in groups:
        for leaf, weight, one in (("kernel", "weight_v", keymap.LINEAR), ("scale", "weight_g", COLUMN)):
            their_keys = tuple(f"{theirs}{key}.{weight}" for key in keys)
            found.append(Row(f"{ours}{name}/{leaf}", their_keys, _repeated(one, len(keys))))
    return found


def _repeated(one: Layout, times: int) -> Layout:
    return Layout(one.read, lambda x: [*one.write(x)] * times)


def head_of(state: State, theirs: str) -> IBOTHead:
    """The head for the shapes of a state dict; the last layer is shared if both stored ones are equal."""
    weights = [state.get(f"{theirs}{name}.weight_v") for name in ("last_layer", "last_layer2")]
    first, second = weights
    if first is None or second is None or f"{theirs}mlp.0.weight" not in state:
        raise UserError(f"{NAME}: '{theirs}mlp.0.weight', '{theirs}last_layer' or '{theirs}last_layer2' is missing")
    shared = first.shape == second.shape and np.array_equal(first, second)
    depth = sum(bool(re.fullmatch(re.escape(theirs) + r"mlp\.\d+\.weight", key)) for key in state)
    return IBOTHead(
        prototypes=first.shape[0],
        patch_prototypes=None if shared else second.shape[0],
        hidden=state[f"{theirs}mlp.0.weight"].shape[0],
        bottleneck=first.shape[1],
        layers=depth,
        shared=shared,
    )


def read_head(state: State, theirs: str, **fields: Any) -> tuple[IBOTHead, Params]:
    """Read a head alone: the module and its parameters. `fields`: fields of IBOTHead that tensors do not show.

    Raises UserError as `to_fundax` does.
    """
    head = head_of(state, theirs).clone(**fields)
    state = {key: value for key, value in state.items() if key.startswith(theirs)}
    return head, keymap.read(head_rows(head, "", theirs), state, _head_shapes(head, _width(state, theirs)), NAME)


def _width(state: State, theirs: str) -> int:
    return state[f"{theirs}mlp.0.weight"].shape[1]


def _head_shapes(head: IBOTHead, width: int) -> keymap.Shapes:
    params = jax.eval_shape(head.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, width), jnp.float32))["params"]
    return {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}


def _shapes(objective: IBOT) -> keymap.Shapes:
    def tree() -> Params:
        batch = {key: jnp.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
        params, extra = objective.init(jax.random.key(0), batch)
        return {"student": params, **extra}

    return {path: tuple(leaf.shape) for path, leaf in flatten(jax.eval_shape(tree)).items()}


FORMAT = Format("visionfm", NAME, (IBOT,), (WEIGHTS, folder.RECORD), detect, read_model, write_folder, USAGE, order=7)
