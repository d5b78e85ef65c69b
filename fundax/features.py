"""Features of a whole data set, taken once: one pass of the forward function, kept in a file if wanted."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fundax import layout
from fundax.errors import UserError
from fundax.types import Batch, Extra, Forward, Params

_log = logging.getLogger("fundax")


def extract(
    forward: Forward,
    params: Params,
    extra: Extra,
    data: Callable[[], Iterable[Batch]],
    names: Sequence[str],
    *,
    beside: Sequence[str] = ("label",),
    inputs: Sequence[str] = (),
    cache: str | Path = "",
    fingerprint: str = "",
) -> dict[str, np.ndarray]:
    """Rows of one pass that are no padding: f32 [N ...] of every feature in `names`, and the batch keys `beside`.

    inputs: the keys, among those a batch has, that the forward pass gets; () is all but `beside`.
    forward spreads a batch over all devices. cache: a folder; a pass is kept there under the digest of params and
    extra, the names and `fingerprint`, which says what the data are (their files' digest, or a synthetic source's
    settings), and is read instead of computed when all three agree. Without a fingerprint nothing is kept.

    Raises UserError for a feature the model does not give, one that is not finite, a key that batches lack, no rows.
    """
    path = None
    if cache and fingerprint:
        told = "\n".join((digest(params, extra), *names, *beside, fingerprint))
        path = Path(cache) / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"
        if (kept := _read(path, (*names, *beside))) is not None:
            return kept
    rows = _pass(forward, params, extra, data, names, beside, inputs)
    if path is not None:
        _write(path, rows)
    return rows


def digest(*trees: Any) -> str:
    """SHA-256 of the paths, shapes, dtypes and bytes of every array."""
    state = hashlib.sha256()
    for tree in trees:
        for name, leaf in sorted(layout.flatten(tree).items()):
            array = np.ascontiguousarray(leaf)
            state.update(f"{name} {array.dtype} {array.shape}\n".encode())
            state.update(array.tobytes())
    return state.hexdigest()


def _pass(
    forward: Forward,
    params: Params,
    extra: Extra,
    data: Callable[[], Iterable[Batch]],
    names: Sequence[str],
    beside: Sequence[str],
    inputs: Sequence[str],
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, *beside)}
    for batch in data():
        if missing := [key for key in beside if key not in batch]:
            raise UserError(f"batches have {', '.join(sorted(batch))}; expected also {missing[0]!r}")
        chosen = [key for key in batch if (key in inputs if inputs else key not in beside)]
        out = forward(params, extra, {key: batch[key] for key in chosen})
        if missing := [name for name in names if name not in out]:
            raise UserError(f"the model gives {', '.join(sorted(out))}; expected the feature {missing[0]!r}")
        valid = np.asarray(batch["valid"] if "valid" in batch else np.ones(len(out[names[0]]), bool))
        for name in names:
            parts[name].append(np.asarray(out[name], np.float32)[valid])
        for key in beside:
            parts[key].append(np.asarray(batch[key])[valid])
    rows = {name: np.concatenate(part) for name, part in parts.items() if part}
    if not rows or not len(rows[names[0]]):
        raise UserError("the data set has no rows")
    for name in names:
        if not np.isfinite(rows[name]).all():
            raise UserError(f"{name} is not finite in some rows; the weights may be broken")
    return rows


def _read(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError) as error:
        _log.warning("%s cannot be read (%s): features are computed again", path, error)
        return None


def _write(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Whole or not at all: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, **rows)  # pyright: ignore[reportArgumentType]
    os.replace(file.name, path)
