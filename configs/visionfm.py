"""python launch.py train configs/visionfm.py --workdir runs/visionfm --data images/

VisionFM's pretraining (iBOT), with one encoder of all modalities, or of one as published (--modality fundus). `images/`
holds a folder for each modality; without --data it learns from synthetic eyes. On two CPU cores, in some minutes:
python launch.py train configs/visionfm.py --preset laptop --workdir runs/visionfm
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import optax

from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.modality_folders import moments
from data_pipelines.synthetic.render import DRAWERS
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.modality_mix import by_modality, images, shares
from data_pipelines.transforms.multi_crop import MultiCrop, published_colours
from data_pipelines.transforms.steps import Select, Squash
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import ViT, dino_vit
from fundax.evals.probe import FrozenProbe
from fundax.interop.timm import initial
from fundax.objectives.ibot import IBOT, Temperature
from fundax.optim import adamw, clip_leaves, cosine_schedule, freeze, peer_visionfm
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval

# What --preset stands for; an argument that is given wins. heat, freeze, warmup: epochs of temperatures, of the frozen
# last layer, and of the learning rate's warm-up.
PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "batch": 128, "epochs": 400, "lr": 7.5e-5, "min_lr": 2e-6, "warmup": 50, "local_crops": 0, "prototypes": 8192,
        "dtype": "bfloat16", "drop_path": 0.1, "patients": 20_000, "probe": 420, "workers": 8,
        "heat": 30, "token_heat": (0.07, 0.04), "patch_heat": (0.04, 0.07),
        "freeze": 3, "momentum": 0.996, "centering": "mean", "koleo": 0.0, "jitter": 1.0,
    },
    "laptop": {
        "batch": 64, "epochs": 5, "lr": 4e-3, "min_lr": 1e-5, "warmup": 0.5, "local_crops": 2, "prototypes": 256,
        "dtype": "float32", "drop_path": 0.0, "patients": 1500, "probe": 700, "workers": 0,
        "heat": 3, "token_heat": (0.04, 0.04), "patch_heat": (0.04, 0.04),
        "freeze": 0.5, "momentum": 0.99, "centering": "sinkhorn", "koleo": 0.1, "jitter": 0.3,
    },
}  # fmt: skip
PRESETS["smoke"] = PRESETS["laptop"] | {"batch": 8, "epochs": 2, "patients": 2, "probe": 24, "prototypes": 32}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    modality: str = "all",
    data: tuple[str, ...] = ("synthetic",),
    balanced: bool = True,
    init: str = "",
    size: str = "B/16",
    batch: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    local_crops: int | None = None,
    prototypes: int | None = None,
    heads: Literal["shared", "unshared", "split"] = "shared",
    centering: Literal["mean", "sinkhorn"] | None = None,
    koleo: float | None = None,
    jitter: float | None = None,
    mask: Literal["block", "random"] = "block",
    patients: int | None = None,
    probe: int | None = None,
    workers: int | None = None,
    dtype: str | None = None,
    remat: Literal["none", "dots", "full"] = "none",
    keep: int = 2,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's published values: ViT-B/16, 400 epochs, two crops of 224 pixels, 8192 shared prototypes.

    Args:
        preset: published, or laptop: a small encoder, 64 pixels, settings for two CPU cores.
        modality: all for one joint encoder, or one: fundus, oct, ffa, uwf, slit lamp, external, ultrasound, ubm, mri.
        data: folders laid out <Modality>/*, CSV files or image folders (options after commas), synthetic.
        balanced: every modality as often as the others; otherwise by its number of images.
        init: a VisionFM, DINO, iBOT, timm or RETFound checkpoint, or a run, whose encoder to start from.
        size: of the published preset's encoder (encoders/vit.py).
        batch: images in a step.
        epochs: passes over as many images as there are.
        lr: peak learning rate for 256 images in a step; it grows with the batch.
        local_crops: small crops of each image, beside the two large ones.
        prototypes: outputs of the heads.
        heads: one for class token and patches, a last layer for each, or a head for each (DINOv2).
        centering: of the teacher's outputs: running means (published), or Sinkhorn-Knopp (DINOv2, laptop).
        koleo: weight of the loss that spreads class tokens; published 0, DINOv2 and laptop 0.1.
        jitter: strength of the changes of colour, 1 is published; weak ones keep what colour says of small images.
        mask: patches hidden from the student: blocks of them, or any.
        patients: synthetic ones of each modality.
        probe: unseen synthetic patients of each modality, for probes at the first and the last step; 0 for none.
        workers: processes that read and augment; 0 makes each synthetic picture once, in this one.
        dtype: of matrix products.
        remat: activations to compute again instead of keeping.
        keep: latest checkpoints, one for each epoch; more make a film strip (`launch.py explain --checkpoints all`).
        seed: of everything random.
        smoke: some steps of almost nothing.
    """
    given = {"batch": batch, "epochs": epochs, "lr": lr, "local_crops": local_crops, "prototypes": prototypes}
    given |= {"patients": patients, "probe": probe, "workers": workers, "dtype": dtype}
    given |= {"centering": centering, "koleo": koleo, "jitter": jitter}
    use = PRESETS["smoke" if smoke else preset] | {k: v for k, v in given.items() if v is not None and not smoke}
    published = preset == "published" and not smoke
    wanted = MODALITIES if modality == "all" else (modality_name(modality),)
    tower = encoder(size, published, smoke, drop_path=use["drop_path"], dtype=use["dtype"], remat=remat)
    side, small = tower.image_size, 96 if published else tower.image_size // 2
    synthetic = Eyes(use["patients"], seed, size=side if published else side * 3 // 2)
    sources = by_modality(data, wanted, synthetic, keep=not use["workers"])
    epoch = max(images(sources) // use["batch"], 1)
    steps = use["epochs"] * epoch
    rate = use["lr"] * use["batch"] / 256
    crops = MultiCrop(
        side,
        tower.patch,
        local_crops=use["local_crops"],
        local_size=small,
        mask=mask,
        colours=published_colours(side, use["jitter"]),
    )
    keys = ("global", "masked", *(("local",) if use["local_crops"] else ()), "modality")
    mean, std = moments(wanted)
    objective = IBOT(
        image=tower, head=head(use["prototypes"], heads, published, use["dtype"]), steps=steps, epoch_steps=epoch,
        local_crops=use["local_crops"], local_size=small, mean=mean, std=std,
        token_temperature=Temperature(use["token_heat"][0], use["token_heat"][1], use["heat"]),
        centering=use["centering"], koleo=use["koleo"],
        patch_temperature=Temperature(use["patch_heat"][0], use["patch_heat"][1], use["heat"]),
        momentum=(use["momentum"], 1.0),
    )  # fmt: skip
    late = ("head/last_layer", max(round(use["freeze"] * epoch), 1))
    schedule = cosine_schedule(rate, use["min_lr"], steps, round(use["warmup"] * epoch))
    decay = cosine_schedule(0.04, 0.4, steps)
    chain = optax.chain(clip_leaves(3.0), adamw(schedule, weight_decay=decay, decay=peer_visionfm, late=late))
    return Recipe(
        objective=objective,
        train=mix(shares(sources, (SingleView(size_hint=2 * side, text=None, targets=()), crops, Select(keys)), balanced),
                  batch=use["batch"], seed=seed, workers=use["workers"]),
        optimizer=freeze(chain, "head/last_layer2?/scale"),
        steps=steps,
        batch=use["batch"],
        evals=probes(wanted, replace(synthetic, n=use["probe"], start=1_000_000), side, smoke),
        init_from=(initial(init, objective),) if init else (),
        intervals=Intervals(log=10, save=epoch, eval=0),
        keep=keep,
        seed=seed,
        preprocessing={"image_size": side, "mean": mean, "std": std, "modalities": wanted, "resize": "squash",
                       "interpolation": "bicubic"},
    )  # fmt: skip


def encoder(size: str, published: bool, smoke: bool, **fields: Any) -> ViT:
    """The published encoder; or the laptop's, of 64 pixels and width 128; or that of --smoke."""
    if published:
        return dino_vit(size, mask_token=True, scan=True, **fields)
    side, patch, width, depth = (32, 8, 32, 1) if smoke else (64, 16, 128, 4)
    tower = dino_vit(size, mask_token=True, **fields)
    return tower.clone(image_size=side, patch=patch, width=width, depth=depth, heads=4)


def head(prototypes: int, kind: str, published: bool, dtype: str) -> IBOTHead:
    """The published head has a hidden width of 2048 and a bottleneck of 256."""
    hidden, bottleneck = (2048, 256) if published else (256, 64)
    return IBOTHead(prototypes, None, hidden, bottleneck, shared=kind == "shared", split=kind == "split", dtype=dtype)


def probes(wanted: tuple[str, ...], unseen: Eyes, side: int, smoke: bool) -> dict[str, Eval]:
    """For each modality that can be drawn: the conditions of patients never seen, from the frozen teacher."""
    chosen = replace(unseen, conditions=("normal", "cataract")) if smoke else unseen
    steps = (Grouped(SingleView(text=None)), Squash(side), Select(("image", "label", "modality", "group")))
    found: dict[str, Eval] = {}
    for name in DRAWERS:
        if name in wanted and unseen.n:
            data = one_epoch(CachedSource(replace(chosen, modalities=(name,))), steps, batch=16 if smoke else 100)
            found[f"probe_{name.lower()}"] = FrozenProbe(data=data, classes=chosen.classes, folds=2 if smoke else 5)
    return found
