"""python launch.py train configs/segmentation.py --workdir runs/disc

Segmentation, by default of the optic disc of synthetic eyes, with a small encoder in a few minutes on two CPU cores. For your
own data: --data labels.csv,mask=disc+cup --overlapping --classes disc cup --init ENCODER --image-size 512. For large images, in
windows, evaluated inside the field of view: --data labels.csv,mask=vessels,fov=fov --classes vessel --split split.json
--fractions 0.8 0.2 --resolution 512 --image-size 128. The checkpoint is selected on the validation part.
"""

from data_pipelines import Data, one_epoch, train
from data_pipelines.tasks import dense
from data_pipelines.transforms import ColorJitter, RandomCrop, Ready, RightAngles, Select
from fundax import Recipe, Run, encoders, evals, interop, metrics, objectives, optim

PRESETS = {"smoke": {"patients": 8, "image_size": 16, "resolution": 32, "head": "linear"}}


def recipe(
    *,
    data: Data = Data(patients=400, fractions=(0.7, 0.15, 0.15), classes=("disc",)),
    run: Run = Run(batch=8, steps=400, lr=2e-3, weight_decay=0.05),
    overlapping: bool = False,
    encoder: interop.Encoder = interop.Encoder(size="tiny/8", image_size=128),
    decoder: objectives.Decoder = objectives.Decoder(width=16, dropout=0.1),
    resolution: int = 0,
    crop_field: bool = False,
    transpose: bool = False,
    jitter: float = 0.2,
) -> Recipe:
    """VisionFM's decoder; its settings are width 32, dropout 0.3, 512 pixels, a constant learning rate of 1e-3, 100 epochs."""
    classes = data.classes
    side, fixed = encoder.image_size, run.tune == "head"
    resolution = max(resolution, side)
    start = encoder.open(frozen=fixed, scan=False, **run.compute(encoders.ViT)[0])
    bias = 0.0 if len(classes) > 1 and not overlapping else -3.0
    model = decoder.fields(start.backbone, objectives.outputs(classes, overlapping), bias)
    parts = dense.masks(data, run.seed, resolution, overlapping=overlapping, crop=crop_field, keep=not run.workers)
    augment = (RandomCrop(side), RightAngles(transpose), ColorJitter(jitter, jitter, jitter / 2))
    see, batch = dense.ready(parts.scored, "truth", "truth_fov", "frame"), 1 if data.data else run.batch
    scores = {"classes": classes, "overlapping": overlapping, "interval": metrics.bootstrap}
    scores |= {"window": side if resolution > side else 0}
    steps = run.total(max(len(parts.train) // run.batch, 1) if not run.steps else 1)
    rate = optim.cosine(run.lr, steps, min(50, steps // 2))
    rule = optim.adamw(rate, weight_decay=run.weight_decay, clip=1.0)
    return Recipe(
        **run.recipe(steps, start, save=200, eval=200),
        objective=objectives.Segment(**model, classes=classes, overlapping=overlapping),
        train=train(parts.train, (Ready(("mask",)), *augment, Select(("image", "mask"))), **run.loader()),
        optimizer=rule,
        evals={parts.name: evals.Segmentation(data=one_epoch(parts.scored, (see,), batch=batch), **scores)},
        best="val/mean_dice",
        preprocessing={"image_size": resolution, "interpolation": "bilinear", "crop_field": crop_field},
    )
