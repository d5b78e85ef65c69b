"""Initial weights from other models: `warm_start` fills an objective from anything that `load` opens."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.encoders.backbone import preprocessing
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.positions import aligned_corners, antialiased, pixel_centres, resize_positions
from fundax.encoders.vit import ViT
from fundax.interop import keymap
from fundax.interop.checkpoint import Format, reading, say_once
from fundax.interop.folder import read_record
from fundax.interop.formats import all_formats, format_of
from fundax.interop.pretrained import located
from fundax.interop.read import has_configuration, is_run, load, read_objective, read_run
from fundax.interop.weights import State, is_there, read_state
from fundax.objectives.clip import CLIP
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten, like, unflatten, unstack_blocks
from fundax.runtime import serialize
from fundax.types import Extra, Params, UserError

_log = logging.getLogger("fundax")

TOWERS = ("image", "text")
# Parts that belong to one task: they come along where they fit as a whole, and are new otherwise.
HEADS = ("head", "decoder", "masked", "findings", "caption", "reference", "fuse_public", "fuse_elite", "target")
# Fields that change what the same tensors compute: shapes do not show them. From another kind of objective only the
# tokens are used, so that pooling does not matter there.
SAME_TOKENS: dict[type, tuple[str, ...]] = {
    ViT: ("heads", "activation", "epsilon"),
    TextTransformer: ("heads", "activation", "epsilon", "causal"),
    BERT: ("heads", "activation", "epsilon"),
}
# What a run decides of an encoder that it starts from, and what it takes in addition to the encoders.
OF_THE_RUN = ("dtype", "remat", "attention", "scan", "drop_path", "mask_ratio", "vocab", "context", "dropout")
OF_THE_MODEL = (
    "embed",
    "image_projection",
    "mean",
    "std",
    "text_bias",
    "init_logit_bias",
    "contrast",
    "project",
    "normalize",
)
SCANNED = 12  # blocks from which on layers are compiled once
SAME_POOLING: dict[type, tuple[str, ...]] = {ViT: ("pool", "norm_after_pool"), TextTransformer: ("pool",)}


@dataclass(frozen=True)
class WarmStart:
    """Steps for `Recipe(init_from=..., init_extra=...)`; () means fresh parameters."""

    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Extra], Extra], ...] = ()

    def __add__(self, other: WarmStart) -> WarmStart:
        return WarmStart(self.init_from + other.init_from, self.init_extra + other.init_extra)


@dataclass(frozen=True)
class _Source:
    """A checkpoint to start from.

    known: a configuration gives what shapes do not show. partial: parts of the objective are missing.
    """

    objective: Any
    params: Params
    extra: Extra
    known: bool = True
    partial: bool = False


def warm_start(
    path: str | Path, objective: Any, parts: Collection[str] = (), *, checkpoint: int | str = ""
) -> WarmStart:
    """Steps that fill `objective` from a run, an exported folder or a file of weights; "" leaves it fresh.

    From an objective of the same kind everything is taken, and task heads where they fit. From another kind the encoders
    that both have (`image`, `text`) are taken, and other parts where they fit as a whole; the rest stays fresh and the
    log says so. Objectives of another kind get the teacher of a self-distilled pretraining. Image positions are resized by
    the rule of the objective's method; text positions beyond the model's are cut. Batch statistics come with their
    encoder.

    Args:
        path: anything that `load` opens, or a BERT, Chinese-CLIP or CLIP file without configuration. It is read when a
            run starts, not here.
        objective: the model to fill.
        parts: fill these parts alone ("image", "text", "project", ...), all of which must fit.
        checkpoint: which checkpoint of a run: "best", "latest" or a step; "" is the best one if the run selected one.
    Raises (when a step is called):
        UserError: keys that are missing or unknown and tensors of another shape, by name; a configuration that computes
            something else with the same tensors (heads, activation, pooling).
    """
    if not str(path):
        return WarmStart()
    path = located(path)

    def fill(params: Params) -> Params:
        return _filled(_opened(path, objective, checkpoint), objective, params, parts, str(path))

    def fill_extra(extra: Extra) -> Extra:
        if not set(extra) & {"image", "head", "batch_stats"}:
            return extra
        return taken_extra(_opened(path, objective, checkpoint).extra, extra, parts)

    return WarmStart((fill,), (fill_extra,))


def sized_like(path: str | Path, objective: Any) -> Any:
    """`objective` with the encoders, width of features, mean and deviation of the model at `path`, to start from it.

    What a run decides stays: dtype, rematerialisation, attention, masking, vocabulary and length of texts. "" and files
    without configuration say nothing, and a model of another kind is left to `warm_start`: then nothing changes.
    """
    found = _described(located(path)) if str(path) else None
    if type(found) is not type(objective) or not set(TOWERS) <= {field.name for field in dataclasses.fields(objective)}:
        return objective
    towers = {}
    for name in TOWERS:
        ours, theirs = getattr(objective, name), getattr(found, name)
        towers[name] = theirs.clone(
            **{k: getattr(ours, k) for k in OF_THE_RUN if hasattr(ours, k) and hasattr(theirs, k)}
        )
        if towers[name].depth > SCANNED and hasattr(ours, "scan"):
            towers[name] = towers[name].clone(scan=True)
    fields = {name: getattr(found, name) for name in OF_THE_MODEL if hasattr(found, name)}
    return dataclasses.replace(objective, **towers, **fields)


def _described(path: Path) -> Any:
    """The objective of a run, or of a folder with a configuration; None where weights alone are there."""
    if is_run(path):
        return read_objective(path)
    for found in all_formats():
        if found.objective_of is not None and path.is_dir() and all(is_there(path / name) for name in found.files):
            with reading(found.title, path):
                objective = found.objective_of(path)
            if objective is not None:
                return objective
    record = read_record(path) if path.is_dir() else {}
    return serialize.from_json(record["objective"]) if "objective" in record else None


def kind(objective: Any) -> type:
    """The method of an objective: KeepFIT has the parameters of its base, FLAIR."""
    return type(getattr(objective, "base", objective))


def taken_extra(theirs: Extra, ours: Extra, parts: Collection[str] = ()) -> Extra:
    """Batch statistics of another checkpoint where they have our shapes; a decoder's are `batch_stats`."""
    names = {"image": "image", "head": "head", "batch_stats": "decoder"}
    taken = {
        name: theirs[name]
        for name, part in names.items()
        if name in ours and name in theirs and (not parts or part in parts) and same_shapes(theirs[name], ours[name])
    }
    return {**ours, **taken}


