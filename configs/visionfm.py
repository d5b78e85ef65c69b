"""python launch.py train configs/visionfm.py --workdir runs/visionfm --data images/

VisionFM's pretraining (iBOT) of a joint encoder for all modalities or, as published, of a single modality (--modalities
fundus). images/ has a folder for each modality; without --data, the images are synthetic eyes. A small model, a few minutes
on two CPU cores: python launch.py train configs/visionfm.py --preset laptop --workdir runs/visionfm
"""

from typing import Any, Literal

from data_pipelines import MODALITIES, Sources, joined, mix, modality_name, one_epoch
from data_pipelines.sources.modality_folders import moments
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.modality_mix import by_modality, images, probe_passes, shares
from data_pipelines.transforms import MultiCrop, Select, SingleView, published_colours
from fundax import Recipe, Run, encoders, evals, interop
from fundax.objectives import ibot

LAPTOP = {"size": "tiny", "batch": 64, "epochs": 5, "workers": 0, "dtype": "float32", "patients": 1500, "probe": 700}
LAPTOP |= {"centering": "sinkhorn", "drop_path": 0.0, "koleo": 0.1, "jitter": 0.3, "local_crops": 2, "prototypes": 256}
PRESETS = {"laptop": LAPTOP | {"lr": 4e-3}, "smoke": {"patients": 2, "probe": 24, "prototypes": 32, "local_crops": 2}}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    data: Sources = Sources(patients=20_000, modalities=MODALITIES),
    run: Run = Run(batch=128, epochs=400, workers=8, dtype="bfloat16", lr=7.5e-5),
    size: str = "B/16",
    init: str = "",
    balanced: bool = True,
    local_crops: int = 0,
    distillation: ibot.Distillation = ibot.Distillation(),
    jitter: float = 1.0,
    mask: Literal["block", "random"] = "block",
    drop_path: float = 0.1,
    probe: int = 420,
) -> Recipe:
    """The published preset has ViT-B/16, two crops of 224 pixels and 8192 prototypes. The rate is for a batch of 256."""
    wanted = tuple(modality_name(name) for name in data.modalities)
    tower = ibot.encoder(size, drop_path=drop_path, **run.compute(encoders.ViT)[0])
    side, small = tower.image_size, 96 if size not in ibot.SIZES else tower.image_size // 2
    eyes = Eyes(data.patients, run.seed, size=side * 3 // 2 if size in ibot.SIZES else side)
    sources, held = by_modality(data, wanted, eyes, keep=not run.workers)
    epoch = max(images(sources) // run.batch, 1)
    steps = run.total(epoch)
    by, (mean, std) = ibot.SCHEDULES[preset], moments(wanted)
    crops: dict[str, Any] = {"local_crops": local_crops, "local_size": small}
    fields = distillation.fields(size, by, run.dtype) | crops
    objective = ibot.IBOT(tower, **fields, steps=steps, epoch_steps=epoch, mean=mean, std=std)
    seen = MultiCrop(side, tower.patch, **crops, mask=mask, colours=published_colours(side, jitter))
    keys = ("global", "masked", *(("local",) if local_crops else ()), "modality")
    chain = (SingleView(size_hint=2 * side, text=None, targets=(), choose="random"), seen, Select(keys))
    few, folds = (16, 2) if run.smoke else (100, 5)
    passes, unlabelled = probe_passes(data, held, eyes.split("val", probe), wanted, side, few)
    scores = {f"probe_{n}": evals.FrozenProbe(data=d, classes=c, folds=folds) for n, (c, d) in passes.items()}
    if unlabelled:
        rest = one_epoch(joined(unlabelled), chain, batch=run.batch)
        scores = {"held_out": evals.HeldOutLoss(data=rest, objective=objective, step=steps)}
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), save=epoch, eval=epoch if held else 0),
        objective=objective,
        train=mix(shares(sources, chain, balanced), **run.loader()),
        optimizer=ibot.optimizer(by, run.lr * run.batch / 256, steps, epoch),
        evals=scores,
        best="probe_*/macro_auc" if data.data and passes else None,
        preprocessing={"modalities": wanted},
    )
