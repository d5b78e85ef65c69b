"""python launch.py train configs/diffusion.py --preset laptop --workdir runs/diffusion

A diffusion model of fundus photographs, as in VisionFM: a base model of small images and, in a separate run with
--stage super_resolution, a model that enlarges them. Without --data, it is trained on procedural synthetic eyes.
To generate images, which are marked as synthetic: python launch.py synth runs/diffusion --n 1000 --out synthetic
"""

from typing import Literal

from data_pipelines import MODALITIES, Data, joined, one_epoch, synthetic_parts, train
from data_pipelines.language import FINDINGS
from data_pipelines.sources import CachedSource
from data_pipelines.transforms import Flip, Select, SingleView, Squash
from fundax import Recipe, Run, encoders, evals, optim
from fundax.objectives.diffusion import diffusion

EVERY = {"eval_every": 1000, "save_every": 1000}
PRESETS = {
    "reduced": {"size": "small", "steps": 20_000, "lr": 3e-4, "warmup": 500},
    "laptop": {"size": "tiny", "steps": 3000, "batch": 32, "lr": 1e-3, "warmup": 100} | EVERY,
    "smoke": {"warmup": 1, "lr": 1e-3},
}


def recipe(
    *,
    preset: Literal["published", "reduced", "laptop"] = "published",
    data: Data = Data(),
    run: Run = Run(batch=64, steps=250_000, lr=1e-4, weight_decay=0.0),
    stage: Literal["base", "super_resolution"] = "base",
    size: str = "base",
    conditional: bool = False,
    min_snr: float = 0.0,
    ema: float = 0.999,
    warmup: int = 10_000,
) -> Recipe:
    """Adam (0.9, 0.99) with warm-up and cosine decay. VisionFM's model is unconditional; other presets are smaller."""
    modalities, findings = (len(MODALITIES), 0 if data.data else len(FINDINGS)) if conditional else (0, 0)
    model = {"enlarge": stage == "super_resolution", "modalities": modalities, "findings": findings}
    objective = diffusion(size, **model, momentum=ema, min_snr=min_snr, **run.compute(encoders.UNet)[0])
    side = objective.size
    eyes = data.eyes(run.seed, max(side, 16))
    parts = data.parts(synthetic_parts(eyes, keep=False, val=min(max(data.patients // 2, 1), 128)), run.seed)
    source, test = joined(parts["train"]), CachedSource(joined(data.held_out(parts)))
    source = source if run.workers else CachedSource(source)
    targets = () if data.data else ("findings",)
    keys = ("image", *(("modality", *targets) if conditional else ()))
    view, flip, *see = SingleView(text=None, targets=targets), Flip(), Squash(side), Select(keys)
    drawn = 0 if stage == "super_resolution" else 16
    steps = run.total(max(len(source) // run.batch, 1) if not run.steps else 1)
    rate = optim.cosine(run.lr, steps, min(warmup, steps // 2))
    marked = {"modality": data.modalities[0]} if not data.data and len(data.modalities) == 1 else {}
    return Recipe(
        **run.recipe(steps, log=20, save=5000, eval=5000),
        objective=objective,
        train=train(source, (view, flip, *see), **run.loader()),
        optimizer=optim.adamw(rate, (0.9, 0.99), weight_decay=run.weight_decay, clip=1.0),
        evals={"held_out": evals.Denoising(one_epoch(test, (view, *see), batch=run.batch), drawn)},
        preprocessing={"image_size": side, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash"} | marked,
    )
