"""python launch.py train configs/vector_quantize.py --workdir runs/vector_quantize

An autoencoder of eyes with a codebook, which configs/keepfit.py compares appearances by (--appearance RUN). Synthetic
eyes without --data; figures/rebuilt_pictures.png shows eyes it has never seen above what it makes of them.
"""

from __future__ import annotations

from typing import Any, Literal

import optax

from data_pipelines.open import DATA_DIR, named
from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.splits import split_by
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Flip, Select, Squash
from data_pipelines.transforms.views import SingleView
from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.evals.reconstruction import rebuilt
from fundax.objectives.vector_quantize import VectorQuantize
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe


def recipe(
    *,
    data: tuple[str, ...] = (),
    data_dir: str = DATA_DIR,
    modalities: tuple[str, ...] = ("CFP",),
    preset: Literal["published", "laptop"] = "laptop",
    batch: int = 32,
    steps: int = 1000,
    lr: float = 1e-3,
    patients: int = 1000,
    save_every: int = 250,
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """A vector-quantised autoencoder, 256-d codes.

    Args:
        data: CSV files, image folders, tfds:NAME, as in configs/mm_fundus_clip.py; empty takes synthetic eyes.
        data_dir: where `launch.py data build` wrote its data sets.
        modalities: of the synthetic eyes: CFP, FFA, OCT, UWF.
        preset: published, 512 pixels, fields of 16, 16384 codes; laptop, 64 pixels, fields of 8, 256 codes.
        batch: images in a step.
        steps: optimizer steps.
        lr: peak learning rate.
        patients: synthetic ones to learn from.
        save_every: steps between checkpoints and evaluations.
        workers: processes that read images.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    if smoke:
        batch, steps, patients = 8, 2, 16
    side = 32 if smoke else 64 if preset == "laptop" else 512
    sources = [named(word, {}, data_dir).source for word in data]
    if sources:
        parts = [split_by(source, "patient", {"train": 0.95, "val": 0.05}, seed) for source in sources]
        learn, unseen = [part["train"] for part in parts], parts[0]["val"]
    else:
        eyes: Any = Eyes(patients, seed, size=side, modalities=modalities)
        learn = [eyes if workers else CachedSource(eyes)]
        unseen = CachedSource(Eyes(16 if smoke else 64, seed, start=1_000_000, size=side, modalities=modalities))
    see = (Squash(side), Select(("image",)))
    whole = (SingleView(text=None), Flip(), *see)
    return Recipe(
        objective=_objective(smoke, preset, side),
        train=mix([(source, whole, float(len(source))) for source in learn], batch=batch, seed=seed, workers=workers),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), adamw(cosine(lr, steps, warmup=max(steps // 20, 1)), (0.9, 0.95))
        ),
        steps=steps,
        batch=batch,
        evals={"rebuilt": rebuilt(one_epoch(unseen, (SingleView(text=None), *see), batch=batch))},
        intervals=Intervals(log=50, save=save_every, eval=save_every),
        best="rebuilt/psnr",
        seed=seed,
        preprocessing={"image_size": side, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash",
                       "interpolation": "bicubic"},
    )  # fmt: skip


def _objective(smoke: bool, preset: str, side: int) -> VectorQuantize:
    if smoke:
        return VectorQuantize(ImageEncoder((8, 8, 8), 8), ImageDecoder((8, 8, 8)), side, codes=16)
    if preset == "laptop":
        return VectorQuantize(ImageEncoder((32, 64, 128), 256), ImageDecoder((32, 64, 128)), side, codes=256)
    return VectorQuantize(ImageEncoder(), ImageDecoder(), side)
