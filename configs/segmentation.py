"""python launch.py train configs/segmentation.py --workdir runs/disc

Pixels of structures: by default the optic disc of synthetic eyes, by a small encoder, in some minutes on two CPU cores.
Your own: --data labels.csv,mask=disc+cup --overlapping --classes disc cup --init ENCODER --size 512, where ENCODER is a run,
an import or a checkpoint file. Large images in windows, scores inside the field of view:
python launch.py train configs/segmentation.py --workdir runs/vessels --data labels.csv,mask=vessels,fov=fov,patient=subject
    --classes vessel --split split.json --fractions 0.8 0.2 --resolution 512 --size 128
The checkpoint is chosen on the validation part; `launch.py eval RUN --checkpoint best` scores it on all parts.
"""

from __future__ import annotations

from typing import Literal

import optax

from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import DataError, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.modality_folders import normalisation
from data_pipelines.sources.splits import parts_of
from data_pipelines.synthetic.sources import Drawn, Eyes
from data_pipelines.transforms.dense import Prepared, RandomCrop, Ready, RightAngles
from data_pipelines.transforms.steps import ColorJitter, Select
from fundax import optim
from fundax.encoders.unetr import UNETR, Linear, decoder_blocks
from fundax.evals.segmentation import Segmentation
from fundax.interop.open_encoder import new_encoder, open_encoder
from fundax.metrics.statistics import bootstrap
from fundax.objectives.dense import Segment, outputs
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe
from fundax.types import UserError


