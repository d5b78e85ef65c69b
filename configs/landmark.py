"""python launch.py train configs/landmark.py --workdir runs/landmarks

Fovea and optic disc: by default of synthetic eyes at 128 pixels, by a small encoder, in some minutes on two CPU cores.
Your own photographs, with columns fovea_x, fovea_y, disc_x, disc_y in pixels, from that run or any pretrained encoder:
python launch.py train configs/landmark.py --workdir runs/mine --data labels.csv --split split.json --init runs/landmarks
Other landmarks: --landmarks left_angle right_angle. Errors are in pixels of the original images and, with --disc-diameter
(or a column: --data labels.csv,value=COLUMN), in disc diameters. The checkpoint is chosen on the validation part;
`launch.py eval RUN --checkpoint best` scores it on all parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import optax

from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.modality_folders import normalisation
from data_pipelines.sources.splits import parts_of
from data_pipelines.synthetic.sources import Drawn, Eyes
from data_pipelines.transforms.dense import Prepared, RandomMove, Ready
from data_pipelines.transforms.steps import ColorJitter, Flip, Select
from fundax import optim
from fundax.encoders.unetr import UNETR, Linear, decoder_blocks
from fundax.evals.landmarks import Landmarks
from fundax.interop.open_encoder import new_encoder, open_encoder
from fundax.metrics.statistics import bootstrap
from fundax.objectives.dense import Landmark
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe
from fundax.types import UserError


def recipe(
    *,
    data: str = "",
    split: str = "",
    fractions: tuple[float, ...] = (0.6, 0.15, 0.25),
    landmarks: tuple[str, ...] = ("fovea", "disc"),
    missing: Literal["error", "allowed"] = "error",
    disc_diameter: float = 0.0,
    init: str = "",
    checkpoint: str = "latest",
    modality: str = "",
    encoder: str = "mini/16",
    freeze: bool = False,
    decoder: Literal["unetr", "linear"] = "unetr",
    width: int = 16,
    dropout: float = 0.1,
    blocks: tuple[int, ...] = (),
    sigma: float = 2.0,
    read: Literal["points", "points_expected"] = "points",
    size: int = 128,
    resize: Literal["squash", "longest"] = "longest",
    degrees: float = 5.0,
    shift: float = 0.05,
    scale: tuple[float, float] = (1.0, 1.0),
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
    """VisionFM's landmarks: UNETR on four blocks, a spatial softmax for each, AdamW. The defaults are for two CPU cores.

    Args:
        data: a CSV with columns image, NAME_x and NAME_y for each landmark, perhaps patient; empty takes synthetic eyes.
        split: file that holds who is in which part; written at the first use. Cite its digest.
        fractions: of patients for training, validation and (a third number) test.
        landmarks: names; with left and right in them they change places in mirrored images.
        missing: whether a landmark may have no place in an image (an empty cell).
        disc_diameter: of the optic disc, in pixels of the original images, to give errors in.
        init: what to start from: a run (its decoder too, if it fits), an import, or another program's checkpoint file.
        which: checkpoint of a run: latest, best or a step.
        modality: of the images: VisionFM normalises each by its own mean; "" is ImageNet's, of a run its own (CFP's).
        encoder: size of a new encoder, without --init: mini, small, mini/16, or a name such as B/16.
        freeze: leave the encoder as it is, as VisionFM does; only the decoder learns.
        decoder: unetr, or one linear layer on the four blocks.
        width: of the UNETR decoder; published 32.
        dropout: of its last channels; published 0.3.
        blocks: which four blocks the decoder reads, from 0; published 3 5 7 11 of 12, 5 11 17 23 of 24.
        sigma: pixels of the Gaussian that a point is learnt as; published 0, a single pixel.
        read: the highest pixel (published), or the mean place under the softmax.
        size: side of the square image that the model sees; published 224.
        resize: longest keeps the aspect and pads with black; squash is published.
        degrees: largest rotation of an augmented image.
        shift: largest move of one, as a part of its side.
        scale: smallest and largest magnification of one; published none.
        jitter: of brightness and contrast; published none.
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
        encoder, decoder, size, steps, batch, patients = "smoke", "linear", 16, 2, 8, 8
    found = (
        open_encoder(init, size, *normalisation(modality), checkpoint, dtype=dtype)
        if init
        else new_encoder(encoder, size, dtype=dtype)
    )
    count = len(landmarks)
    kinds = {
        "unetr": lambda patch: UNETR(count, patch, width, dropout, dtype=dtype),
        "linear": lambda patch: Linear(count, patch, dtype=dtype),
    }
    parts = sources(data, split, fractions, landmarks, patients, size, seed)
    prepare = {"landmarks": landmarks, "missing": missing if data else "allowed", "diameter": disc_diameter}
    read_once = {n: Prepared(part, size, **prepare, resize=resize) for n, part in parts.items()}
    ready = read_once if workers else {name: CachedSource(part) for name, part in read_once.items()}
    augment = (RandomMove(degrees, shift, scale), Flip(landmarks=landmarks), ColorJitter(jitter, jitter, jitter / 2))
    see = Ready(("points", "frame", "diameter"))
    tests = {
        name: Landmarks(
            data=one_epoch(part, (see,), batch=min(batch, len(part))), names=landmarks, read=read, interval=bootstrap
        )
        for name, part in ready.items()
        if name != "train"
    }
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), adamw(cosine(lr, steps, min(50, steps // 2)), weight_decay=weight_decay)
    )
    return Recipe(
        objective=Landmark(
            image=found.tower,
            decoder=kinds[decoder](found.tower.patch),
            blocks=blocks or decoder_blocks(found.tower.depth),
            names=landmarks,
            sigma=sigma,
            mean=found.mean,
            std=found.std,
            frozen=freeze,
        ),
        train=train(
            ready["train"],
            (Ready(("points",)), *augment, Select(("image", "points"))),
            batch=batch,
            seed=seed,
            workers=workers,
        ),
        optimizer=optim.freeze(chain, "^image/") if freeze else chain,
        steps=steps,
        batch=batch,
        evals=tests,
        init_from=found.init_from,
        intervals=Intervals(log=10, save=eval_every, eval=eval_every),
        best=("val/mean_error", "min"),
        seed=seed,
        preprocessing={
            "image_size": size, "mean": found.mean, "std": found.std, "resize": resize, "interpolation": "bilinear",
        },
    )  # fmt: skip


def sources(
    data: str,
    split: str,
    fractions: tuple[float, ...],
    landmarks: tuple[str, ...],
    patients: int,
    size: int,
    seed: int,
) -> dict[str, Source]:
    """Training, validation and perhaps test: no patient is in two of them."""
    if len(fractions) not in (2, 3):
        raise UserError(f"--fractions {fractions}: expected two numbers (training, validation) or three (and test)")
    names = ("train", "val", "test")[: len(fractions)]
    if data:
        whole = named(data, {"points": "+".join(landmarks)}).source
        found = parts_of(whole, split, dict(zip(names, fractions, strict=True)), seed, data=data)
        return {name: found[name] for name in names}
    if landmarks != ("fovea", "disc"):
        raise UserError(f"synthetic eyes have the landmarks fovea and disc, not {', '.join(landmarks)}; give --data")
    eyes = Eyes(patients, seed, size=size, masks=True)
    counts = {"train": patients, "val": max(patients // 5, 2), "test": max(patients // 4, 2)}
    return {n: Drawn(replace(eyes, n=counts[n], start=1_000_000 * k)) for k, n in enumerate(names)}
