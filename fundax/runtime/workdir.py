"""Read and write the files of a run directory."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.runtime.remote import shown
from fundax.types import UserError


def make(workdir: str | Path) -> None:
    """Create the folder of a run if it is not there. Raises UserError where that cannot be done."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error.strerror}") from None


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
        raise UserError(f"{shown(workdir)} is not a run: it has no config.json")
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


def read_about(workdir: str | Path, name: str) -> dict[str, Any]:
    """What evals/<name>.npz says about its data and step (`about`); {} where there is no such file, or it says nothing."""
    path = Path(workdir) / "evals" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = json.loads(str(stored["about"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically: after a crash there is either the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_text(value), encoding="utf-8")
    os.replace(temporary, path)


def digest_of_json(value: Any) -> str:
    """A digest of a value: 12 hex digits of the SHA-256 of the file that write_json makes of it."""
    return hashlib.sha256(_text(value).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
