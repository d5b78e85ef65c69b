"""Measure how much of a ViT's attention falls inside lesions.

    python benchmarks/attention_in_lesions.py --run runs/visionfm [--eyes 20] [--size 256]

Uses synthetic eyes of each condition, with lesion masks. For each eye, it measures the fraction of the class token's
attention (mean of the heads in the last block, and rollout) inside lesions, and the fraction of the area inside lesions,
both within the field of view. A ratio of 1 means that attention ignores lesions. Prints the mean fractions per condition,
the ratio of the means with a 95 % interval over eyes, and the ratio for an encoder with random weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from record import Table, record
from rich.progress import track

from data_pipelines.images.decode import load
from data_pipelines.synthetic.sources import CONDITIONS, LESIONS, Eyes
from data_pipelines.transforms.steps import preprocess
from fundax.inference.explain import Looker, inside, over_photograph, read_looker

DRAWS = 2000  # bootstrap resamples
KINDS = ("mean", "rollout")


def fresh(looker: Looker, seed: int = 0) -> Looker:
    """The same encoder with random weights."""
    image = np.zeros((1, looker.tower.image_size, looker.tower.image_size, 3), np.float32)
    params: Any = jax.jit(looker.tower.init)(jax.random.key(seed), image)["params"]
    return replace(looker, params=params)


def shares(lookers: dict[str, Looker], condition: str, eyes: int, size: int) -> dict[str, np.ndarray]:
    """(attention, area) inside lesions f64 [n 2] of the eyes with lesions, for each encoder and map."""
    source = Eyes(eyes, start=4_000_000, size=size, conditions=(condition,), masks=True)
    records = [source[row] for row in range(eyes)]
    photographs = [load(record.views[0].image) for record in records]
    ratios: dict[str, list[tuple[float, float]]] = {f"{name} {kind}": [] for name in lookers for kind in KINDS}
    truths = [_lesions(record.targets["masks"]) for record in records]
    for name, looker in lookers.items():
        maps = looker(np.stack([preprocess(image, looker.preprocessing) for image in photographs]))
        for row, (lesion, field) in enumerate(truths):
            if lesion.any():
                for kind in KINDS:
                    heat = over_photograph(maps[kind][row], size, size, looker.preprocessing, smooth=False)
                    ratios[f"{name} {kind}"].append(inside(heat, lesion, field))
    return {name: np.asarray(pairs).reshape(-1, 2) for name, pairs in ratios.items()}


def ratio(pairs: np.ndarray) -> tuple[float, float, float]:
    """Mean attention over mean area, and its 95 % interval by a bootstrap over eyes."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (DRAWS, len(pairs)))
    means = pairs[drawn].mean(1)
    low, high = np.percentile(means[:, 0] / means[:, 1], (2.5, 97.5))
    whole = pairs.mean(0)
    return float(whole[0] / whole[1]), float(low), float(high)


def _lesions(masks: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The union of all lesions, and the field of view, bool [h w]."""
    present = [masks[name] for name in LESIONS if name in masks]
    return (np.any(present, axis=0) if present else np.zeros_like(masks["field"])), masks["field"]


def _cell(pairs: np.ndarray) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*ratio(pairs))


def main() -> None:
    """Measure every condition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run whose image encoder is a ViT")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    parser.add_argument("--eyes", type=int, default=20, help="number of eyes per condition")
    parser.add_argument("--size", type=int, default=256, help="image and mask size in pixels")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    options = parser.parse_args()
    trained = read_looker(options.run, options.checkpoint)
    lookers = {"trained": trained, "random": fresh(trained)}
    heads = ("condition", "eyes", "area %", "attention %", "ratio", "ratio, rollout", "ratio, random weights")
    rows: list[tuple[str, ...]] = []
    every: list[dict[str, np.ndarray]] = []
    for condition in track(CONDITIONS, "conditions", transient=True):
        ratios = shares(lookers, condition, options.eyes, options.size)
        pairs = ratios["trained mean"]
        if not len(pairs):
            rows.append((condition, "0", "-", "-", "-", "-", "-"))
            continue
        every.append(ratios)
        columns = (_cell(ratios[name]) for name in ("trained mean", "trained rollout", "random mean"))
        rows.append((condition, str(len(pairs)), *(f"{100 * x:.1f}" for x in pairs.mean(0)[::-1]), *columns))
    together = {name: np.concatenate([ratios[name] for ratios in every]) for name in every[0]}
    columns = (_cell(together[name]) for name in ("trained mean", "trained rollout", "random mean"))
    means = together["trained mean"].mean(0)[::-1]
    rows.append(("all", str(len(together["trained mean"])), *(f"{100 * x:.1f}" for x in means), *columns))
    title = f"Attention inside lesions, step {trained.step} (95 % interval over eyes)"
    record(f"attention_in_lesions_{Path(options.run).name}", [Table(title, heads, rows)], keep=not options.no_keep)


if __name__ == "__main__":
    main()
