"""python launch.py train configs/finetune.py --workdir runs/finetune --init runs/visionfm --data labels.csv,images=photos

Fine-tune an encoder with a classifier, by the published recipe of --preset visionfm, retfound or ret_clip, or with settings
for two CPU cores (laptop). Without --data, the classes are the conditions of synthetic eyes. The checkpoint is selected on
the validation part; evaluate the test part at the end: launch.py eval runs/finetune --part test
"""

from typing import Literal

from data_pipelines import Data, mix, train
from data_pipelines.tasks import labelled
from data_pipelines.transforms import Select
from fundax import Recipe, Run, encoders, evals, interop, objectives
from fundax.objectives import classify

PRESETS = classify.PRESETS


def recipe(
    *,
    preset: Literal["laptop", "visionfm", "retfound", "ret_clip"] = "laptop",
    data: Data = Data(patients=1400, fractions=labelled.FRACTIONS),
    run: Run = Run(lr=8e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(),
    supervision: objectives.Supervision = objectives.Supervision(),
    encoder_lr: float = 4e-3,
    depth_decay: float = 1.0,
    drop_path: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Recipe:
    """Fine-tuning. Learning rates are for a batch of 256. docs/guide/downstream.md lists differences from the originals."""
    parts = labelled.parts(data, data.eyes(run.seed, 96), run.seed)
    feature, blocks, layers, norm, _ = classify.RECIPES[preset]
    fields = run.compute(encoders.ViT)[0] | {"feature": feature, "blocks": blocks, "drop_path": drop_path}
    start = encoder.open(frozen=False, **fields)
    several, classes = parts.kind()
    if supervision.ordered:
        parts.check_order()
    head = encoders.MLPHead(len(classes), layers, norm=norm)
    weighed = supervision.fields(several, classes, lambda: labelled.labels_of(parts.train))
    weighed |= {"mixup": mixup, "cutmix": cutmix, "peer_softmax": preset == "ret_clip"}
    read = labelled.Reader(parts, start.preprocessing, workers=run.workers)
    steps = (read.view, *labelled.augmentation(preset, start.image.image_size), Select(("image", "label", "modality")))
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
        optimizer=classify.fine_tuning(preset, *rates, total, epoch, *decays),
        evals={parts.name: scored},
        best=supervision.best,
        preprocessing=start.preprocessing | {"classes": classes},
    )
