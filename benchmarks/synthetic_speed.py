"""Measure how many synthetic eyes one core renders per second, with sampling of patients and without masks.

python benchmarks/synthetic_speed.py [--patients 40] [--sizes 96 224]
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from data_pipelines.synthetic.render import DRAWERS
from data_pipelines.synthetic.sources import Patients

TARGETS = {96: 150, 224: 40}  # images per second per core, averaged over modalities


def rate(modality: str, size: int, patients: int) -> tuple[float, float]:
    """Images per second of (processor, wall) time, with both eyes of every patient: the best of five parts.

    The best part is used, because other programs of a shared machine can only slow down a part.
    """
    source = Patients(5 * patients, seed=1, modalities=(modality,), size=size)
    _ = source[0]  # computes the noise tiles, which are cached
    rates = []
    for part in range(5):
        cpu, wall = time.process_time(), time.perf_counter()
        images = sum(len(source[k].views) for k in range(part * patients, (part + 1) * patients))
        rates.append((images / (time.process_time() - cpu), images / (time.perf_counter() - wall)))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=40, help="number of patients in each of five parts")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224], help="image sizes in pixels")
    args = parser.parse_args()
    for size in args.sizes:
        rates = {m: rate(m, size, args.patients) for m in DRAWERS}
        mean = len(rates) / sum(1 / cpu for cpu, _ in rates.values())  # the same number of images of each modality
        parts = "  ".join(f"{m} {cpu:.0f}" for m, (cpu, _) in rates.items())
        wall = len(rates) / sum(1 / w for _, w in rates.values())
        goal = f", target {TARGETS[size]}" if size in TARGETS else ""
        print(f"{size} px: {mean:.0f} images/s/core{goal} (wall {wall:.0f})   {parts}")


if __name__ == "__main__":
    main()
