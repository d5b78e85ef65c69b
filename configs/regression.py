"""python launch.py train configs/regression.py --workdir runs/regression

Predict values from an image with VisionFM's biomarker decoder, on standardised targets (--raw uses raw targets, as the
authors do). Without --data, the targets are age, systolic pressure, HbA1c and axial length of synthetic eyes, which take a
few minutes on two CPU cores. The encoder of --init is frozen unless --tune full; without --init, it is trained too.
For your own data: --data labels.csv,value=age+hba1c. Evaluate at the end: launch.py eval runs/regression --part test
"""

from functools import partial
from typing import Literal

from data_pipelines import Data, train
from data_pipelines.synthetic.sources import BIOMARKERS
from data_pipelines.tasks import labelled
from data_pipelines.transforms import Select, eval_step
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim

PRESETS = {"smoke": {"size": "resnet-smoke", "image_size": 32, "steps": 3}}


def recipe(
    *,
    data: Data = Data(patients=3000, fractions=labelled.FRACTIONS),
    run: Run = Run(batch=64, epochs=14, lr=4e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(size="resnet-tiny"),
    raw: bool = False,
    head: Literal["linear", "mlp"] = "mlp",
    feature: encoders.Feature = "token",
    blocks: int = 4,
    copies: int = 1,
    dropout: float = 0.1,
) -> Recipe:
    """VisionFM's decoder has two layers and is trained with smooth L1 and AdamW. The learning rate is for a batch of 256."""
    learns = encoder.trained(run.tune)
    parts = labelled.parts(data, data.eyes(run.seed, max(encoder.image_size, 96)), run.seed, "value")
    names = parts.values if data.data else BIOMARKERS
    fields = {"feature": feature, "blocks": blocks, "frozen": not learns}
    start = encoder.open(**fields, **run.compute(encoders.ViT, encoders.ResNet)[0])
    decoder = encoders.MLPHead(len(names), 2 if head == "mlp" else 1, dropout, norm=head == "mlp")
    objective = objectives.Regress(start.backbone, decoder, names, given="image" if learns else "feature")
    read = labelled.Reader(parts, start.preprocessing, ("value",), workers=run.workers)
    rows = evals.encoded(objective, start, read, run.seed)
    passes = read.once(parts.scored, batch=min(run.batch, 64)) if learns else evals.once(rows("scored"))
    steps = run.steps or max(run.epochs * (1 if learns else copies) * len(parts.train) // run.batch, 1)
    rate = optim.cosine_schedule(run.lr * run.batch / 256, 0, steps, steps // 20 if learns else 0)
    chain = (read.view, *labelled.flips(), eval_step(start.preprocessing), Select(("image", "value", "modality")))
    batches = train(parts.train, chain, **run.loader()) if learns else None
    known = partial(labelled.labels_of, parts.train, "value")
    standard = () if raw else (objectives.standardize(known),)
    begin = interop.WarmStart((*start.init_from, *standard), start.init_extra)
    return Recipe(
        **run.recipe(steps, begin, log=max(steps // 50, 1), save=0, eval=max(steps // 8, 1)),
        objective=objective,
        train=batches or evals.Epochs(rows("train", copies), run.batch, run.seed),
        optimizer=optim.freeze(optim.adamw(rate, weight_decay=run.weight_decay), "^target/"),
        evals={parts.name: evals.Valued(data=passes, names=names)},
        best="val/r2",
        preprocessing=start.preprocessing | {"names": names},
    )
