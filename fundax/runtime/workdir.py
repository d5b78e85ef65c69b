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


def read_config(workdir: str | Path) -> dict[str, Any]:
    """config.json of a run; UserError where the folder is no run."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is no run: it has no config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def write_arrays(workdir: str | Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """evals/<name>.npz, replaced whole; process 0 only."""
    if not arrays or jax.process_index():
        return
    folder = Path(workdir) / "evals"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{name}.tmp.npz"
    np.savez_compressed(temporary, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
    os.replace(temporary, folder / f"{name}.npz")


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, replaced whole: a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
