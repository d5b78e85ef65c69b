"""Measure how well an encoder adapts to a modality without pretraining on it, with 1, 5 and 10 images per class.

    python benchmarks/unseen_modality.py --runs runs/unseen

Pretrains three small encoders on synthetic eyes and their reports (configs/quickstart.py): without FFA, without UWF, and
with CFP, UWF, FFA and OCT. Runs that are missing in --runs are trained, four minutes each on two cores. For FFA and UWF, a
logistic regression on frozen features is trained on k images of each of 14 conditions, and tested on unseen patients. It is
compared with a random encoder and with the encoder of all modalities. Intervals resample patients and draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
from record import Table, record

from data_pipelines.pipeline import one_epoch
from data_pipelines.sources.cached import CachedSource
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Squash
from data_pipelines.transforms.views import SingleView
from fundax.config import load
from fundax.evals.features import extract
from fundax.evals.few_shot import draw
from fundax.metrics import weighted
from fundax.recipe import Recipe
from fundax.runtime.checkpoint import load_params, saved_steps
from fundax.train.loop import fit
from fundax.types import Params

MODALITIES = ("CFP", "UWF", "FFA", "OCT")
UNSEEN = ("FFA", "UWF")
POOL, TEST = 5_000_000, 6_000_000  # first patient for training and for testing; pretraining uses other patients
CONFIG = str(Path(__file__).parent.parent / "configs" / "quickstart.py")
Rows = dict[str, np.ndarray]


def trained(folder: Path, modalities: tuple[str, ...], more: list[str]) -> tuple[Recipe, Params]:
    """The recipe and parameters of the run in `folder`. The run is trained if it is not finished."""
    recipe, _ = load(CONFIG, ["--modalities", *modalities, *more])
    steps = saved_steps(folder) if (folder / "checkpoints").is_dir() else ()
    if not steps or max(steps) < recipe.steps:
        fit(recipe, folder)
    return recipe, load_params(folder, "latest")[0]


def features(recipe: Recipe, params: Params, modality: str, start: int, count: int) -> Rows:
    """Unit features f32 [n E] and labels i32 [n] of patients, with one image per patient."""
    size = int(recipe.preprocessing["image_size"])
    eyes = Eyes(count, recipe.seed, start, (modality,), size)
    data = one_epoch(CachedSource(eyes), (SingleView(text=None), Squash(size), Select(("image", "label"))), batch=100)
    run = jax.jit(recipe.objective.forward)

    def forward(params: Any, extra: Any, batch: Any) -> dict[str, np.ndarray]:
        return jax.device_get(run(params, extra, {"image": batch["image"]}))

    return extract(forward, params, {}, data, ("image_raw",))


def scores(pool: Rows, test: Rows, shots: int, draws: int) -> np.ndarray:
    """Probabilities f64 [draws n K] of a logistic regression trained on `shots` images of each class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = int(pool["label"].max()) + 1
    out = np.zeros((draws, len(test["label"]), classes))
    for seed in range(draws):
        rows, note = draw(pool["label"], classes, shots, seed)
        if note:
            print(f"draw {seed}: {note}", file=sys.stderr)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(pool["image_raw"][rows], pool["label"][rows])
        out[seed][:, model.classes_] = model.predict_proba(test["image_raw"])
    return out


def aucs(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Macro AUC f64 [R draws] of every draw for R sets of row weights."""
    return np.stack([weighted.nanmean(weighted.class_aucs(labels, p, weights)) for p in probabilities], 1)


def interval(first: np.ndarray, second: np.ndarray | None, seed: int = 0) -> tuple[float, float, float]:
    """Mean over draws with its 95 % interval, for which patients (rows 1.. of [R draws]) and draws are resampled.

    With `second`, mean and interval of the difference for the same patients and draws.
    """
    values = first if second is None else first - second
    rng = np.random.default_rng(seed)
    draws = rng.integers(values.shape[1], size=(len(values) - 1, values.shape[1]))
    drawn = np.take_along_axis(values[1:], draws, 1).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(values[0].mean()), float(low), float(high)


def measure(encoders: dict[str, tuple[Recipe, Params]], modality: str, use: argparse.Namespace) -> list[dict[str, Any]]:
    """Macro AUC of every encoder and its gain over the random encoder, by number of images per class."""
    parts = {
        name: (features(*model, modality, POOL, use.pool), features(*model, modality, TEST, use.test))
        for name, model in encoders.items()
    }
    labels = next(iter(parts.values()))[1]["label"]
    rng = np.random.default_rng(0)
    taken = rng.multinomial(use.test, np.full(use.test, 1 / use.test), size=use.resamples)
    weights = np.concatenate([np.ones((1, use.test)), taken])
    rows = []
    for shots in use.shots:
        areas = {name: aucs(labels, scores(*part, shots, use.draws), weights) for name, part in parts.items()}
        row: dict[str, Any] = {"modality": modality, "shots": shots}
        for name, values in areas.items():
            row[name] = interval(values, None)
            if name != "random":
                row[f"{name} - random"] = interval(values, areas["random"])
        row["unseen - all"] = interval(areas["unseen"], areas["all"])
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """One row per modality and number of images."""
    names = {
        "random": "random encoder",
        "unseen": "pretrained without it",
        "all": "pretrained with it",
        "unseen - random": "without it over random",
        "unseen - all": "without it over with it",
    }
    lines = []
    cell: Callable[[str, float, float, float], str] = lambda name, value, low, high: (  # noqa: E731
        f"{value:+.3f} ({low:+.3f} to {high:+.3f})" if "-" in name else f"{value:.3f} ({low:.3f} to {high:.3f})"
    )
    for row in rows:
        lines.append((row["modality"], str(row["shots"]), *(cell(name, *row[name]) for name in names)))
    columns = ("modality", "images per class", *names.values())
    return Table("Macro AUC in the modality that was left out (95 % interval)", columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/unseen"), help="folder of the runs; missing runs are trained"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10], help="images per class")
    parser.add_argument("--draws", type=int, default=10, help="number of random draws of the training images")
    parser.add_argument("--pool", type=int, default=420, help="number of patients to draw from")
    parser.add_argument("--test", type=int, default=700, help="number of test patients")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument("--smoke", action="store_true", help="untrained encoders and few patients; write no results")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    use = parser.parse_args()
    more = ["--smoke"] if use.smoke else []
    if use.smoke:
        use.draws, use.pool, use.test, use.resamples = 2, 84, 84, 20
    everything = trained(use.runs / "all", MODALITIES, more)
    recipe = everything[0]
    example = {key: jnp.zeros(spec.shape, spec.dtype) for key, spec in recipe.objective.batch_spec(1).items()}
    random = recipe, jax.jit(recipe.objective.init)(jax.random.key(recipe.seed), example)[0]
    rows = []
    for modality in UNSEEN:
        seen = tuple(name for name in MODALITIES if name != modality)
        without = trained(use.runs / f"without_{modality.lower()}", seen, more)
        rows += measure({"random": random, "unseen": without, "all": everything}, modality, use)
    record("unseen_modality", [table(rows)], keep=not (use.smoke or use.no_keep))


if __name__ == "__main__":
    main()
