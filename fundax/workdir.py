"""What a run leaves beside its checkpoints, so that the folder explains and rebuilds itself."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax import spec
from fundax.errors import UserError
from fundax.recipe import Recipe

_PACKAGES = ("fundax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_log = logging.getLogger("fundax")


def describe(recipe: Recipe, workdir: str | Path) -> None:
    """Write config.json, a copy of the config as config.py, preprocessing.json and tokenizer/; process 0 only.

    A run that only evaluates leaves those of the training run as they are.
    """
    folder = Path(workdir)
    if jax.process_index() or (recipe.steps == 0 and (folder / "config.json").exists()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {folder}: {error.strerror}") from None
    config = {
        **recipe.source,
        "objective": _objective(recipe),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "best": recipe.best,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessing.json", dict(recipe.preprocessing))
    original, copy = Path(str(recipe.source.get("config", ""))), folder / "config.py"
    if original.is_file() and original.resolve() != copy.resolve():
        shutil.copyfile(original, copy)
    if recipe.tokenizer is not None:
        recipe.tokenizer.save(folder / "tokenizer")


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


def _objective(recipe: Recipe) -> Any:
    try:
        return spec.to_json(recipe.objective)
    except UserError as error:
        _log.warning("config.json holds no objective, so the run opens only with its config: %s", error)
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
