"""Cross-validation by patient: train a model for each fold, pool the predictions, and save the models as one ensemble."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fundax.evals.kinds import Result
from fundax.objectives.ensemble import ensemble, shares_encoder, stacked
from fundax.recipe import Recipe
from fundax.results import pooling
from fundax.results.page import report
from fundax.results.read import read_result
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints, has_checkpoints, load_params
from fundax.runtime.workdir import make, write_arrays, write_json
from fundax.train.loop import fit
from fundax.types import UserError

PAGE = "report.html"
PART = "test"  # what each fold is held out as
_log = logging.getLogger("fundax")


def cross_validate(load: Callable[..., Recipe], workdir: str | Path, count: int, take_over: bool = False) -> Path:
    """Train a model for each of `count` folds of the patients, and write the ensemble as a run in `workdir`.

    Every fold is a run of its own, workdir/fold_K, which the same command resumes. The run in `workdir` holds the pooled
    predictions of all rows, each by the model that has not seen its patient (evals/test.npz), and an ensemble of the
    models to predict with. Returns the path of a page about it, whose intervals resample patients.

    Args:
        load: the recipe under further arguments of the config (data_pipelines.open.Sources has `fold` and `part`).
        workdir: folder to write.
        count: number of folds.
        take_over: see train.loop.fit.

    Raises:
        UserError: fewer than two folds, a config whose test evaluation cannot be pooled (results.pooling), a workdir that
            holds another run, and as `fit` does.
    """
    if count < 2:
        raise UserError(f"--folds {count}; expected at least 2")
    folder = Path(workdir)
    if has_checkpoints(folder) and not (folder / "fold_1").is_dir():
        raise UserError(f"{folder} holds a run that is not a cross-validation; give another --workdir")
    recipes, results = [], []
    for number in range(1, count + 1):
        fold, where = ("--fold", f"{number}/{count}"), folder / f"fold_{number}"
        recipe = load(*fold)
        _log.info("Fold %d of %d, in %s.", number, count, where)
        fit(recipe, where, take_over=take_over)
        if PART not in recipe.evals:
            fit(replace(load(*fold, "--part", PART), steps=0), where)
        recipes.append(recipe)
        results.append(_result(where))
    found = pooling.pooled(results)
    if jax.process_index() == 0:
        _write(folder, recipes[0], found, count)
        report([folder], folder / PAGE)
    return folder / PAGE


def fit_better(loads: Mapping[str, Callable[..., Recipe]], workdir: str | Path, count: int) -> str:
    """Cross-validate several configs on the same data, each in a folder of its name, and keep the best in model/.

    Returns a line on what was written, with a page that compares them (paired by row). Best is the largest macro AUC.
    Raises UserError as cross_validate does.
    """
    folder = Path(workdir)
    for name, load in loads.items():
        cross_validate(load, folder / name, count)
    page, best = folder / PAGE, max(loads, key=lambda name: _score(folder / name))
    if jax.process_index() == 0:
        report([folder / name for name in loads], page)
        ignored = shutil.ignore_patterns("fold_*", "figures")
        shutil.copytree(folder / best, folder / "model", ignore=ignored, dirs_exist_ok=True)
    return (
        f"{page}; {folder / 'model'} is the best of {', '.join(loads)}: {best}, macro AUC {_score(folder / best):.3f}"
    )


def _score(where: Path) -> float:
    return float(_result(where).metrics.get("macro_auc", 0.0))


def _result(where: Path) -> Result:
    path = where / "evals" / f"{PART}.npz"
    found = read_result(path)
    try:
        pooling.check(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def _write(folder: Path, recipe: Recipe, found: Result, count: int) -> None:
    """The run in the folder of the folds."""
    make(folder)
    states = [load_params(folder / f"fold_{number}") for number in range(1, count + 1)]
    shared = shares_encoder(states)
    params, extra = jax.device_get(stacked(states, shared))
    source = dict(recipe.source)
    config: dict[str, Any] = {
        "objective": serialize.to_json(ensemble(recipe.objective, count, shared)), "folds": count, "seed": recipe.seed,
        "origin": dict(recipe.origin), "data": {**recipe.data, "split": {}, "part": PART},
        **{name: source[name] for name in ("config", "argv", "args") if name in source},
    }  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessing.json", dict(recipe.preprocessing))
    about = {"data": [one["name"] for one in recipe.data.get("sources", [])], "digest": "", "part": PART, "step": 0}
    arrays = {key: np.asarray(value) for key, value in found.arrays().items()}
    write_arrays(folder, PART, arrays | {"about": np.array(json.dumps(about, ensure_ascii=False))})
    if not has_checkpoints(folder):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(0, {"params": params, "extra": extra, "opt": {}}, {}, {})
