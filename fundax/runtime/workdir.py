"""Read and write the files of a run directory."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.types import UserError

_PACKAGES = ("fundax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_log = logging.getLogger("fundax")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises UserError naming the file if it does not exist or holds anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_optional_json(path: str | Path) -> dict[str, Any]:
    """The same, or {} if there is no such file."""
    return read_json(path) if Path(path).is_file() else {}


def read_config(workdir: str | Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError if the folder is not a run."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a run: it has no config.json")
    return read_json(path)


def write_arrays(workdir: str | Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write evals/<name>.npz, replacing the file atomically; process 0 only."""
    if not arrays or jax.process_index():
        return
    folder = Path(workdir) / "evals"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{name}.tmp.npz"
    np.savez_compressed(temporary, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
    os.replace(temporary, folder / f"{name}.npz")


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically: after a crash there is either the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
