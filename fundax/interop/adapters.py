"""Low-rank adapters alone: the trained parameters of a run with --tune lora:RANK, without the base model.

A folder holds adapters.safetensors (the adapters and whatever else trained, such as the head), config.json (the objective,
--tune, and the digest of every parameter of the base), and the run's preprocessing and tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.language import tokenizers
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.folder import fresh_folder
from fundax.interop.initial import own_state
from fundax.interop.read import load, read_objective, read_run
from fundax.interop.weights import digests, read_state, write_safetensors
from fundax.params import flatten, unflatten
from fundax.runtime import serialize
from fundax.runtime.checkpoint import load_saved, resolve
from fundax.runtime.workdir import read_json, read_optional_json, write_json
from fundax.tuning import COPIES, merged, rows_of, tuning
from fundax.types import UserError

NAME, WEIGHTS = "adapters", "adapters.safetensors"
_EXTRA = "extra/"


def write_adapters(run: str | Path, out: str | Path, checkpoint: int | str = "", overwrite: bool = False) -> str:
    """Write the adapters and other trained parameters of a run to a folder; returns a line about it.

    Raises UserError for a run without adapters, and for one whose answers come from an average of its parameters.
    """
    step = resolve(run, checkpoint)
    word = str(read_optional_json(Path(run) / "config.json").get("args", {}).get("tune"))
    if not word.startswith("lora:"):
        raise UserError(f"{run} has no adapters; expected a run of --tune lora:RANK")
    params, extra = load_saved(run, step)
    if copies := [name for name in COPIES if name in extra]:
        raise UserError(f"{run} answers by the {copies[0]} of its parameters, which adapters alone do not hold")
    flat = flatten(params)
    rows = rows_of(tuning(word), flat)
    trained = own_state(unflatten({path: leaf for path, leaf in flat.items() if rows[path]}))
    base = own_state(unflatten({path: leaf for path, leaf in flat.items() if not rows[path]}))
    state = trained | {_EXTRA + path: leaf for path, leaf in own_state(extra).items() if not path.startswith("image/")}
    model = read_run(run, step)
    with fresh_folder(out, overwrite) as folder:
        write_safetensors(state, folder / WEIGHTS)
        facts = {"objective": serialize.to_json(model.objective), "tune": word, "source": dict(model.source)}
        write_json(folder / "config.json", facts | {"base": digests(base)})
        write_json(folder / "preprocessing.json", dict(model.preprocessing))
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer")
    count, whole = (sum(leaf.size for leaf in one.values()) for one in (trained, base))
    return f"{out}: {count:,} parameters of {run}, step {step}, for a base of {whole:,}; read by: launch.py import {out} --base"


def read_adapters(path: str | Path, base: str | Path) -> Checkpoint:
    """Read adapters and merge them into the kernels of the base that they were trained on.

    Args:
        path: a folder of `write_adapters`.
        base: what the run started from (its --init): anything that `load` opens.
    Raises:
        UserError: `path` is not such a folder, or a parameter of the base is missing or different.
    """
    folder = Path(path)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{path}: no {WEIGHTS}; expected a folder that export --to {NAME} wrote")
    facts, trained = read_json(folder / "config.json"), dict(read_state(folder / WEIGHTS))
    model = load(base)
    owner = model.extra.get("average") or model.extra.get("teacher") or model.params
    theirs, wanted = own_state(owner), dict(facts["base"])
    known = {name: leaf for name, leaf in theirs.items() if name in wanted}
    found = digests(known)
    if wrong := sorted(name for name, digest in wanted.items() if found.get(name) != digest):
        kind = "is not that of" if wrong[0] in found else "is missing in"
        raise UserError(
            f"{base} is not the base of {path}: {wrong[0]} {kind} the model that the adapters were trained on "
            f"({len(wrong)} of {len(wanted)} parameters differ)"
        )
    extra = {name.removeprefix(_EXTRA): trained.pop(name) for name in sorted(trained) if name.startswith(_EXTRA)}
    extra |= {name: leaf for name, leaf in own_state(model.extra).items() if name.startswith("image/")}
    params: dict[str, Any] = merged(unflatten({name: np.asarray(leaf) for name, leaf in {**known, **trained}.items()}))
    words = tokenizers.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    facts_of_images = read_optional_json(folder / "preprocessing.json")
    source = {"name": folder.resolve().name, "format": NAME}
    return dataclasses.replace(
        model, objective=read_objective(folder), params=params, preprocessing=facts_of_images, tokenizer=words,
        source=source, extra=unflatten(extra), origin=f"{NAME} on {model.origin}",
    )  # fmt: skip
