"""Ablation of the terms of configs/visit.py on synthetic visits, scored on unseen patients.

    python benchmarks/visit_ablation.py                          # three seeds of 300 steps, about five minutes for each run
    python benchmarks/visit_ablation.py --seeds 1 --steps 100    # a quick look; writes no results
    python benchmarks/visit_ablation.py --smoke                  # every variant once, on a few visits

Every variant is a command line of the config. The columns are zero-shot macro AUC of visits, eyes and single views, how much
higher the visit is than the best single view, and the mean R@10 of retrieval between the modalities of an eye, over chance.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import tyro
from record import Table, record

from fundax import fit, load_recipe

STEPS = 300
CONFIG = Path(__file__).parent.parent / "configs" / "visit.py"
VARIANTS = {
    "all terms": "",
    "without the image-image term": "--image-weight 0",
    "same-patient pairs are negatives": "--repeats negatives --no-apart",
    "without the visit level": "--visit-weight 0",
}
COLUMNS = {
    "visit": "visits/macro_auc",
    "eye": "visits/eye/macro_auc",
    "view": "visits/view/macro_auc",
    "visit - best view": "visits/gain_over_best_single_view",
    "cross-modal R@10 / chance": "visits/cross_modal_lift",
}


def scored(arguments: str) -> list[float]:
    """The columns of one run."""
    with tempfile.TemporaryDirectory() as folder:
        fit(load_recipe(CONFIG, arguments.split())[0], folder)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if COLUMNS["visit"] in row][-1]
    return [last[name] for name in COLUMNS.values()]


def main(seeds: int = 3, steps: int = STEPS, only: str = "", smoke: bool = False, keep: bool = True) -> None:
    """Train every variant whose name contains `only` with every seed. Writes results if all were run in full."""
    more = " --smoke" if smoke else f" --steps {steps} --eval-every {steps}"
    seeds = 1 if smoke else seeds
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS if only in name}
    for seed in range(seeds):  # all variants of a seed before the next, to see something early
        for name, scores in found.items():
            scores.append(scored(f"{VARIANTS[name]} --seed {seed}{more}"))
            print(f"seed {seed}", name, *(f"{value:.3f}" for value in scores[-1]), sep="  ", flush=True)
    rows = [[name, *map(_mean_and_deviation, np.array(scores).T)] for name, scores in found.items()]
    title = f"Mean ± standard deviation over {seeds} seeds of configs/visit.py{more}"
    record(
        "visit_ablation",
        [Table(title, ("variant", *COLUMNS), rows)],
        keep=keep and not (smoke or only or steps < STEPS),
    )


def _mean_and_deviation(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    tyro.cli(main)