def same_shapes(a: Any, b: Any) -> bool:
    """Whether two trees have the same paths and shapes, layers stacked or not."""
    shapes = [{path: np.shape(leaf) for path, leaf in _flat(tree).items()} for tree in (a, b)]
    return shapes[0] == shapes[1]


def fit_positions(state: State, shapes: keymap.Shapes, rule: Callable[[int, int], np.ndarray]) -> State:
    """Resize (images) or cut (texts) the position tables of a state dict with our paths to `shapes`."""
    fitted = dict(state)
    for path, value in state.items():
        if path.endswith(("position", "position/embedding")) and path in shapes and value.ndim == 2:
            if path.startswith("text"):
                fitted[path] = value[: shapes[path][0]]
            elif len(shapes[path]) == 2:
                class_row = f"{path.removesuffix('position')}class_token" in shapes
                fitted[path] = resize_positions(value, shapes[path][0], rule, class_row=class_row)
    return fitted


def _opened(path: str | Path, objective: Any, checkpoint: int | str) -> _Source:
    if is_run(path):
        run = read_run(path, checkpoint)
        found = _Source(run.objective, run.params, run.extra)
        if "model" in run.params:  # behind an adapter
            found = _Source(run.objective.model, run.params["model"], run.extra.get("model", {}))
        if "teacher" in found.extra and kind(objective) is not kind(found.objective):
            found = _Source(found.objective, found.extra["teacher"], {})
        return found
    state = read_state(path)
    found_format = format_of(state, str(path))
    known = has_configuration(found_format, Path(path))
    if found_format.read_as is not None and not known:
        if issubclass(kind(objective), found_format.fills or found_format.holds):
            return _read_as(found_format, objective, state, str(path))
        if found_format.configured:
            raise UserError(
                f"{path}: {found_format.title} without {found_format.files[1]} cannot fill a {kind(objective).__name__}: "
                "nothing says what its tensors compute"
            )
    model = load(path)
    params, extra = model.params, model.extra
    if "teacher" in extra and kind(objective) is not kind(model.objective):
        params, extra = extra["teacher"], {}
    return _Source(model.objective, params, extra, known)


def _read_as(found: Format, objective: Any, state: State, path: str) -> _Source:
    """Read a file without configuration as the given objective."""
    assert found.read_as is not None
    with reading(found.title, path):
        params, extra = found.read_as(objective, state, path)
    if found.configured:
        activation = getattr(getattr(objective, "image", None), "activation", None)
        named = f" ({activation.__name__})" if activation else ""
        _log.warning(
            "%s: no %s in the folder of the weights, so activation%s, heads and pooling are taken to be the model's own",
            path, found.files[1], named,
        )  # fmt: skip
    return _Source(objective, params, extra, known=False, partial=kind(objective) not in found.holds)


