"""Read and write the files of a run directory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.runtime.arrays import read_arrays
from fundax.runtime.remote import shown
from fundax.runtime.shapes import Config, check_json
from fundax.types import UserError

# What a user can mend: a full disk or quota, a folder that cannot be written to, too many open files; and a wrong path.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
_WRONG_PATHS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def refusal(error: BaseException) -> str:
    """The reason for an error of the file system, or of its cause, in words; "" for other errors.

    TensorStore, which writes the arrays, reports such errors only as text.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        path = f": {seen.filename}" if isinstance(seen, OSError) and seen.filename else ""
        if number in _REFUSALS or (number in _WRONG_PATHS and path):
            return f"{os.strerror(number or 0)}{path}"
        if found := next((os.strerror(number) for number in _REFUSALS if os.strerror(number) in str(seen)), None):
            return found
        seen = seen.__cause__ or seen.__context__
    return ""


def first_line(cause: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]


def make(workdir: str | Path) -> None:
    """Create the folder of a run if it does not exist. Raises UserError if that cannot be done."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error.strerror}") from None


def check_output(path: str | Path) -> None:
    """Check, before long work, that a file or folder can be written; the folder it is in is made if it is not there.

    Raises UserError with the reason.
    """
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}: {error.filename or folder})") from None


def read_json(path: str | Path, form: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a JSON object of a declared type (runtime.shapes). Raises UserError, naming the file, if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    check_json(value, form, str(path), text)
    return value


def read_optional_json(path: str | Path, form: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a JSON file as `read_json` does, or return {} if the file does not exist."""
    return read_json(path, form) if Path(path).is_file() else {}


def read_config(workdir: str | Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError if the folder is not a run."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{shown(workdir)} is not a run: it has no config.json")
    return read_json(path, Config)


def write_arrays(workdir: str | Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write evals/<name>.npz, replacing the file atomically; process 0 only.

    `patient` is written as numbers in the order of the rows, from which no name can be found again.
    """
    if not arrays or jax.process_index():
        return
    arrays = {key: numbered(value) if key in ("patient", "group") else value for key, value in arrays.items()}
    folder = Path(workdir) / "evals"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{name}.tmp.npz"
    np.savez_compressed(temporary, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
    os.replace(temporary, folder / f"{name}.npz")


def numbered(patients: np.ndarray) -> np.ndarray:
    """Number patients i64 in the order in which they first occur."""
    _, first, member = np.unique(np.asarray(patients), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[member.reshape(np.shape(patients))]


def read_about(workdir: str | Path, name: str) -> dict[str, Any]:
    """The record of data and step (`about`) in evals/<name>.npz; {} if the file does not exist or has none."""
    path = Path(workdir) / "evals" / f"{name}.npz"
    try:
        found = json.loads(str(read_arrays(path, ("about",))["about"]))
    except (UserError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically: after a crash there is either the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_text(value), encoding="utf-8")
    os.replace(temporary, path)


def digest_of_json(value: Any) -> str:
    """Digest of a value: the first 12 hex digits of the SHA-256 of its JSON as write_json writes it."""
    return hashlib.sha256(_text(value).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
