"""python launch.py train configs/diffusion.py --preset laptop --workdir runs/diffusion

Synthetic fundus photographs by diffusion, as VisionFM makes its own: a base model of small images, and with
--stage super_resolution the model that enlarges them. Without --data it learns from procedural eyes.
python launch.py synth runs/diffusion --n 1000 --out synthetic draws images, each marked as synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import optax

from data_pipelines.language.conditions import FINDINGS
from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import MODALITIES
from data_pipelines.sources.cached import CachedSource
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Flip, Select, Squash
from data_pipelines.transforms.views import SingleView
from fundax.encoders.unet import UNet
from fundax.evals.denoising import Denoising
from fundax.objectives.diffusion import Diffusion
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe


@dataclass(frozen=True)
class Preset:
    """The two stages of a cascade, and how each is trained."""

    sizes: tuple[int, int]  # pixels of the images, base and enlarged
    base: UNet
    enlarge: UNet
    steps: int
    batch: int
    lr: float
    warmup: int
    intervals: int = 5000  # steps between checkpoints and evaluations
    predicts: Literal["noise", "velocity"] = "noise"
    threshold: float = 95.0


# published: VisionFM's two U-Nets, imagen-pytorch's BaseUnet64 (at dim 256) and SRUnet256
PRESETS = {
    "published": Preset(
        sizes=(64, 256),
        base=UNet(256, (1, 2, 3, 4), (3, 3, 3, 3), (False, True, True, True), heads=8),
        enlarge=UNet(128, (1, 2, 4, 8), (2, 4, 8, 8), (False, False, False, True), heads=8),
        steps=250_000, batch=64, lr=1e-4, warmup=10_000,
    ),
    "reduced": Preset(sizes=(64, 128), base=UNet(64), enlarge=UNet(64), steps=20_000, batch=64, lr=3e-4, warmup=500),
    "laptop": Preset(
        sizes=(32, 64),
        base=UNet(32, (1, 2, 4), (1, 1, 1), (False, True, True)),
        enlarge=UNet(16, (1, 2, 4), (1, 1, 1), (False, False, True)),
        steps=3000, batch=32, lr=1e-3, warmup=100, intervals=1000, predicts="velocity", threshold=0.0,
    ),
    "smoke": Preset(
        sizes=(8, 16),
        base=UNet(8, (1,), (1,), (True,), heads=2),
        enlarge=UNet(8, (1,), (1,), (True,), heads=2),
        steps=2, batch=8, lr=1e-3, warmup=1,
    ),
}  # fmt: skip


def recipe(
    *,
    preset: Literal["published", "reduced", "laptop"] = "published",
    stage: Literal["base", "super_resolution"] = "base",
    data: str = "",
    val: str = "",
    modality: tuple[str, ...] = ("CFP",),
    conditional: bool = False,
    patients: int = 3000,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    min_snr: float = 0.0,
    average: float = 0.999,
    dtype: str = "float32",
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """Diffusion of eye images: Adam 1e-4 (0.9, 0.99), 10,000 steps of warm-up, cosine to 250,000, batch 64.

    Args:
        preset: published (VisionFM's U-Nets, 64 to 256 pixels), reduced (dim 64, 64 to 128 pixels), or laptop (32 to 64
            pixels, which two CPU cores learn in minutes).
        stage: base draws small images; super_resolution enlarges them, and is a run of its own.
        data: a source (a CSV, an image folder, tfds:NAME); empty takes procedural eyes.
        val: a source held out, to measure the error on; empty takes other procedural eyes.
        modality: of the procedural eyes.
        conditional: condition on the images' modality and, of procedural eyes, findings; VisionFM does not.
        patients: procedural ones to learn from.
        steps: optimizer steps.
        batch: images in a step.
        lr: peak learning rate.
        min_snr: gamma of the min-SNR weighting; 0 is the plain squared error.
        average: momentum of the weights' running average, which draws the images.
        dtype: of matrix products and convolutions.
        workers: processes that read; 0 makes each image once, in this one.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    use = PRESETS["smoke" if smoke else preset]
    steps, batch, lr = (
        (use.steps, use.batch, use.lr) if smoke else (steps or use.steps, batch or use.batch, lr or use.lr)
    )
    large = stage == "super_resolution"
    side = use.sizes[large]
    eyes = Eyes(n=16 if smoke else patients, seed=seed, size=max(side, 16), modalities=modality)
    unseen = replace(eyes, n=8 if smoke else 128, start=1_000_000)
    source, test = (named(word).source if word else own for word, own in ((data, eyes), (val, unseen)))
    keys = ("image", *(("modality", *(() if data else ("findings",))) if conditional else ()))
    see = (SingleView(text=None, targets=() if data else ("findings",)), Flip(), Squash(side), Select(keys))
    modalities, findings = (len(MODALITIES), 0 if data else len(FINDINGS)) if conditional else (0, 0)
    width = modalities + findings + 1 if conditional else 0
    unet = (use.enlarge if large else use.base).clone(condition=width, low=large, dtype=dtype)
    low = use.sizes[0] if large else 0
    return Recipe(
        objective=Diffusion(unet, side, low, modalities, findings, momentum=average, min_snr=min_snr,
                            predicts=use.predicts, threshold=use.threshold),
        train=train(source if workers else CachedSource(source), see, batch=batch, seed=seed, workers=workers),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), adamw(cosine(lr, steps, min(use.warmup, steps // 2)), (0.9, 0.99))
        ),
        steps=steps,
        batch=batch,
        evals={"held_out": Denoising(one_epoch(CachedSource(test), (see[0], *see[2:]), batch=batch), 0 if large else 16)},
        intervals=Intervals(log=20, save=use.intervals, eval=use.intervals),
        seed=seed,
        preprocessing={"image_size": side, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash"}
        | ({"modality": modality[0]} if not data and len(modality) == 1 else {}),
    )  # fmt: skip
