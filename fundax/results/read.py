"""Read a run directory for figures and reports: configuration, training curves, and the results of its evaluations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fundax.evals.kinds import Result, read
from fundax.results.about import about
from fundax.results.checked import check
from fundax.results.older import with_kind
from fundax.runtime.arrays import read_arrays
from fundax.runtime.shapes import Config
from fundax.runtime.workdir import read_optional_json
from fundax.types import UserError


@dataclass(frozen=True, eq=False)
class Run:
    """The contents of a run directory.

    `config` is config.json, `curves` are (steps, values) of metrics.jsonl by metric, `results` are the results by name of
    the evaluation, and `digests` the digests of the files that were read.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    results: Mapping[str, Result]
    digests: Mapping[str, str]


def read_run(path: str | Path, name: str = "") -> Run:
    """Read a run directory. `name` defaults to the name of the folder.

    Raises UserError for a folder that is not a run or has no evaluations.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run")
    config, files = read_optional_json(path / "config.json", Config), result_files(path)
    if not config and not files:
        raise UserError(f"{path} is not a run: it has no config.json")
    if not files:
        raise UserError(f"{path} has no evaluations (evals/*.npz); launch.py eval {path} writes them")
    curves = read_curves(path / "metrics.jsonl")
    results = {file.stem: _with_metrics(read_result(file), file.stem, curves) for file in files}
    seen = [path / "config.json", path / "preprocessing.json", *files]
    digests = {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in seen if f.is_file()}
    return Run(name or path.resolve().name, path, config, curves, results, digests)


def result_files(workdir: str | Path) -> list[Path]:
    """The files of the evaluations of a run, sorted by name."""
    return sorted((Path(workdir) / "evals").glob("[!.]*.npz"))


def read_result(file: Path) -> Result:
    """Read the file of an evaluation of this or an earlier version. Raises UserError naming the file if it is invalid."""
    try:
        arrays = read_arrays(file)
    except UserError as error:
        raise UserError(f"{error}; launch.py eval writes it again") from None
    try:
        result = read(arrays if "kind" in arrays else with_kind(arrays))
        about(result)
        check(result)
        return result
    except (UserError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None


def _with_metrics(result: Result, name: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Result:
    """Add the last logged metrics to a result of an earlier version, which stored no metrics."""
    logged = {key.partition("/")[2]: y[-1] for key, (_, y) in curves.items() if key.partition("/")[0] == name}
    return result if result.metrics or not logged else replace(result, metrics=logged)


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read (steps, finite values) of a metrics.jsonl by metric. If a step was repeated after a restart, the last value is used."""
    values: dict[str, dict[float, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            if number == len(lines):  # a run that is being written to, or was killed
                break
            raise UserError(f"{path} line {number}: {line[:60]!r}; expected JSON with a step") from None
        for name, value in row.items():
            if isinstance(value, int | float) and np.isfinite(value) and name != "time":
                values.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(rows)), np.array([rows[step] for step in sorted(rows)])) for name, rows in values.items()
    }
