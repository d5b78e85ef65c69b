"""python launch.py train configs/regression.py --workdir runs/regression

Values from an image: VisionFM's biomarker decoder, on standardised targets (--raw: as they are, the authors' way). On
synthetic eyes it learns age, systolic pressure, HbA1c and axial length with the encoder, in some minutes on two CPU
cores; with --init RUN the encoder stays frozen unless --train-encoder True. Own data: --data labels.csv,value=age+hba1c.
The test part once, afterwards: python launch.py eval runs/regression --checkpoint best --test
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from data_pipelines.pipeline import one_epoch, train
from data_pipelines.synthetic.sources import BIOMARKERS, Eyes
from data_pipelines.tasks.labelled import FlipRows, Picture, flips, labels_of, parts, repeated, synthetic_parts
from data_pipelines.transforms.steps import IndependentFlip, Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.encoders.backbone import Feature
from fundax.encoders.heads import MLPHead
from fundax.evals import features
from fundax.evals.features import Epochs, Frozen
from fundax.evals.supervised import Valued
from fundax.interop.start import convolutional, encoder
from fundax.objectives.regress import Regress, standardize
from fundax.optim import adamw, cosine_schedule, freeze
from fundax.recipe import Intervals, Recipe

BESIDE = ("value", "modality", "eye", "group", "picture", "index")


def recipe(
    *,
    init: str = "",
    size: str = "resnet",
    data: str = "",
    names: tuple[str, ...] = (),
    split: str = "",
    raw: bool = False,
    train_encoder: bool | None = None,
    head: Literal["linear", "mlp"] = "mlp",
    feature: Feature | None = None,
    blocks: int = 4,
    copies: int = 1,
    dropout: float = 0.1,
    batch: int = 64,
    epochs: int = 14,
    lr: float = 4e-3,
    decay: float = 0.05,
    patients: int = 3000,
    pixels: int = 96,
    workers: int = 0,
    test: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's decoder has two layers, smooth L1 and AdamW 1e-3 for 500 epochs on features.

    Args:
        init: a run, or an import of other weights, whose encoder is read.
        size: of a fresh encoder: resnet (a small one), tiny, small, or a size of encoders/vit.py.
        data: one source whose rows have values (data_pipelines/open.py); empty takes synthetic eyes.
        names: of the values, where the data are your own.
        split: file that holds who is in which part; written at the first use, read afterwards.
        raw: learn the values in their own units.
        train_encoder: the encoder learns too; by default a fresh one does, and that of --init does not.
        head: mlp (batch norm, two layers) or linear.
        feature: of fundax/encoders/backbone.py; token by default, pooled of a resnet.
        blocks: last blocks whose class tokens are read.
        copies: augmented copies of each training image on a frozen encoder.
        dropout: of the decoder.
        batch: images in a step.
        epochs: over the training part.
        lr: peak learning rate for 256 images in a step.
        decay: weight decay.
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        pixels: side of a fresh resnet's images.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps of almost nothing.
    """
    learns = not init if train_encoder is None else train_encoder
    patients, batch, pixels, size = (16, 8, 32, "resnet") if smoke else (patients, batch, pixels, size)
    found = parts(data, split, seed, "value") if data else synthetic_parts(Eyes(patients, seed, size=max(pixels, 96)))
    names = names or (
        BIOMARKERS if not data else tuple(f"value {k}" for k in range(len(found.train[0].targets["value"])))
    )
    fields: dict[str, Any] = {"blocks": blocks, "frozen": not learns}
    resnet = size == "resnet" and not init
    fields["feature"] = feature or ("pooled" if resnet else "token")
    shape: tuple[Any, ...] = (pixels, 8, (1,)) if smoke else (pixels,)
    start = convolutional(*shape, **fields) if resnet else encoder(init, size=size, **fields)
    decoder = MLPHead(len(names), 2 if head == "mlp" else 1, dropout, norm=head == "mlp")
    objective = Regress(start.tower, decoder, names, given="image" if learns else "feature")
    first = (Grouped(SingleView(size_hint=2 * start.tower.image.image_size, text=None, targets=("value",))), Picture())
    resize, keep = eval_step(start.facts), Select(("image", *BESIDE[:-1]))
    plain, changed = (*first, resize, keep), (*first, *flips(), resize, keep)
    source = Frozen(objective, start.init_from, seed, init_extra=start.init_extra)

    def rows(name: str, count: int = 1) -> features.Read:
        part = repeated(getattr(found, name), count)
        return source.rows(one_epoch(part, changed if count > 1 else plain, batch=64, workers=workers), BESIDE)

    part = "test" if test else "val"
    images = one_epoch(getattr(found, part), plain, batch=64 if not smoke else 8, workers=workers)
    seen = (IndependentFlip(), FlipRows())
    steps = 3 if smoke else max(epochs * (1 if learns else copies) * len(found.train) // batch, 1)
    scale = lr * batch / 256
    chain = adamw(cosine_schedule(scale, 0, steps, steps // 20 if learns else 0), weight_decay=decay)
    given = train(
        found.train,
        (*first[:1], *seen, resize, Select(("image", "value", "modality"))),
        batch=batch,
        seed=seed,
        workers=workers,
    )
    known = functools.partial(labels_of, found.train, "value")
    return Recipe(
        objective=objective,
        train=given if learns else Epochs(rows("train", copies), batch, seed),
        optimizer=freeze(chain, "^target/", *(() if learns else ("^image/",))),
        steps=steps,
        batch=batch,
        evals={part: Valued(data=images if learns else features.one_epoch(rows(part)), names=names)},
        init_from=(*start.init_from, *(() if raw else (standardize(known),))),
        init_extra=start.init_extra,
        intervals=Intervals(log=max(steps // 50, 1), save=0, eval=max(steps // 8, 1)),
        best="val/r2",
        seed=seed,
        preprocessing=start.facts | {"names": names},
    )
