"""python launch.py train configs/finetune.py --workdir runs/finetune --init runs/visionfm --data labels.csv,images=photos

An encoder and a classifier trained together, by the published recipe of --preset visionfm, retfound or ret_clip, or with
settings for two CPU cores (laptop). Without --data it learns the conditions of synthetic eyes. The checkpoint is selected
on the validation part; evaluate the test part at the end: launch.py eval runs/finetune --checkpoint best --test
"""

from typing import Any, Literal

import optax

from data_pipelines.open import Data
from data_pipelines.pipeline import mix, train
from data_pipelines.tasks import labelled
from data_pipelines.tasks.labelled import FRACTIONS, Reader
from data_pipelines.transforms.steps import Select
from fundax import encoders, evals, interop, objectives, optim
from fundax.losses.supervised import inverse_frequencies
from fundax.recipe import Recipe, Run

# `layers` of the classifier and `norm` before it, the encoder's `feature`, and the rules of the optimizer are the preset's.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {"batch": 32, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3, "drop_path": 0.1, "smoothing": 0.1, "depth_decay": 0.75},
    "visionfm": {"batch": 128, "epochs": 100, "lr": 1e-3, "encoder_lr": 1e-4},
    "retfound": {"batch": 16, "epochs": 50, "lr": 5e-3, "encoder_lr": 5e-3, "drop_path": 0.2, "smoothing": 0.1,
                 "depth_decay": 0.65},
    "ret_clip": {"batch": 16, "epochs": 50, "lr": 1.6e-2, "encoder_lr": 3.2e-5, "weight_decay": 0.01, "smoothing": 0.1},
    "smoke": {"steps": 3},
}  # fmt: skip
MODELS: dict[str, tuple[Any, ...]] = {  # feature, blocks, layers, norm, epochs of warm-up
    "laptop": ("token", 4, 1, True, 2),
    "visionfm": ("token", 4, 3, True, 0),
    "retfound": ("mean", 1, 1, False, 10),
    "ret_clip": ("pooled", 1, 1, False, 0),
}


def recipe(
    *,
    preset: Literal["laptop", "visionfm", "retfound", "ret_clip"] = "laptop",
    data: Data = Data(patients=1400, fractions=FRACTIONS),
    run: Run = Run(lr=8e-3, weight_decay=0.05),
    init: str = "",
    checkpoint: str = "latest",
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
    test: bool = False,
) -> Recipe:
    """Fine-tuning. Learning rates are for a batch of 256; docs/downstream.md says what is left out of the published recipes."""
    parts = labelled.parts(data, data.eyes(run.seed, 96), run.seed)
    feature, blocks, layers, norm, warmup = MODELS[preset]
    fields = {"feature": feature, "blocks": blocks, "frozen": False, "drop_path": drop_path} | run.compute(
        encoders.ViT
    )[0]
    start = interop.backbone(init or size, checkpoint=checkpoint, **fields)
    several, classes = parts.kind()
    objective = objectives.Classify(
        start.backbone, encoders.MLPHead(len(classes), layers, norm=norm), kind="several" if several else "single",
        classes=classes, focal=focal, smoothing=smoothing, mixup=mixup, cutmix=cutmix, peer_softmax=preset == "ret_clip",
        weights=inverse_frequencies(labelled.labels_of(parts.train), len(classes)) if weights == "balanced" else (),
    )  # fmt: skip
    read = Reader(parts, start.preprocessing, workers=run.workers)
    steps = (read.view, *labelled.augmentation(preset, start.image.image_size), Select(("image", "label", "modality")))
    turns = [(part, steps, 1.0) for part in labelled.by_class(parts.train, len(classes))] if balanced else []
    epoch, part = max(len(parts.train) // run.batch, 1), "test" if test else "val"
    total = run.total(epoch)
    scored = evals.Classified(data=read.once(part, batch=min(run.batch, 64)), classes=classes, ordered=ordered)
    groups = {}
    for pattern, rate in (("^image/", encoder_lr * run.batch / 256), ("", run.lr * run.batch / 256)):
        schedule = optim.cosine_schedule(rate, 0, total, min(warmup * epoch, total // 2))
        options = ((0.9, 0.999), 1e-8)
        if preset == "ret_clip":
            schedule, options = optim.constant(rate), (((0.9, 0.98), 1e-8) if pattern else ((0.9, 0.99), 1e-6))
        rule = optim.decay_all if preset in ("visionfm", "ret_clip") else optim.decay_matrices
        groups[pattern] = optim.adamw(schedule, *options, run.weight_decay, rule)
    return Recipe(
        **run.recipe(total, start, log=max(total // 40, 1), save=0, eval=max(total // 10, 1)),
        objective=objective,
        train=mix(turns, **run.loader()) if turns else train(parts.train, steps, **run.loader()),
        optimizer=optax.chain(optim.grouped(groups), optim.layer_decay(depth_decay, getattr(start.image, "depth", 1))),
        evals={part: scored},
        best="val/kappa" if ordered else "val/macro_auc",
        preprocessing=start.preprocessing | {"classes": classes},
    )
