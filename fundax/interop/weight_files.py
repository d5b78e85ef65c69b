"""Dtype and number of the weights files of an exported folder: float16 and bfloat16, and shards with an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.folder import RECORD
from fundax.interop.weights import State, digests, read_state, write_safetensors
from fundax.params import flatten
from fundax.runtime.workdir import read_json, write_json
from fundax.types import UserError

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LARGEST_FILE = 5 * 10**9  # bytes of a weights file, as in transformers


def check_dtype(found: Format, dtype: str) -> None:
    """Raise UserError for a dtype that the format does not have."""
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected {', '.join(DTYPES)}")
    if dtype != "float32" and not found.narrow:
        raise UserError(f"{found.title} is written in float32 alone, not {dtype}")


def rounded(model: Checkpoint, dtype: str) -> Checkpoint:
    """Round the numbers of a model to `dtype`. Raises UserError for a number that it cannot hold."""
    kind = DTYPES[dtype]

    def narrow(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        with np.errstate(over="ignore"):
            return leaf.astype(kind).astype(leaf.dtype) if leaf.dtype.kind == "f" else leaf

    params, extra = jax.tree.map(narrow, (model.params, dict(model.extra)))
    before, after = (
        flatten({"params": one.params, "extra": one.extra}) for one in (model, Checkpoint(0, params, {}, extra=extra))
    )
    if lost := sorted(
        path for path in before if not np.isfinite(after[path]).all() and np.isfinite(before[path]).all()
    ):
        raise UserError(f"{dtype} does not hold the numbers of {', '.join(lost[:3])}; use bfloat16 or float32")
    return dataclasses.replace(model, params=params, extra=extra)


def store_as(folder: Path, found: Format, dtype: str, largest: int = LARGEST_FILE) -> None:
    """Rewrite the weights files of an exported folder in `dtype`, and in shards of at most `largest` bytes.

    A tensor that is larger has a file of its own. Configurations and the record follow. Formats without shards keep one
    file.
    """
    if not (found.narrow or found.shards):
        return
    record, changed = read_json(folder / RECORD), False
    for path in sorted(folder.rglob("*.safetensors")):
        state = read_state(path)
        cast = {
            name: value.astype(DTYPES[dtype]) if value.dtype.kind == "f" else value for name, value in state.items()
        }
        shards = parts_of(cast, largest) if found.shards else [cast]
        if dtype == "float32" and len(shards) == 1:
            continue
        _record(record, digests(cast))
        path.unlink()
        changed = True
        write_shards(shards, path)
    if not changed:
        return
    write_json(folder / RECORD, record)
    for path in folder.rglob("config.json"):
        config = read_json(path)
        write_json(path, config | {name: dtype for name in ("dtype", "torch_dtype") if name in config})


def _record(record: Mapping[str, Any], new: Mapping[str, str]) -> None:
    """Replace the digests of one file's tensors."""
    for section in (record["tensors_sha256"], *record.get("towers_sha256", {}).values()):
        if section.keys() == new.keys():
            section.update(new)


def parts_of(state: State, largest: int) -> list[State]:
    """The tensors, in their order, in parts of at most `largest` bytes; a larger tensor is alone."""
    parts: list[State] = [{}]
    size = 0
    for name, value in state.items():
        if parts[-1] and size + value.nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += value.nbytes
    return parts


def write_shards(shards: list[State], path: Path) -> None:
    """Write one file at `path`, or several files with an index, named as transformers does."""
    if len(shards) == 1:
        write_safetensors(shards[0], path)
        return
    names = [f"{path.stem}-{i:05d}-of-{len(shards):05d}{path.suffix}" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(shard, path.with_name(name))
    total = sum(value.nbytes for shard in shards for value in shard.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    write_json(path.with_name(f"{path.name}.index.json"), {"metadata": {"total_size": total}, "weight_map": weight_map})
