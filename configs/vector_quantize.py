"""python launch.py train configs/vector_quantize.py --workdir runs/vector_quantize

A vector-quantised autoencoder of eyes, with which configs/keepfit.py compares appearances (--appearance RUN). Without --data,
it is trained on synthetic eyes. figures/rebuilt_pictures.png shows unseen eyes above their reconstructions.
"""

from typing import Literal

from data_pipelines import Data, joined, mix, one_epoch, synthetic_parts
from data_pipelines.tasks.image_text import rows_of, shares
from data_pipelines.transforms import Flip, Select, SingleView, Squash
from fundax import Recipe, Run, encoders, evals, interop, optim
from fundax.objectives.vector_quantize import vector_quantize

PRESETS = {"published": {"size": "base"}}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "laptop",
    data: Data = Data(patients=1000, fractions=(0.95, 0.05)),
    run: Run = Run(batch=32, steps=1000, lr=1e-3, weight_decay=0.0),
    size: str = "tiny",
    image_size: int = 0,
    init: str = "",
) -> Recipe:
    """The published preset has 512 pixels and 16,384 codes, the laptop preset 64 pixels and 256 codes."""
    objective = vector_quantize(size, image_size, **run.compute(encoders.ImageEncoder)[0])
    side = objective.image_size
    eyes = synthetic_parts(data.eyes(run.seed, side), keep=not run.workers, val=min(data.patients, 64))
    parts = data.parts(eyes, run.seed)
    view, flip, *see = SingleView(text=None), Flip(), Squash(side), Select(("image",))
    steps = run.total(max(rows_of(parts["train"]) // run.batch, 1))
    rate = optim.cosine(run.lr, steps, warmup=max(steps // 20, 1))
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=50, save=250, eval=250),
        objective=objective,
        train=mix(shares(parts["train"], (view, flip, *see)), **run.loader()),
        optimizer=optim.adamw(rate, (0.9, 0.95), weight_decay=run.weight_decay, clip=1.0),
        evals={"rebuilt": evals.rebuilt(one_epoch(joined(data.held_out(parts)), (view, *see), batch=run.batch))},
        best="rebuilt/psnr",
        preprocessing={
            "image_size": side, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash", "interpolation": "bicubic",
        },
    )  # fmt: skip
