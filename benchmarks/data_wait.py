"""Measure the share of time that a training run waits for data from ArrayRecord shards.

    python benchmarks/data_wait.py

Writes synthetic photographs of 320 px as shards of 256 px and trains a small CLIP (ViT of 4 layers, width 192, 224 px) on
them with the published augmentation, once with threads and once with a worker process. Prints `train/data_wait` as the
trainer logs it. A model of this size on a CPU leaves much time for reading; an accelerator needs more workers.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import tyro
from record import Table, record

from data_pipelines.convert import Sizing, convert
from data_pipelines.language import tokenizers
from data_pipelines.pipeline import train
from data_pipelines.sources.shards import array_records
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Tokenize, extra_aug
from data_pipelines.transforms.views import SingleView
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.objectives.clip import CLIP
from fundax.optim import adamw, constant
from fundax.recipe import Intervals, Recipe
from fundax.train.loop import fit


def recipe(shards: Path, workers: int, batch: int, steps: int) -> Recipe:
    """The measured run."""
    words = tokenizers.bundled(context=48)
    chain = (SingleView(size_hint=None), *extra_aug(224), Tokenize(words), Select(("image", "text")))
    return Recipe(
        objective=CLIP(ViT(224, 16, 192, 4, 3), TextTransformer(words.vocab_size, words.context, 192, 2, 3), embed=192),
        train=train(array_records(shards), chain, batch=batch, workers=workers),
        optimizer=adamw(constant(1e-4)),
        steps=steps,
        batch=batch,
        intervals=Intervals(log=max(steps // 5, 1), save=0, eval=0),
    )


def measure(folder: Path, shards: Path, workers: int, batch: int, steps: int) -> tuple[float, float]:
    """Median (images per second, share of time spent waiting for data) over the logged rows."""
    fit(recipe(shards, workers, batch, steps), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "train/data_wait" in row]
    speed = statistics.median(row["train/images_per_second"] for row in rows)
    return speed, statistics.median(row["train/data_wait"] for row in rows)


def main(batch: int = 16, steps: int = 10, images: int = 96, keep: bool = True) -> None:
    """Measure threads and a worker process. --no-keep does not write benchmarks/results."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = convert(Eyes(images, size=320), Path(folder, "shards"), Sizing(256), shard=32)
        for workers in (0, 1):
            speed, wait = measure(Path(folder, str(workers)), shards, workers, batch, steps)
            rows.append(("a worker process" if workers else "threads of the trainer", f"{speed:.1f}", f"{wait:.1%}"))
    title = f"Training from ArrayRecord shards, batch {batch}, medians of the logged rows"
    record("data_wait", [Table(title, ("reading", "images/s", "data wait"), rows)], keep=keep)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
