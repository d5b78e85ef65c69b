"""python launch.py train configs/finetune.py --workdir runs/finetune --preset photographs --data labels.csv,images=photos

An encoder and a classifier trained together: by settings for 100 to 300 photographs from ImageNet's weights (photographs), by
the published recipe of visionfm, retfound or ret_clip, or by settings for two CPU cores (laptop). Without --data it learns the
conditions of synthetic eyes. The checkpoint is selected on the part val; then: launch.py eval runs/finetune --part test
"""

from typing import Literal

from data_pipelines import Data, mix, train
from data_pipelines.tasks import labelled
from data_pipelines.transforms import Select
from fundax import Recipe, Run, encoders, evals, interop, objectives
from fundax.objectives import fine_tuning as tuning

PRESETS = tuning.PRESETS


def recipe(
    *,
    preset: Literal["laptop", "photographs", "visionfm", "retfound", "ret_clip"] = "laptop",
    data: Data = Data(patients=1400, fractions=labelled.FRACTIONS),
    run: Run = Run(lr=8e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(),
    look: labelled.Look = labelled.Look(),
    supervision: objectives.Supervision = objectives.Supervision(),
    encoder_lr: float = 4e-3,
    depth_decay: float = 1.0,
    drop_path: float = 0.0,
    statistics: Literal["learned", "frozen"] = "learned",
    ema: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Recipe:
    """Fine-tuning. Learning rates are for a batch of 256. docs/guide/downstream.md lists differences from the originals."""
    parts = labelled.parts(data, data.eyes(run.seed, 96), run.seed)
    feature, blocks, layers, norm, _ = tuning.RECIPES[preset]
    fields = run.compute(encoders.ViT)[0] | {"feature": feature, "blocks": blocks, "drop_path": drop_path}
    start = encoder.open(frozen=run.tune == "head", statistics=statistics, **look.tiling, **fields)
    seen = look.preprocessing(start.preprocessing, data, interop.is_run(encoder.init))
    several, classes = parts.kind()
    if supervision.ordered or supervision.ordinal:
        parts.check_order("--ordinal" if supervision.ordinal else "--ordered")
    head = encoders.MLPHead(supervision.outputs(classes), layers, norm=norm)
    weighed = supervision.fields(several, classes, lambda: labelled.labels_of(parts.train))
    weighed |= {"mixup": mixup, "cutmix": cutmix, "momentum": ema, "test_flips": look.test_flips}
    weighed |= {"second_softmax": preset == "ret_clip"}
    read = labelled.Reader(parts, seen, workers=run.workers)
    steps = (read.view, *labelled.augmentation(preset, seen), Select(("image", "label", "modality")))
    turns = (
        [(part, steps, 1.0) for part in labelled.by_class(parts.train, len(classes))] if supervision.balanced else []
    )
    epoch = max(len(parts.train) // run.batch, 1)
    total = run.total(epoch)
    scored = evals.Classified(
        data=read.once(parts.scored, batch=min(run.batch, 64)), classes=classes, ordered=supervision.ordered
    )
    rates = (run.lr * run.batch / 256, encoder_lr * run.batch / 256)
    decays = (run.weight_decay, depth_decay, getattr(start.image, "depth", 1))
    return Recipe(
        **run.recipe(total, start, log=max(total // 40, 1), save=0, eval=max(total // 10, 1)),
        objective=objectives.Classify(start.backbone, head, **weighed),
        train=mix(turns, **run.loader()) if turns else train(parts.train, steps, **run.loader()),
        optimizer=tuning.fine_tuning(preset, *rates, total, epoch, *decays),
        evals={parts.name: scored},
        best=supervision.best,
        preprocessing=seen | {"classes": classes},
    )
