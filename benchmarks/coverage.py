"""python benchmarks/coverage.py

How often a 95 % interval of an AUC holds the truth: 2,000 patients with two eyes each, drawn again and again.
Prints the share for DeLong over patients, DeLong that takes eyes for independent, and the bootstrap over patients.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from fundax.metrics import weighted
from fundax.metrics.statistics import auc_interval, bootstrap_weighted


def eyes(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients of two eyes each: both diseased or both healthy in most, and alike in their scores.

    A score is N(label, 1), whoever the patient is, so that the AUC is Phi(1 / sqrt 2).
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
    parser.add_argument("--samples", type=int, default=500, help="data sets")
    parser.add_argument("--bootstrapped", type=int, default=500, help="of these, how many for the bootstrap")
    parser.add_argument("--resamples", type=int, default=500)
    use = parser.parse_args()
    truth, start = 0.5 * math.erfc(-1 / 2), time.process_time()
    held = {"DeLong, patients": [], "DeLong, eyes as if independent": [], "bootstrap, patients": []}
    for number in range(use.samples):
        labels, scores, patients = eyes(np.random.default_rng(number), use.patients)
        found = {
            "DeLong, patients": auc_interval(labels, scores, patients=patients),
            "DeLong, eyes as if independent": auc_interval(labels, scores),
        }
        if number < use.bootstrapped:
            settings = {"patients": patients, "resamples": use.resamples, "seed": number}
            found["bootstrap, patients"] = bootstrap_weighted(
                partial(weighted.auc, labels, scores), len(labels), **settings
            )
        for name, estimate in found.items():
            held[name].append(estimate.low <= truth <= estimate.high)
    for name, inside in held.items():
        error = math.sqrt(0.95 * 0.05 / len(inside))
        print(
            f"{name}: {np.mean(inside):.3f} of {len(inside)} intervals hold the truth (Monte-Carlo error {error:.3f})"
        )
    print(f"{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
