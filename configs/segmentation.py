"""python launch.py train configs/segmentation.py --workdir runs/disc

Segmentation: by default of the optic disc of synthetic eyes, with a small encoder, in some minutes on two CPU cores. Yours:
--data labels.csv,mask=disc+cup --overlapping --classes disc cup --init ENCODER --image-size 512. Large images in windows,
scored inside the field of view: --data labels.csv,mask=vessels,fov=fov,patient=subject --classes vessel --split split.json
--fractions 0.8 0.2 --resolution 512 --image-size 128. The checkpoint is selected on the validation part.
"""

from typing import Literal

import optax

from data_pipelines.open import Data
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.tasks import dense
from data_pipelines.transforms.dense import RandomCrop, Ready, RightAngles
from data_pipelines.transforms.steps import ColorJitter, Select
from fundax import encoders, evals, interop, optim
from fundax.metrics.statistics import bootstrap
from fundax.objectives.dense import Segment, on_encoder, outputs
from fundax.recipe import Recipe, Run

PRESETS = {"smoke": {"patients": 8, "image_size": 16, "resolution": 32, "head": "linear"}}


def recipe(
    *,
    data: Data = Data(patients=400, fractions=(0.7, 0.15, 0.15), classes=("disc",)),
    run: Run = Run(batch=8, steps=400, lr=2e-3, weight_decay=0.05),
    overlapping: bool = False,
    init: str = "",
    checkpoint: str = "",
    modality: str = "",
    size: str = "tiny/8",
    train_encoder: bool | None = True,
    head: Literal["unetr", "linear"] = "unetr",
    width: int = 16,
    dropout: float = 0.1,
    decoder_layers: tuple[int, ...] = (),
    image_size: int = 128,
    resolution: int = 0,
    crop_field: bool = False,
    transpose: bool = False,
    jitter: float = 0.2,
) -> Recipe:
    """VisionFM's decoder. Published: width 32, dropout 0.3, 512 pixels, a constant learning rate of 1e-3, 100 epochs."""
    classes = data.classes
    resolution, fixed = max(resolution, image_size), train_encoder is False or (train_encoder is None and bool(init))
    fields = {"modality": modality, "image_size": image_size, "scan": False} | run.compute(encoders.ViT)[0]
    start = interop.backbone(init or size, checkpoint=checkpoint, frozen=fixed, **fields)
    bias = 0.0 if len(classes) > 1 and not overlapping else -3.0
    shape = {"width": width, "dropout": dropout, "blocks": decoder_layers, "start": bias}
    parts = dense.masks(data, run.seed, resolution, overlapping=overlapping, crop=crop_field, keep=not run.workers)
    augment = (RandomCrop(image_size), RightAngles(transpose), ColorJitter(jitter, jitter, jitter / 2))
    see, batch = dense.ready(parts.scored, "truth", "truth_fov", "frame"), 1 if data.data else run.batch
    scores = {"classes": classes, "overlapping": overlapping, "interval": bootstrap}
    scores |= {"window": image_size if resolution > image_size else 0}
    steps = run.total(max(len(parts.train) // run.batch, 1) if not run.steps else 1)
    rate = optim.cosine(run.lr, steps, min(50, steps // 2))
    rule = optax.chain(optax.clip_by_global_norm(1.0), optim.adamw(rate, weight_decay=run.weight_decay))
    return Recipe(
        **run.recipe(steps, start, save=200, eval=200),
        objective=Segment(
            **on_encoder(start.backbone, head, outputs(classes, overlapping), **shape),
            classes=classes,
            overlapping=overlapping,
        ),
        train=train(parts.train, (Ready(("mask",)), *augment, Select(("image", "mask"))), **run.loader()),
        optimizer=optim.freeze(rule, "^image/") if fixed else rule,
        evals={parts.name: evals.Segmentation(data=one_epoch(parts.scored, (see,), batch=batch), **scores)},
        best="val/mean_dice",
        preprocessing={"image_size": resolution, "interpolation": "bilinear", "crop_field": crop_field},
    )
