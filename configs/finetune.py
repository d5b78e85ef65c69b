"""python launch.py train configs/finetune.py --workdir runs/finetune --init runs/visionfm --data labels.csv,images=photos

An encoder and a classifier trained together, by the published recipe of --preset visionfm, retfound or ret_clip, or with
settings for two CPU cores (laptop). Without --data it learns the conditions of synthetic eyes. The checkpoint is selected
on the validation part; evaluate the test part at the end: launch.py eval runs/finetune --part test
"""

from typing import Any, Literal

from data_pipelines.open import Data
from data_pipelines.pipeline import mix, train
from data_pipelines.tasks import labelled
from data_pipelines.tasks.labelled import FRACTIONS, Reader
from data_pipelines.transforms.steps import Select
from fundax import encoders, evals, interop, objectives
from fundax.losses.supervised import inverse_frequencies
from fundax.objectives.classify import RECIPES, fine_tuning
from fundax.recipe import Recipe, Run

# The encoder's feature, the layers of the classifier and the rules of the optimizer are in objectives.classify.RECIPES.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {"batch": 32, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3, "drop_path": 0.1, "smoothing": 0.1, "depth_decay": 0.75},
    "visionfm": {"batch": 128, "epochs": 100, "lr": 1e-3, "encoder_lr": 1e-4},
    "retfound": {"batch": 16, "epochs": 50, "lr": 5e-3, "encoder_lr": 5e-3, "drop_path": 0.2, "smoothing": 0.1,
                 "depth_decay": 0.65},
    "ret_clip": {"batch": 16, "epochs": 50, "lr": 1.6e-2, "encoder_lr": 3.2e-5, "weight_decay": 0.01, "smoothing": 0.1},
    "smoke": {"steps": 3},
}  # fmt: skip


def recipe(
    *,
    preset: Literal["laptop", "visionfm", "retfound", "ret_clip"] = "laptop",
    data: Data = Data(patients=1400, fractions=FRACTIONS),
    run: Run = Run(lr=8e-3, weight_decay=0.05),
    init: str = "",
    checkpoint: str = "",
    size: str = "tiny",
    encoder_lr: float = 4e-3,
    depth_decay: float = 1.0,
    drop_path: float = 0.0,
    smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    focal: float = 0.0,
    weights: Literal["equal", "balanced"] = "equal",
    balanced: bool = False,
    ordered: bool = False,
) -> Recipe:
    """Fine-tuning. Learning rates are for a batch of 256; docs/guide/downstream.md lists what is left out."""
    parts = labelled.parts(data, data.eyes(run.seed, 96), run.seed)
    feature, blocks, layers, norm, _ = RECIPES[preset]
    fields = run.compute(encoders.ViT)[0] | {"feature": feature, "blocks": blocks, "drop_path": drop_path}
    start = interop.backbone(init or size, checkpoint=checkpoint, frozen=False, **fields)
    several, classes = parts.kind()
    if ordered:
        parts.check_order()
    objective = objectives.Classify(
        start.backbone, encoders.MLPHead(len(classes), layers, norm=norm), kind="several" if several else "single",
        classes=classes, focal=focal, smoothing=smoothing, mixup=mixup, cutmix=cutmix, peer_softmax=preset == "ret_clip",
        weights=inverse_frequencies(labelled.labels_of(parts.train), len(classes)) if weights == "balanced" else (),
    )  # fmt: skip
    read = Reader(parts, start.preprocessing, workers=run.workers)
    steps = (read.view, *labelled.augmentation(preset, start.image.image_size), Select(("image", "label", "modality")))
    turns = [(part, steps, 1.0) for part in labelled.by_class(parts.train, len(classes))] if balanced else []
    epoch = max(len(parts.train) // run.batch, 1)
    total = run.total(epoch)
    scored = evals.Classified(data=read.once(parts.scored, batch=min(run.batch, 64)), classes=classes, ordered=ordered)
    rates = (run.lr * run.batch / 256, encoder_lr * run.batch / 256)
    decays = (run.weight_decay, depth_decay, getattr(start.image, "depth", 1))
    return Recipe(
        **run.recipe(total, start, log=max(total // 40, 1), save=0, eval=max(total // 10, 1)),
        objective=objective,
        train=mix(turns, **run.loader()) if turns else train(parts.train, steps, **run.loader()),
        optimizer=fine_tuning(preset, *rates, total, epoch, *decays),
        evals={parts.name: scored},
        best="val/kappa" if ordered else "val/macro_auc",
        preprocessing=start.preprocessing | {"classes": classes},
    )
