"""Measure how often the maps of an image-text model point into lesions.

    python benchmarks/pointing.py --run runs/quickstart [--eyes 40] [--size 256]

Uses synthetic eyes of each condition, with lesion masks. For each kind of lesion, over the eyes in which it is visible:
the share of eyes whose largest value lies in the lesion's mask (the pointing game), for the similarity map of the
lesion's word, its Grad-CAM, and the attention, which knows nothing of the word; and the mean share of the area, which is
the rate by chance.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from record import Table, record
from rich.progress import track

import fundax
from data_pipelines.images.decode import load
from data_pipelines.synthetic.sources import CONDITIONS, LESIONS, Eyes
from fundax.inference.explain import looker_of, over_photograph
from fundax.inference.saliency import points_at, saliency_maps

WORDS = {name: name.replace("_", " ") for name in LESIONS}
LEAST = 0.0005  # a lesion that covers less of the image counts as not visible


def main() -> None:
    """Measure every kind of lesion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run of an image-text model")
    parser.add_argument("--checkpoint", default="", help="latest, best or a step")
    parser.add_argument("--eyes", type=int, default=40, help="number of eyes per condition")
    parser.add_argument("--size", type=int, default=256, help="image and mask size in pixels")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    own = parser.parse_args()
    model = fundax.load(own.run, own.checkpoint)
    looker = looker_of(model)
    hits: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for condition in track(CONDITIONS, "conditions", transient=True):
        source = Eyes(own.eyes, start=5_000_000, size=own.size, conditions=(condition,), masks=True)
        for row in range(own.eyes):
            eye = source[row]
            photograph, masks = load(eye.views[0].image), eye.targets["masks"]
            attention = {} if looker is None else {"attention": looker.look(photograph)["mean"]}
            for name in LESIONS:
                mask = np.asarray(masks.get(name, np.zeros(photograph.shape[:2], bool)))
                if mask.mean() < LEAST:
                    continue
                maps = saliency_maps(model, photograph, [WORDS[name]])
                named = {title.split(":")[0]: one for title, one in maps.items()} | attention
                chance = 0.0
                for title, one in named.items():
                    hit, chance = points_at(
                        over_photograph(one, mask.shape[0], mask.shape[1], model.preprocessing), mask
                    )
                    hits[name][title].append(hit)
                hits[name]["chance"].append(chance)
    columns = ("similarity", "Grad-CAM", *(["attention"] if looker is not None else []), "chance")
    rows = [
        (WORDS[name], str(len(found["chance"])), *(_share(found[one]) for one in columns))
        for name, found in hits.items()
    ]
    every = {one: [hit for found in hits.values() for hit in found[one]] for one in columns}
    rows.append(("all", str(len(every["chance"])), *(_share(every[one]) for one in columns)))
    table = Table("Maps that point into the lesion, share of eyes", ("lesion", "eyes", *columns), rows)
    record(f"pointing_{Path(own.run).name}", [table], keep=not own.no_keep)


def _share(hits: list[float]) -> str:
    return f"{100 * np.mean(hits):.1f} %" if hits else "-"


if __name__ == "__main__":
    main()