def _filled(source: _Source, objective: Any, params: Params, parts: Collection[str], path: str) -> Params:
    _compare_moments(source, objective, path)
    same = kind(source.objective) is kind(objective)
    required = _required(source, params, parts, same, path)
    for part in TOWERS:
        if part in required:
            _check_meaning(source, objective, part, same, path)
    rule = {CLIP: antialiased, RetCLIP: aligned_corners}.get(kind(objective), pixel_centres)
    ours, theirs = _flat(params), own_state(source.params)
    shapes = {key: tuple(np.shape(leaf)) for key, leaf in ours.items() if _top(key) in required}
    state = {key: leaf for key, leaf in theirs.items() if _top(key) in required}
    # only a self-distilled student has a mask token, and it is quickly learned from scratch
    kept = {key for key in shapes.keys() ^ state.keys() if key.endswith("mask_token")}
    shapes = {key: shape for key, shape in shapes.items() if key not in kept}
    state = {key: leaf for key, leaf in state.items() if key not in kept}
    loaded = flatten(keymap.read(own_rows(shapes), fit_positions(state, shapes, rule), shapes, path))
    loaded |= _optional(theirs, ours, required, parts, source.partial)
    taken = {_top(key) for key in loaded}
    new = sorted({_top(key) for key in ours.keys() - loaded.keys() - kept})
    _log.info("%s: loaded %s%s", path, ", ".join(sorted(taken)), f"; new: {', '.join(new)}" if new else "")
    tree = unflatten({key: loaded.get(key, leaf) for key, leaf in ours.items() if _top(key) in taken})
    return {**params, **{name: like(params[name], tree[name]) for name in taken}}


def _compare_moments(source: _Source, objective: Any, path: str) -> None:
    """Log a difference between the normalisation of images in the checkpoint and in this run."""
    theirs, ours = preprocessing(source.objective), preprocessing(objective)
    for name in ("mean", "std") if source.known and theirs and ours else ():
        if np.shape(theirs[name]) == np.shape(ours[name]) and not np.allclose(theirs[name], ours[name], atol=1e-6):
            say_once(f"{path}: its images have {name} {theirs[name]}, those of this run {ours[name]}")


def _required(source: _Source, params: Params, parts: Collection[str], same: bool, path: str) -> set[str]:
    """The parts that must fit."""
    theirs = set(source.params)
    if missing := sorted(set(parts) - theirs):
        raise UserError(f"{path}: the checkpoint has no {', '.join(missing)}; it has {', '.join(sorted(theirs))}")
    if parts:
        return set(parts)
    if same and not source.partial:
        return set(params) - set(HEADS)
    if towers := {part for part in TOWERS if part in params and part in theirs}:
        return towers
    raise UserError(
        f"{path}: the checkpoint has {', '.join(sorted(theirs))} and the model {', '.join(sorted(params))}: no encoder in common"
    )


def _optional(
    theirs: State, ours: Mapping[str, Any], required: set[str], parts: Collection[str], leaves: bool
) -> dict[str, Any]:
    """Further parts that fit: as a whole, or leaf by leaf (`leaves`) of a checkpoint that lacks some."""
    if parts:
        return {}
    found = {}
    for part in {_top(key) for key in theirs} - required:
        wanted = {key: np.shape(leaf) for key, leaf in ours.items() if _top(key) == part}
        there = {key: leaf for key, leaf in theirs.items() if _top(key) == part}
        fitting = {key: leaf for key, leaf in there.items() if wanted.get(key) == np.shape(leaf)}
        if leaves or (wanted and len(fitting) == len(there) == len(wanted)):
            found |= fitting
    return found


def _check_meaning(source: _Source, objective: Any, part: str, same: bool, path: str) -> None:
    """Raise UserError if equal tensors would compute something else here than where they come from."""
    a, b = (getattr(model, part, None) for model in (source.objective, objective))
    if type(a) is not type(b):
        raise UserError(
            f"{path}: the checkpoint's {part} encoder is a {type(a).__name__}, the model's a {type(b).__name__}"
        )
    fields = SAME_TOKENS.get(type(a), ()) + (SAME_POOLING.get(type(a), ()) if same else ())
    for name in fields if source.known else ():
        found, expected = (_plain(getattr(tower, name)) for tower in (a, b))
        if found != expected:
            raise UserError(f"{path}: the checkpoint has {part}.{name} = {found}, the model {expected}")


def _plain(value: Any) -> Any:
    """Functions by name; the two ways to find the end of a text count as one."""
    value = getattr(value, "__name__", value)
    return "argmax" if value == "eot" else value


def own_rows(shapes: keymap.Shapes) -> list[keymap.Row]:
    """The table of a checkpoint of our own: paths are keys."""
    return [keymap.Row(path, (path,), keymap.SAME) for path in shapes]


def own_state(params: Params) -> State:
    """Parameters as a state dict whose keys are their paths, layers unstacked."""
    return {path: np.asarray(leaf) for path, leaf in _flat(params).items()}


def _flat(params: Params) -> dict[str, Any]:
    return flatten(unstack_blocks(params))


def _top(path: str) -> str:
    return path.split("/")[0]
