"""python launch.py train configs/landmark.py --workdir runs/landmarks

Detect landmarks, by default fovea and optic disc of synthetic eyes, with a small encoder in a few minutes on two CPU cores.
For your own images, with columns fovea_x, fovea_y, disc_x, disc_y in pixels: --data labels.csv --split split.json. For other
landmarks: --classes left_angle right_angle. Errors are in pixels of the original images and, with --disc-diameter or
--data labels.csv,value=COLUMN, in disc diameters. The checkpoint is selected on the validation part.
"""

from typing import Literal

from data_pipelines import Data, one_epoch, train
from data_pipelines.tasks import dense
from data_pipelines.transforms import ColorJitter, Flip, RandomMove, Ready, Select
from fundax import Recipe, Run, encoders, evals, interop, metrics, objectives, optim

PRESETS = {"smoke": {"patients": 8, "image_size": 16, "head": "linear"}}


def recipe(
    *,
    data: Data = Data(patients=400, fractions=(0.6, 0.15, 0.25), classes=("fovea", "disc")),
    run: Run = Run(batch=8, steps=400, lr=2e-3, weight_decay=0.05),
    missing: Literal["error", "allowed"] = "error",
    disc_diameter: float = 0.0,
    encoder: interop.Encoder = interop.Encoder(size="tiny/16", image_size=128),
    decoder: objectives.Decoder = objectives.Decoder(width=16, dropout=0.1),
    sigma: float = 2.0,
    points: Literal["points", "points_expected", "points_refined"] = "points_refined",
    resize: Literal["squash", "longest"] = "longest",
    degrees: float = 5.0,
    shift: float = 0.05,
    scale: tuple[float, float] = (1.0, 1.0),
    jitter: float = 0.2,
) -> Recipe:
    """VisionFM's landmark detection; its settings are width 32, dropout 0.3, 224 pixels, squash, sigma 0 and no jitter."""
    side, fixed = encoder.image_size, run.tune == "head"
    start = encoder.open(frozen=fixed, scan=False, **run.compute(encoders.ViT)[0])
    model = decoder.fields(start.backbone, len(data.classes))
    options = {"missing": missing, "diameter": disc_diameter, "resize": resize, "keep": not run.workers}
    parts, landmarks = dense.points(data, run.seed, side, **options), data.classes
    augment = (RandomMove(degrees, shift, scale), Flip(landmarks=landmarks), ColorJitter(jitter, jitter, jitter / 2))
    see = dense.ready(parts.scored, "points", "frame", "diameter")
    scores = {"names": landmarks, "read": points, "interval": metrics.bootstrap}
    passes = one_epoch(parts.scored, (see,), batch=min(run.batch, len(parts.scored)))
    steps = run.total(max(len(parts.train) // run.batch, 1) if not run.steps else 1)
    rate = optim.cosine(run.lr, steps, min(50, steps // 2))
    rule = optim.adamw(rate, weight_decay=run.weight_decay, clip=1.0)
    return Recipe(
        **run.recipe(steps, start, save=200, eval=200),
        objective=objectives.Landmark(**model, names=landmarks, sigma=sigma),
        train=train(parts.train, (Ready(("points",)), *augment, Select(("image", "points"))), **run.loader()),
        optimizer=rule,
        evals={parts.name: evals.Landmarks(data=passes, **scores)},
        best=("val/mean_error", "min"),
        preprocessing={"image_size": side, "resize": resize, "interpolation": "bilinear"},
    )
