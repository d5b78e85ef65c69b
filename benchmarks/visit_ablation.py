"""Ablation of the terms of configs/visit.py on synthetic visits, scored on unseen patients.

    python benchmarks/visit_ablation.py                          # three seeds, about ten minutes for each row and seed
    python benchmarks/visit_ablation.py --seeds 1 --steps 100    # a quick look; writes no results
    python benchmarks/visit_ablation.py --smoke                  # every variant once, on a few visits

Every variant is a command line of the config. The columns are zero-shot macro AUC of visits, eyes and single views, how much
higher the visit is than the best single view, and the mean R@10 of retrieval between the modalities of an eye.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import tyro
from record import Table, record

from fundax import fit, load_recipe

CONFIG = Path(__file__).parent.parent / "configs" / "visit.py"
VARIANTS = {
    "all terms": "",
    "without the image-image term": "--image-weight 0",
    "same-patient pairs are negatives": "--repeats negatives --no-apart",
    "without the visit level": "--visit-weight 0",
    "with reconstruction across modalities": "--reconstruction-weight 1",
}
COLUMNS = {
    "visit": "visits/macro_auc",
    "eye": "visits/eye/macro_auc",
    "view": "visits/view/macro_auc",
    "visit - best view": "visits/gain_over_best_single_view",
    "cross-modal R@10": "visits/cross_modal_R@10",
}


def scored(arguments: str) -> list[float]:
    """The columns of one run."""
    with tempfile.TemporaryDirectory() as folder:
        fit(load_recipe(CONFIG, arguments.split())[0], folder)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if COLUMNS["visit"] in row][-1]
    return [last[name] for name in COLUMNS.values()]


def main(seeds: int = 3, steps: int = 0, only: str = "", smoke: bool = False, keep: bool = True) -> None:
    """Train every variant whose name contains `only` with every seed. Writes results if all were run in full."""
    more = " --smoke" if smoke else f" --steps {steps}" if steps else ""
    rows = []
    for name, arguments in VARIANTS.items():
        if only not in name:
            continue
        found = np.array([scored(f"{arguments} --seed {seed}{more}") for seed in range(1 if smoke else seeds)])
        spread = found.std(0, ddof=1) if len(found) > 1 else np.zeros(len(COLUMNS))
        rows.append([name, *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(found.mean(0), spread, strict=True))])
        print(*rows[-1], sep="  ", flush=True)
    title = f"Mean ± standard deviation over {1 if smoke else seeds} seeds of configs/visit.py{more}"
    whole = not (smoke or only or steps)
    record("visit_ablation", [Table(title, ("variant", *COLUMNS), rows)], keep=keep and whole)


if __name__ == "__main__":
    tyro.cli(main)
