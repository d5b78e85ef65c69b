"""VisionFM's and iBOT's pretraining checkpoints, both ways: student, teacher, their heads, and the centers.

Layout: github.com/ABILab-CUHK/VisionFM and bytedance/ibot. A flat state dict here has the parts before the keys:
"student.backbone.cls_token", "teacher.head.mlp.0.weight", "ibot_loss.center"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import ViT
from fundax.interop import bundle as folder
from fundax.interop import keymap, vit
from fundax.interop.bundle import Bundle
from fundax.interop.keymap import Layout, Row
from fundax.interop.weights import State, load_torch, write_torch
from fundax.objectives.ibot import IBOT
from fundax.params import flatten
from fundax.types import Extra, Params, UserError

NAME = "VisionFM"


WEIGHTS = "visionfm.pth"


USAGE = """
import torch

state = torch.load("FOLDER/visionfm.pth", weights_only=True)["teacher"]
"""


PARTS = ("student", "teacher", "ibot_loss")


DROPPED = ("optimizer", "epoch", "args", "fp16_scaler")  # of the file; all else that is unknown is an error


_WEIGHT = {"original0": "weight_g", "original1": "weight_v"}  # newer torch's names of a weight-normalised layer


_PARAMETRIZED = re.compile(r"parametrizations\.weight\.(original[01])$")


COLUMN = Layout(lambda t: t[0][:, 0], lambda x: [x[:, None]])


def detect(state: State) -> bool:
    """Whether a flat state dict is one of these checkpoints."""
    return all(f"{part}.backbone.cls_token" in state for part in ("student", "teacher"))


def read_state(path: str | Path) -> State:
    """The flat state dict of a .pth of these programs, read by an unpickler that knows tensors and plain values only.

    Raises UserError for a damaged file, and for a part that is neither in PARTS nor in DROPPED.
    """
    return flat_state(load_torch(path), str(path))


def flat_state(loaded: Mapping[str, Any], source: str) -> State:
    """The parts of a checkpoint as one dict; prefixes left by DistributedDataParallel and torch's new names are mended.

    Raises UserError for a part that is missing, or neither in PARTS nor in DROPPED.
    """
    if unknown := sorted(set(loaded) - set(PARTS) - set(DROPPED)):
        raise UserError(f"{source}: unknown parts {', '.join(unknown)}; a checkpoint of {NAME} has {', '.join(PARTS)}")
    if missing := [part for part in PARTS if part not in loaded]:
        raise UserError(f"{source}: no '{missing[0]}' in it; a checkpoint of {NAME} has {', '.join(PARTS)}")
    state = {f"{part}.{key}": np.asarray(value) for part in PARTS for key, value in loaded[part].items()}
    return {_plain(key): value for key, value in state.items()}


def _plain(key: str) -> str:
    return _PARAMETRIZED.sub(lambda found: _WEIGHT[found[1]], key.replace("module.", ""))


def to_fundax(state: State, heads: int | None = None, **fields: Any) -> tuple[IBOT, Params, Extra]:
    """The objective whose shapes a flat state dict has, the student's parameters, and teacher and centers.

    Args:
        state: see read_state.
        heads: of attention; None takes 64 channels in each, as all published sizes have.
        fields: of IBOT that no tensor shows (steps, epoch_steps, crops, temperatures, ...).
    Raises:
        UserError: keys that are missing or unknown, and tensors of other shapes, by name.
    """
    tower = vit.tower_of(state, NAME, "student.backbone.", heads)
    objective = IBOT(**{"image": tower, "head": head_of(state, "student.head."), "steps": 2, "epoch_steps": 1} | fields)
    tree = keymap.read(rows(objective, state), state, _shapes(objective), NAME)
    return objective, tree["student"], {"teacher": tree["teacher"], "center": tree["center"]}


def from_fundax(objective: IBOT, params: Params, extra: Extra) -> State:
    """The flat state dict (fp32), without optimizer. Raises UserError for a head the layout cannot hold."""
    if objective.head.split:
        raise UserError(f"{NAME} has one MLP for class token and patches, this head has two")
    tree = {"student": params, "teacher": extra["teacher"], "center": extra["center"]}
    return keymap.write(rows(objective, {}), tree, NAME)


def write_folder(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """A folder with visionfm.pth as the peer's own script saves it, but for the optimizer; needs torch.

    Raises UserError for another objective or a head the layout cannot hold, and for a folder that is not empty.
    """
    if not isinstance(bundle.objective, IBOT):
        raise UserError(f"{NAME}'s layout holds a pretraining (student, teacher, heads), not an encoder by itself")
    state = from_fundax(bundle.objective, bundle.params, dict(bundle.extra))
    parts: dict[str, State] = {part: {} for part in PARTS}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts[part][f"module.{rest}" if part == "student" else rest] = value
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch(parts, temporary / WEIGHTS)
        folder.write_card(temporary, bundle, "fundax", USAGE, "image-feature-extraction")


def read_folder(path: str | Path) -> Bundle:
    """The pretraining in a folder that write_folder wrote. Raises UserError for anything missing, damaged or unknown."""
    return bundle_of(read_state(Path(path) / WEIGHTS))


def bundle_of(state: State, **fields: Any) -> Bundle:
    """A flat state dict as a model; `fields` as for to_fundax."""
    objective, params, extra = to_fundax(state, **fields)
    return Bundle(objective, params, {"image_size": objective.image.image_size}, extra=extra)


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """None: the peer's code is no package that could be installed; golden vectors hold the layout instead."""
    del path, bundle
    return None


def rows(objective: IBOT, state: State) -> list[Row]:
    """The table of the whole state; `state` shows which of two names a layer scale has there."""
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
    """The head whose shapes a state dict has; it is shared where both last layers are the same numbers."""
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
    """A head alone, and its parameters; `fields` are IBOTHead's that no tensor shows. Raises UserError as to_fundax."""
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


def tower_from(state: State, part: str = "teacher", heads: int | None = None) -> tuple[ViT, Params]:
    """The encoder alone of the `part` "teacher" or "student". Raises UserError as to_fundax."""
    tower = vit.tower_of(state, NAME, f"{part}.backbone.", heads)
    return tower, vit.read(tower, state, NAME, f"{part}.backbone.")
