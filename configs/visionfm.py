"""python launch.py train configs/visionfm.py --workdir runs/visionfm --data images/

VisionFM's pretraining (iBOT) of one encoder for all modalities, or for one as published (--modalities fundus). `images/`
has a folder for each modality; without --data it trains on synthetic eyes. On two CPU cores, in some minutes:
python launch.py train configs/visionfm.py --preset laptop --workdir runs/visionfm
"""

from dataclasses import replace
from typing import Literal

import optax

from data_pipelines.open import Sources, joined
from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.sources.modality_folders import moments
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.modality_mix import by_modality, images, labelled_passes, probe_data, shares
from data_pipelines.transforms.multi_crop import MultiCrop, published_colours
from data_pipelines.transforms.steps import Select
from data_pipelines.transforms.views import SingleView
from fundax import encoders, evals, interop, optim
from fundax.objectives import ibot
from fundax.recipe import Recipe, Run

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
    prototypes: int = 8192,
    heads: Literal["shared", "unshared", "split"] = "shared",
    centering: Literal["mean", "sinkhorn"] = "mean",
    koleo: float = 0.0,
    jitter: float = 1.0,
    mask: Literal["block", "random"] = "block",
    drop_path: float = 0.1,
    probe: int = 420,
) -> Recipe:
    """ViT-B/16, two crops of 224 pixels, 8192 shared prototypes. The learning rate is for a batch of 256."""
    wanted = tuple(modality_name(name) for name in data.modalities)
    tower = ibot.encoder(size, drop_path=drop_path, **run.compute(encoders.ViT)[0])
    side, small = tower.image_size, 96 if size not in ibot.SIZES else tower.image_size // 2
    eyes = Eyes(data.patients, run.seed, size=side * 3 // 2 if size in ibot.SIZES else side)
    sources, held = by_modality(data, wanted, eyes, keep=not run.workers)
    epoch = max(images(sources) // run.batch, 1)
    steps = run.total(epoch)
    by, (mean, std) = ibot.SCHEDULES[preset], moments(wanted)
    objective = ibot.IBOT(
        image=tower, head=ibot.head(size, prototypes, heads, run.dtype), steps=steps, epoch_steps=epoch,
        local_crops=local_crops, local_size=small, mean=mean, std=std, token_temperature=ibot.Temperature(*by.token, by.ramp),
        patch_temperature=ibot.Temperature(*by.patch, by.ramp), centering=centering, koleo=koleo, momentum=(by.momentum, 1.0),
    )  # fmt: skip
    crops = {"local_crops": local_crops, "local_size": small, "mask": mask, "colours": published_colours(side, jitter)}
    keys = ("global", "masked", *(("local",) if local_crops else ()), "modality")
    chain = (SingleView(size_hint=2 * side, text=None, targets=()), MultiCrop(side, tower.patch, **crops), Select(keys))
    rate = optim.cosine_schedule(run.lr * run.batch / 256, by.last_lr, steps, min(round(by.warmup * epoch), steps // 2))
    late = ("head/last_layer", max(round(by.frozen * epoch), 1))
    decay = {"weight_decay": optim.cosine_schedule(0.04, 0.4, steps), "decay": optim.peer_visionfm}
    rule = optax.chain(optim.clip_leaves(3.0), optim.adamw(rate, late=late, **decay))
    few, folds = (16, 2) if run.smoke else (100, 5)
    unseen = replace(eyes.split("val", probe), conditions=("normal", "cataract") if run.smoke else None)
    passes = {n.lower(): (unseen.classes, d) for n, d in probe_data(wanted, unseen, side, few).items()}
    passes = labelled_passes(held, side, few) if data.data else passes
    scores = {f"probe_{n}": evals.FrozenProbe(data=d, classes=c, folds=folds) for n, (c, d) in passes.items()}
    if held and not scores:
        one = one_epoch(joined([one for group in held.values() for one in group]), chain, batch=run.batch)
        scores = {"held_out": evals.HeldOutLoss(data=one, objective=objective, step=steps)}
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), save=epoch, eval=epoch if held else 0),
        objective=objective,
        train=mix(shares(sources, chain, balanced), **run.loader()),
        optimizer=optim.freeze(rule, "head/last_layer2?/scale"),
        evals=scores,
        best="probe_*/macro_auc" if data.data and passes else None,
        preprocessing={"modalities": wanted},
    )
