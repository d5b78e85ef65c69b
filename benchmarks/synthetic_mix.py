"""Test whether synthetic images help pretraining.

    python benchmarks/synthetic_mix.py --images synthetic --workdir runs/mix

Runs VisionFM's pretraining (configs/visionfm.py, laptop preset) on `--real` eyes of one modality, alone and mixed with
synthetic images 1:1 and 1:5, with the same number of steps, and evaluates the frozen encoder by a linear probe for the
conditions of unseen patients. Prints macro AUC, and the difference to 1:0 with its 95 % interval over patients. `--images`
is a folder written by `launch.py synth`; a 1:k pretraining uses its first k * `--real` images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from record import Table, record

from data_pipelines.pipeline import Part, mix
from data_pipelines.records import Record, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.csv import csv_source
from fundax.config import load
from fundax.evals.probe import difference
from fundax.recipe import Intervals, Recipe
from fundax.train.loop import fit
from fundax.types import UserError

RATIOS = (0, 1, 5)


@dataclass(frozen=True)
class First:
    """The first n rows of a source."""

    source: Source
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Record:
        return self.source[index]


def mixed(recipe: Recipe, synthetic: Source, real: int, k: int) -> Recipe:
    """The recipe with k synthetic images for each real image."""
    data: Any = recipe.train
    (part,) = data.examples.parts
    parts = [replace(part, weight=1.0)]
    if k:
        parts.append(Part(CachedSource(First(synthetic, k * real)), part.steps, float(k)))
    return replace(recipe, train=mix(parts, batch=recipe.batch, seed=recipe.seed))


def main() -> None:
    """Pretrain with every mix and evaluate a linear probe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder written by launch.py synth")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--real", type=int, default=200, help="number of rendered eyes for training")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each pretraining")
    parser.add_argument("--modality", default="fundus", help="modality of the images")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    options, rest = parser.parse_known_args()
    synthetic = csv_source(options.images / "manifest.csv", columns={"modality": "modality"})
    if len(synthetic) < max(RATIOS) * options.real:
        raise UserError(
            f"{options.images} has {len(synthetic)} images; 1:{max(RATIOS)} needs {max(RATIOS) * options.real}"
        )
    argv = ["--preset", "laptop", "--modalities", options.modality, "--patients", str(options.real), *rest]
    batches = max(options.real // load("configs/visionfm.py", argv)[0].batch, 1)
    argv += ["--epochs", str(-(-options.steps // batches))]
    results = {}
    for k in RATIOS:
        recipe = replace(load("configs/visionfm.py", argv)[0], intervals=Intervals(log=10, save=0, eval=0))
        workdir = options.workdir / f"mix_1_{k}"
        fit(mixed(recipe, synthetic, options.real, k), workdir)
        (path,) = (workdir / "evals").glob("probe_*.npz")
        with np.load(path, allow_pickle=False) as stored:
            results[k] = {name: stored[name] for name in ("labels", "patient", "logits")}
    columns, rows = ("rendered:generated", "macro AUC", "difference to 1:0", "95 % interval"), []
    start = np.exp(results[0]["logits"])
    for k, result in results.items():
        gain = difference(result["labels"], result["patient"], start, np.exp(result["logits"]))
        interval = f"{gain['low']:+.3f} to {gain['high']:+.3f}" if k else "-"
        rows.append((f"1:{k}", f"{gain['second']:.3f}", f"{gain['second'] - gain['first']:+.3f}", interval))
    title = f"{options.real} rendered eyes with k times as many generated ones, {options.steps} steps each"
    record("synthetic_mix", [Table(title, columns, rows)], keep=not options.no_keep)


if __name__ == "__main__":
    main()