def recipe(
    *,
    data: str = "",
    split: str = "",
    fractions: tuple[float, ...] = (0.7, 0.15, 0.15),
    classes: tuple[str, ...] = ("disc",),
    overlapping: bool = False,
    init: str = "",
    checkpoint: str = "latest",
    modality: str = "",
    encoder: str = "mini",
    freeze: bool = False,
    decoder: Literal["unetr", "linear"] = "unetr",
    width: int = 16,
    dropout: float = 0.1,
    blocks: tuple[int, ...] = (),
    size: int = 128,
    resolution: int = 0,
    crop_field: bool = False,
    turn: bool = False,
    jitter: float = 0.2,
    steps: int = 400,
    batch: int = 8,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    patients: int = 400,
    eval_every: int = 200,
    dtype: str = "float32",
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's decoder: UNETR on four blocks, Dice and focal loss, AdamW, flips. The defaults are for two CPU cores.

    Args:
        data: a CSV with columns image and mask (a file of pixel values 0, 1, ...; one for each class with
            mask=A+B --overlapping), perhaps fov and patient; empty takes synthetic eyes.
        split: file that holds who is in which part; written at the first use. Cite its digest.
        fractions: of patients for training, validation and (a third number) test.
        classes: names of the mask's values 1, 2, ...; of synthetic eyes: disc, cup, vessel, artery, vein, lesions.
        overlapping: a pixel may have several classes (lesions), each with a mask of its own.
        init: what to start the encoder from: a run, an import, or a checkpoint file of another program.
        which: checkpoint of a run: latest, best or a step.
        modality: of the images: VisionFM normalises each by its own mean; "" is ImageNet's, of a run its own (CFP's).
        encoder: size of a new encoder, without --init: mini, small, mini/16, or a name such as B/16.
        freeze: leave the encoder as it is, as VisionFM does; only the decoder learns.
        decoder: unetr, or one linear layer on the four blocks.
        width: of the UNETR decoder; published 32.
        dropout: of its last channels; published 0.3.
        blocks: which four blocks the decoder reads, from 0; published 3 5 7 11 of 12, 5 11 17 23 of 24.
        size: side of the square image that the model sees; published 512.
        resolution: side that images are resized to; if larger than size, training crops and evaluation slides windows.
        crop_field: crop to the field of view first.
        turn: also exchange rows and columns, beside the two mirrors.
        jitter: of brightness and contrast.
        steps: optimizer steps; published 100 epochs.
        batch: images in a step.
        lr: peak learning rate of a cosine; published 1e-3, constant.
        weight_decay: of matrices; published 0.05.
        patients: synthetic ones to learn from.
        eval_every: steps between evaluations, the best of which on validation is kept.
        dtype: of matrix products and convolutions.
        workers: processes that read; 0 reads each image once, in this one.
        seed: of everything random, the split too.
        smoke: two steps of almost nothing.
    """
    if smoke:
        encoder, decoder, size, resolution, steps, batch, patients = "smoke", "linear", 16, 32, 2, 8, 8
    resolution = max(resolution, size)
    found = (
        open_encoder(init, size, *normalisation(modality), checkpoint, dtype=dtype)
        if init
        else new_encoder(encoder, size, dtype=dtype)
    )
    count = outputs(classes, overlapping)
    start = 0.0 if len(classes) > 1 and not overlapping else -3.0
    kinds = {
        "unetr": lambda patch: UNETR(count, patch, width, dropout, start, dtype),
        "linear": lambda patch: Linear(count, patch, start, dtype),
    }
    parts = sources(data, split, fractions, classes, overlapping, patients, resolution, seed, crop_field)
    parts = parts if workers else {name: CachedSource(part) for name, part in parts.items()}
    augment = (RandomCrop(size), RightAngles(turn), ColorJitter(jitter, jitter, jitter / 2), Select(("image", "mask")))
    see = Ready(("truth", "truth_fov", "frame"))
    tests = {
        name: Segmentation(
            data=one_epoch(part, (see,), batch=1 if data else batch),
            classes=classes,
            overlapping=overlapping,
            interval=bootstrap,
            window=size if resolution > size else 0,
        )
        for name, part in parts.items()
        if name != "train"
    }
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(cosine(lr, steps, min(50, steps // 2)), weight_decay=weight_decay)
    )
    return Recipe(
        objective=Segment(
            image=found.tower,
            decoder=kinds[decoder](found.tower.patch),
            blocks=blocks or decoder_blocks(found.tower.depth),
            classes=classes,
            overlapping=overlapping,
            mean=found.mean,
            std=found.std,
            frozen=freeze,
        ),
        train=train(parts["train"], (Ready(("mask",)), *augment), batch=batch, seed=seed, workers=workers),
        optimizer=optim.freeze(chain, "^image/") if freeze else chain,
        steps=steps,
        batch=batch,
        evals=tests,
        init_from=found.init_from,
        intervals=Intervals(log=10, save=eval_every, eval=eval_every),
        best="val/mean_dice",
        seed=seed,
        preprocessing={
            "image_size": resolution, "mean": found.mean, "std": found.std, "resize": "squash", "interpolation": "bilinear",
            "crop_field": crop_field,
        },
    )  # fmt: skip


def sources(
    data: str,
    split: str,
    fractions: tuple[float, ...],
    classes: tuple[str, ...],
    overlapping: bool,
    patients: int,
    resolution: int,
    seed: int,
    crop: bool,
) -> dict[str, Source]:
    """Training, validation and perhaps test: no patient is in two of them."""
    if len(fractions) not in (2, 3):
        raise UserError(f"--fractions {fractions}: expected two numbers (training, validation) or three (and test)")
    names = ("train", "val", "test")[: len(fractions)]
    if data:
        whole = named(data, {"mask": "mask"}).source
        if not len(classes) or (overlapping and len(classes) < 2):
            raise DataError("--overlapping needs at least two --classes")
        found = parts_of(whole, split, dict(zip(names, fractions, strict=True)), seed, data=data)
    else:
        counts = {"train": patients, "val": max(patients // 5, 2), "test": max(patients // 4, 2)}
        eyes = {n: Eyes(counts[n], seed, 1_000_000 * k, size=resolution, masks=True) for k, n in enumerate(names)}
        found = {name: Drawn(part, classes, overlapping) for name, part in eyes.items()}
    prepare = {"classes": classes, "overlapping": overlapping, "crop": crop}
    return {name: Prepared(found[name], resolution, **prepare) for name in names}
