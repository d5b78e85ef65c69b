"""Measure how often 95 % intervals of an AUC contain the true value.

    python benchmarks/coverage.py

Draws 2,000 patients with two eyes each, many times. Compares DeLong over patients, DeLong that treats eyes as independent,
and the bootstrap over patients.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from record import Table, record

sys.path.insert(0, str(Path(__file__).parent.parent))

from fundax.metrics import weighted
from fundax.metrics.statistics import auc_interval, bootstrap_weighted


def eyes(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels, scores and patients of pairs of correlated eyes, most of which have the same label.

    Scores are N(label, 1), so the AUC is Phi(1 / sqrt 2).
    """
    first = rng.random(patients) < 0.3
    second = np.where(rng.random(patients) < 0.8, first, rng.random(patients) < 0.3)
    labels = np.stack([first, second], axis=1)
    shared = rng.normal(size=(patients, 1))
    scores = math.sqrt(0.6) * shared + math.sqrt(0.4) * rng.normal(size=(patients, 2)) + labels
    return labels.ravel(), scores.ravel(), np.repeat(np.arange(patients), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[2])
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=500, help="number of data sets")
    parser.add_argument("--bootstrapped", type=int, default=500, help="number of data sets for the bootstrap")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    use = parser.parse_args()
    truth, start = 0.5 * math.erfc(-1 / 2), time.process_time()
    held = {"DeLong, patients": [], "DeLong, eyes as independent": [], "bootstrap, patients": []}
    for number in range(use.samples):
        labels, scores, patients = eyes(np.random.default_rng(number), use.patients)
        estimates = {
            "DeLong, patients": auc_interval(labels, scores, patients=patients),
            "DeLong, eyes as independent": auc_interval(labels, scores),
        }
        if number < use.bootstrapped:
            settings = {"patients": patients, "resamples": use.resamples, "seed": number}
            estimates["bootstrap, patients"] = bootstrap_weighted(
                partial(weighted.auc, labels, scores), len(labels), **settings
            )
        for name, estimate in estimates.items():
            held[name].append(estimate.low <= truth <= estimate.high)
    rows = [
        (name, f"{np.mean(inside):.3f}", f"{math.sqrt(0.95 * 0.05 / len(inside)):.3f}") for name, inside in held.items()
    ]
    title = f"Share of 95 % intervals that contain the true AUC, {use.samples} data sets of {use.patients} patients"
    record("coverage", [Table(title, ("interval", "share", "Monte-Carlo error"), rows)], keep=not use.no_keep)
    print(f"{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
