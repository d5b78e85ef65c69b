"""Compare linear probes of a pretrained, frozen teacher with linear probes of its random initialisation.

    python benchmarks/visionfm_probe.py runs/visionfm                        # the probes of the config: synthetic eyes
    python benchmarks/visionfm_probe.py runs/visionfm --real DIR             # IDRiD, HRF and Kermany's OCT scans

Fits a logistic regression on [class token, mean of the patch tokens] in five folds grouped by patient. Prints macro AUC,
and its gain with a 95 % interval by a bootstrap over patients.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import Table, record
from data_pipelines.pipeline import one_epoch
from data_pipelines.sources.wrap import wrap
from data_pipelines.transforms.steps import Select, Squash
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.config import load
from fundax.evals.probe import FrozenProbe, difference
from fundax.recipe import Recipe
from fundax.runtime.checkpoint import load_params, resolve
from fundax.runtime.workdir import read_config
from fundax.types import Batch, Extra, Params


def rows_of(folder: Path) -> Iterator[dict[str, str]]:
    """Read the rows of the labels.csv of a data set, with the path of each image."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row | {"path": str(folder / row["image"])}


def idrid(root: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Referable retinopathy (grade 2 and above). Patients are unknown; identical photographs are grouped."""
    rows = []
    for row in rows_of(root / "idrid"):
        path = Path(row["path"])
        patient = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append({"image": path, "label": int(int(row["retinopathy_grade"]) >= 2), "patient": patient})
    return rows, ("not referable", "referable retinopathy")


def hrf(root: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Healthy, diabetic retinopathy and glaucoma. Each photograph is of a different patient."""
    names = ("h", "dr", "g")
    rows = [{"image": Path(r["path"]), "label": names.index(r["category"])} for r in rows_of(root / "hrf")]
    return rows, ("healthy", "diabetic retinopathy", "glaucoma")


def kermany(root: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """OCT scans in four classes. Some patients have several scans."""
    names = ("CNV", "DME", "DRUSEN", "NORMAL")
    rows = [
        {"image": Path(r["path"]), "label": names.index(r["class"]), "patient": r["patient"], "modality": "OCT"}
        for r in rows_of(root / "kermany_oct_samples")
    ]
    return rows, names


def real_probes(root: Path, side: int) -> dict[str, FrozenProbe]:
    """The three probes on public images."""
    probes = {}
    for name, read in (("idrid referable", idrid), ("hrf", hrf), ("kermany oct", kermany)):
        rows, classes = read(root)
        steps = (Grouped(SingleView(text=None)), Squash(side), Select(("image", "label", "modality", "group")))
        probes[name] = FrozenProbe(data=one_epoch(wrap(rows), steps, batch=50), classes=classes)
    return probes


def own_probes(recipe: Recipe) -> dict[str, FrozenProbe]:
    """The probes of the config."""
    return {name: probe for name, probe in recipe.evals.items() if isinstance(probe, FrozenProbe)}


def compare(
    recipe: Recipe, run: Path, checkpoint: str, probes: dict[str, FrozenProbe]
) -> list[tuple[str, dict[str, float], int]]:
    """(name, `difference` of the random and the trained encoder, number of images) of each probe."""
    example = {key: jnp.zeros(spec.shape, spec.dtype) for key, spec in recipe.objective.batch_spec(1).items()}
    fresh = jax.jit(recipe.objective.init)(jax.random.key(recipe.seed), example)
    states = (fresh, load_params(run, checkpoint))
    run_forward = jax.jit(recipe.objective.forward)

    def forward(params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]:
        return jax.device_get(run_forward(params, extra, dict(batch)))

    results = []
    for name, probe in probes.items():
        first, second = (probe.extract(forward, *state) for state in states)
        labels, groups = first[1:]
        results.append((name, difference(labels, groups, probe.scores(*first), probe.scores(*second)), len(labels)))
        print(f"{name}: {results[-1][1]}", file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of configs/visionfm.py")
    parser.add_argument("--real", type=Path, help="folder with idrid, hrf and kermany_oct_samples")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    recipe, _ = load(args.run / "config.py", read_config(args.run).get("argv", []))
    side = recipe.preprocessing["image_size"]
    probes = real_probes(args.real, side) if args.real else own_probes(recipe)
    rows = compare(recipe, args.run, args.checkpoint, probes)
    name = "visionfm_probe_real" if args.real else "visionfm_probe"
    title = f"Macro AUC, step {resolve(args.run, args.checkpoint)}"
    record(name, [table(rows, title)], keep=not args.no_keep)


def table(rows: list[tuple[str, dict[str, float], int]], title: str) -> Table:
    """One row per probe."""
    lines = []
    for name, gain, count in rows:
        interval = f"({gain['low']:+.3f} to {gain['high']:+.3f})"
        values = (f"{gain['first']:.3f}", f"{gain['second']:.3f}", f"{gain['second'] - gain['first']:+.3f} {interval}")
        lines.append((name, str(count), *values))
    columns = ("probe", "images", "random encoder", "pretrained", "difference (95 % interval)")
    return Table(title, columns, lines)


if __name__ == "__main__":
    main()
