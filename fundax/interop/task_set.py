"""Task sets: several heads and decoders on one frozen encoder, as one small folder, such as `fundax-small`.

A task set is a folder with model.json, model.safetensors and README.md. `FOLDER/TASK` names one of its tasks, which every
verb opens like a run; the folder itself opens as its encoder. Convolution kernels are stored as fp16, the rest as fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.encoders.backbone import Encoder
from fundax.interop.checkpoint import Checkpoint, stored_preprocessing
from fundax.interop.folder import fresh_folder
from fundax.interop.weights import State, digests, read_state, write_safetensors
from fundax.params import flatten, unflatten
from fundax.runtime import serialize
from fundax.runtime.shapes import TaskSet
from fundax.runtime.workdir import read_json, write_json
from fundax.types import UserError

CONFIG, WEIGHTS, CARD = "model.json", "model.safetensors", "README.md"
ENCODER = "encoder"
VERSION = 1
_NARROW = 4096  # numbers of a kernel from which on it is stored as fp16


def is_task_set(path: str | Path) -> bool:
    """Whether `path` is the folder of a task set."""
    return _has_config(Path(path))


def is_task(path: str | Path) -> bool:
    """Whether `path` is FOLDER/TASK of a task set."""
    return not Path(path).exists() and _has_config(Path(path).parent)


def set_of(path: str | Path) -> Path:
    """The folder of the task set that FOLDER/TASK belongs to; any other path is returned as it is."""
    return Path(path).parent if is_task(path) else Path(path)


def read_about(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What was stored about each task: title, modality, thresholds; see `write_task_set`."""
    return {name: dict(task["about"]) for name, task in _config(Path(folder))["tasks"].items()}


def read_task(path: str | Path) -> Checkpoint:
    """The model of FOLDER/TASK. Raises UserError for a task that the set does not have."""
    folder, name = Path(path).parent, Path(path).name
    return read_task_set(folder, name)[name]


def read_encoder(folder: str | Path) -> Checkpoint:
    """The encoder of a task set, with the preprocessing of its first task."""
    config, state = _read(Path(folder))
    first = next(iter(config["tasks"].values()))
    task = serialize.from_json(first["objective"])
    encoder = Encoder(task.image, *_normalisation(task))
    params, extra = _tree(state, ENCODER)
    facts = stored_preprocessing(encoder, {k: v for k, v in first["preprocessing"].items() if k != "classes"})
    return Checkpoint(encoder, params, facts, None, {"name": Path(folder).name}, extra, "encoder of a task set")


def read_task_set(folder: str | Path, *names: str) -> dict[str, Checkpoint]:
    """The models of a task set by name: those of `names`, or all. They have the same arrays of the encoder.

    Raises UserError if a file is missing or damaged, or a task is unknown.
    """
    folder = Path(folder)
    config, state = _read(folder)
    shared = _tree(state, ENCODER)
    found = {}
    for name in names or config["tasks"]:
        if name not in config["tasks"]:
            raise UserError(f"{folder}: there is no task {name!r}; expected one of {', '.join(config['tasks'])}")
        stored = config["tasks"][name]
        objective = serialize.from_json(stored["objective"])
        params, extra = ({**one, **own} for one, own in zip(shared, _tree(state, name), strict=True))
        facts = stored_preprocessing(objective, stored["preprocessing"])
        found[name] = Checkpoint(
            objective, params, facts, None, {"name": f"{folder.name}/{name}"}, extra, f"task {name} of {folder.name}"
        )
    return found


def write_task_set(
    out: str | Path, tasks: Mapping[str, Checkpoint], about: Mapping[str, Mapping[str, Any]], card: str,
    overwrite: bool = False,
) -> str:  # fmt: skip
    """Write models that share one frozen encoder as a folder; returns a line about it.

    Args:
        tasks: the models by name, which becomes part of a path.
        about: JSON facts of each task: `modality` of its images ("" for any), `title` in words, `sure`, the score from
            which on an answer counts as sure (of landmarks, by name), and of a classifier `usual`, the distance of
            features above which an image counts as unusual; `kinds` of the task that recognises modalities.
        card: text of README.md.

    Raises:
        UserError: encoders that differ, or a folder that is not empty.
    """
    state: State = {}
    for name, model in tasks.items():
        for kind, tree in (("params", model.params), ("extra", model.extra)):
            for path, leaf in flatten(dict(tree)).items():
                owner = ENCODER if path.startswith("image/") else name
                key, value = f"{owner}/{kind}/{path}", _stored(np.asarray(leaf))
                if not np.array_equal(state.setdefault(key, value), value):
                    raise UserError(f"{name}: its encoder differs from that of {next(iter(tasks))} ({path})")
    config = {
        "version": VERSION,
        "sha256": digests(state),
        "tasks": {
            name: {
                "objective": serialize.to_json(model.objective),
                "preprocessing": dict(model.preprocessing),
                "about": dict(about[name]),
            }
            for name, model in tasks.items()
        },
    }
    with fresh_folder(out, overwrite) as folder:
        write_safetensors(state, folder / WEIGHTS)
        write_json(folder / CONFIG, config)
        (folder / CARD).write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in Path(out).iterdir()) / 2**20
    return f"{out}: {', '.join(tasks)}; {sum(x.size for x in state.values()):,} numbers, {size:.1f} MiB"


def _stored(leaf: np.ndarray) -> np.ndarray:
    """Large kernels as fp16; biases, norms, statistics and linear heads as they are."""
    return leaf.astype(np.float16) if leaf.ndim >= 4 or (leaf.ndim > 1 and leaf.size >= _NARROW) else leaf


def _tree(state: Mapping[str, np.ndarray], owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and extra state under a name, fp32."""
    out = []
    for kind in ("params", "extra"):
        prefix = f"{owner}/{kind}/"
        flat = {key.removeprefix(prefix): leaf for key, leaf in state.items() if key.startswith(prefix)}
        tree = unflatten(flat)
        out.append(jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, tree))
    return out[0], out[1]


def _normalisation(task: Any) -> tuple[Any, Any]:
    """Mean and deviation of an encoder from a task on it: a row for each modality."""
    owner = getattr(task, "tower", task)
    return tuple(rows if isinstance(rows[0], tuple) else (rows,) for rows in (owner.mean, owner.std))


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG, TaskSet)
    if config["version"] != VERSION:
        raise UserError(f"{folder / CONFIG}: version {config['version']}; this fundax reads version {VERSION}")
    return config


def _read(folder: Path) -> tuple[dict[str, Any], State]:
    config, state = _config(folder), read_state(folder / WEIGHTS)
    if digests(state) != config["sha256"]:
        raise UserError(f"{folder / WEIGHTS} is not what {CONFIG} describes (SHA-256); write the folder again")
    return config, state
