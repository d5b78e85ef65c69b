"""Train linear probes and fine-tune on public images, with folds grouped by patient.

    python benchmarks/real_data.py DIR --out runs/real [--init runs/visionfm]

DIR contains idrid, hrf and kermany_oct_samples. Every fold is a run of configs/linear_probe.py or configs/finetune.py, in
which this fold is the test split, and the next fold is the validation split, which selects the step. Each row is therefore
evaluated once, by a model that was not trained on its patient. Prints macro AUC, accuracy and, for grades, quadratic
kappa, with 95 % intervals by a bootstrap over patients. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
from record import Table, record

from data_pipelines.sources.splits import folds, split_record, write_split
from fundax.config import load
from fundax.metrics.classification import quadratic_kappa
from fundax.metrics.statistics import bootstrap_weighted
from fundax.metrics.weighted import class_aucs
from fundax.train.loop import fit

CONFIGS = Path(__file__).parent.parent / "configs"
SETS = {  # label column, class names by value, modality, whether classes are grades
    "idrid": ("retinopathy_grade", ("0", "1", "2", "3", "4"), "CFP", True),
    "hrf": ("category", ("h", "dr", "g"), "CFP", False),
    "kermany_oct_samples": ("class", ("CNV", "DME", "DRUSEN", "NORMAL"), "OCT", False),
}
# config and arguments of each method
METHODS = {
    "linear": ("linear_probe.py", ["--head", "linear", "--epochs", "60", "--copies", "4", "--lr", "4e-3", "--batch", "64",
                                   "--crop-field", "False"]),
    "finetune": ("finetune.py", ["--crop-field", "False"]),
}  # fmt: skip


def prepared(root: Path, name: str, out: Path) -> tuple[str, list[str], np.ndarray]:
    """Write a CSV file with image, label and patient, and return its value of --data, the patients and the labels.

    If the publisher does not identify patients, each photograph is treated as a patient, and identical files as the same
    patient.
    """
    column, classes, modality, _ = SETS[name]
    with (root / name / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = [(root / name / row["image"]).resolve() for row in rows]
    patients = [
        row.get("patient") or hashlib.sha256(p.read_bytes()).hexdigest()[:16]
        for row, p in zip(rows, images, strict=True)
    ]
    table = out / f"{name}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "patient"))
        writer.writerows(
            (image, row[column], patient) for image, row, patient in zip(images, rows, patients, strict=True)
        )
    labels = np.array([classes.index(row[column]) for row in rows])
    return f"{table},modality={modality},classes={'+'.join(classes)}", patients, labels


def splits(patients: list[str], labels: np.ndarray, count: int, out: Path, name: str) -> Iterator[Path]:
    """Write a split file for each fold: this fold is the test split, the next fold validation, the others training."""
    parts = folds(patients, labels, count)
    for k in range(count):
        path = out / f"{name}_fold{k}.json"
        rest = np.concatenate([parts[j] for j in range(count) if j not in (k, (k + 1) % count)])
        rows = {"train": rest, "val": parts[(k + 1) % count], "test": parts[k]}
        named = {part: {name: [patients[row] for row in chosen]} for part, chosen in rows.items()}
        write_split(path, split_record(named, fold=k))
        yield path


def run(method: str, word: str, split: Path, workdir: Path, more: list[str]) -> dict[str, np.ndarray]:
    """Labels, probabilities, index and patient of the test split, at the step selected on the validation split."""
    stored = workdir / "evals" / "test.npz"
    if not stored.is_file():
        config, fixed = METHODS[method]
        arguments = [*fixed, "--data", word, "--split", str(split), *more]
        recipe, _ = load(CONFIGS / config, arguments)
        fit(replace(recipe, keep=1), workdir)
        recipe, _ = load(CONFIGS / config, [*arguments, "--part", "test"])
        fit(replace(recipe, steps=0), workdir, checkpoint="best")
    with np.load(stored, allow_pickle=False) as file:
        return {key: file[key] for key in ("labels", "probabilities", "patient")}


def measured(rows: dict[str, np.ndarray], grades: bool) -> dict[str, Any]:
    """Macro AUC, accuracy and quadratic kappa with their intervals."""
    labels, scores, patients = rows["labels"], rows["probabilities"], rows["patient"]
    k = scores.shape[1]
    cells = np.eye(k * k)[labels * k + scores.argmax(1)]  # [N K*K]

    def kappas(weights: np.ndarray) -> np.ndarray:
        return np.array([quadratic_kappa(c) for c in (weights @ cells).reshape(-1, k, k)])

    def accuracy(weights: np.ndarray) -> np.ndarray:
        return (weights @ (scores.argmax(1) == labels)) / weights.sum(1)

    def auc(weights: np.ndarray) -> np.ndarray:
        return np.nanmean(class_aucs(labels, scores, weights), axis=0)

    metrics = {"macro AUC": auc, "accuracy": accuracy} | ({"kappa": kappas} if grades else {})
    return {name: bootstrap_weighted(metric, len(labels), patients=patients) for name, metric in metrics.items()}


def table(results: list[tuple[str, str, str, int, dict[str, Any]]]) -> Table:
    """One row per data set, encoder and method."""
    columns, rows = ("data", "images", "encoder", "method", "macro AUC", "accuracy", "quadratic kappa"), []
    for name, encoder, method, count, values in results:
        cells = [str(values[key]) if key in values else "" for key in ("macro AUC", "accuracy", "kappa")]
        rows.append((name, str(count), encoder, method, *cells))
    return Table("Folds that keep patients together; 95 % intervals by a bootstrap over patients", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with idrid, hrf and kermany_oct_samples")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--init", default="", help="run with the encoder that is compared with a random encoder")
    parser.add_argument("--folds", type=int, default=4, help="number of folds")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="data sets")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="training methods")
    parser.add_argument("--smoke", action="store_true", help="run three folds of three steps; write no results")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(args.out / "compiled"))
    encoders = {"random": []} | ({"pretrained": ["--init", args.init]} if args.init else {})
    results: list[tuple[str, str, str, int, dict[str, Any]]] = []
    for name in args.sets:
        word, patients, labels = prepared(args.root, name, args.out)
        grades = SETS[name][3]
        files = list(splits(patients, labels, 3 if args.smoke else args.folds, args.out, name))
        for method in args.methods:
            for encoder, more in encoders.items():
                began, parts = time.time(), []
                more = [*more, *(["--ordered"] if grades else []), *(["--smoke"] if args.smoke else [])]
                for split in files:
                    parts.append(run(method, word, split, args.out / f"{split.stem}_{method}_{encoder}", more))
                rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
                results.append((name, encoder, method, len(rows["labels"]), measured(rows, grades)))
                print(*table(results[-1:]).rows[0], f"{time.time() - began:.0f} s", file=sys.stderr)
                np.savez(args.out / f"{name}_{method}_{encoder}.npz", **rows)  # pyright: ignore[reportArgumentType]
    record("real_data", [table(results)], keep=not (args.smoke or args.no_keep))


if __name__ == "__main__":
    main()
