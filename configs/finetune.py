"""python launch.py train configs/finetune.py --workdir runs/finetune --init runs/visionfm --data labels.csv,images=photos

An encoder and a classifier trained together, by the published recipe of --preset visionfm, retfound or ret_clip, or with
settings for two CPU cores (laptop, the default). Without --data it learns the conditions of synthetic eyes. Selection is
on validation; the test part once, afterwards: python launch.py eval runs/finetune --checkpoint best --test
"""

from __future__ import annotations

from typing import Any, Literal

import optax

from data_pipelines.pipeline import mix, one_epoch, train
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.labelled import FlipRows, Picture, by_class, labels_of, parts, synthetic_parts
from data_pipelines.transforms import steps as t
from data_pipelines.transforms.steps import Select, Step, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.encoders.heads import MLPHead
from fundax.evals.supervised import Classified
from fundax.interop.start import encoder
from fundax.losses.supervised import inverse_frequencies
from fundax.objectives.classify import Classify
from fundax.optim import adamw, constant, cosine_schedule, decay_matrices, grouped, layer_decay
from fundax.recipe import Intervals, Recipe

# What --preset stands for; an argument that is given wins. lr, encoder_lr: for 256 images in a step (ret_clip: as they are).
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "batch": 32, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3, "decay": 0.05, "all_decay": False, "warmup": 2, "blocks": 4,
        "feature": "token", "layers": 1, "norm": True, "drop_path": 0.1, "smoothing": 0.1, "layer_decay": 0.75,
        "augment": "mild", "betas": (0.9, 0.999), "peer_softmax": False,
    },
    "visionfm": {
        "batch": 128, "epochs": 100, "lr": 1e-3, "encoder_lr": 1e-4, "decay": 0.05, "all_decay": True, "warmup": 0, "blocks": 4,
        "feature": "token", "layers": 3, "norm": True, "drop_path": 0.0, "smoothing": 0.0, "layer_decay": 1.0,
        "augment": "visionfm", "betas": (0.9, 0.999), "peer_softmax": False,
    },
    "retfound": {
        "batch": 16, "epochs": 50, "lr": 5e-3, "encoder_lr": 5e-3, "decay": 0.05, "all_decay": False, "warmup": 10, "blocks": 1,
        "feature": "mean", "layers": 1, "norm": False, "drop_path": 0.2, "smoothing": 0.1, "layer_decay": 0.65,
        "augment": "retfound", "betas": (0.9, 0.999), "peer_softmax": False,
    },
    "ret_clip": {
        "batch": 16, "epochs": 50, "lr": 1.6e-2, "encoder_lr": 3.2e-5, "decay": 0.01, "all_decay": True, "warmup": 0, "blocks": 1,
        "feature": "pooled", "layers": 1, "norm": False, "drop_path": 0.0, "smoothing": 0.1, "layer_decay": 1.0,
        "augment": "ret_clip", "betas": (0.9, 0.98), "peer_softmax": True,
    },
}  # fmt: skip


def recipe(
    *,
    preset: Literal["laptop", "visionfm", "retfound", "ret_clip"] = "laptop",
    init: str = "",
    size: str = "tiny",
    data: str = "",
    split: str = "",
    ordered: bool = False,
    batch: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    encoder_lr: float | None = None,
    layer_decay_rate: float | None = None,
    drop_path: float | None = None,
    smoothing: float | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    weights: Literal["none", "balanced"] = "none",
    balanced: bool = False,
    focal: float = 0.0,
    patients: int = 1400,
    workers: int = 0,
    dtype: str = "float32",
    test: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """Published: VisionFM (100 epochs, encoder at a tenth of the rate), RETFound (layer decay 0.65), RET-CLIP's later scripts.

    Args:
        preset: whose values (docs/downstream.md says what of theirs is left out).
        init: a run, or an import of other weights (launch.py import), whose encoder to start from.
        size: of a fresh encoder: tiny, small, or a size of encoders/vit.py.
        data: one labelled source, or a folder train|val|test/<class>/; label=A+B+C are several findings at once.
        split: file that holds who is in which part; written at the first use, read afterwards.
        ordered: classes are grades; quadratic kappa is reported, and chooses the best step.
        batch: images in a step.
        epochs: over the training part.
        lr: peak learning rate of the classifier for 256 images in a step.
        encoder_lr: that of the encoder.
        layer_decay_rate: of the encoder's rates, from the last block down.
        drop_path: of the last block.
        smoothing: of labels.
        mixup: its alpha.
        cutmix: its alpha; with mixup, each every other time.
        weights: of classes in the loss: none, or by inverse frequency.
        balanced: classes take turns in training.
        focal: gamma of the focal loss.
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        workers: processes that read and augment.
        dtype: of the encoder's products.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps of almost nothing.
    """
    given = {"batch": batch, "epochs": epochs, "lr": lr, "encoder_lr": encoder_lr, "layer_decay": layer_decay_rate}
    given |= {"drop_path": drop_path, "smoothing": smoothing}
    use: dict[str, Any] = PRESETS[preset] | {k: v for k, v in given.items() if v is not None}
    patients, size, use = (16, "smoke", use | {"batch": 8}) if smoke else (patients, size, use)
    found = parts(data, split, seed) if data else synthetic_parts(Eyes(patients, seed, size=96))
    start = encoder(
        init,
        size=size,
        feature=use["feature"],
        blocks=use["blocks"],
        frozen=False,
        drop_path=use["drop_path"],
        dtype=dtype,
    )
    several, classes = found.kind()
    counted = inverse_frequencies(labels_of(found.train), len(classes)) if weights == "balanced" else ()
    objective = Classify(
        start.tower, MLPHead(len(classes), use["layers"], norm=use["norm"]), kind="several" if several else "single",
        classes=classes, weights=counted, focal=focal, smoothing=use["smoothing"], mixup=mixup, cutmix=cutmix,
        peer_softmax=use["peer_softmax"],
    )  # fmt: skip
    side = start.tower.image.image_size
    first, resize = Grouped(SingleView(size_hint=2 * side, text=None)), eval_step(start.facts)
    steps = (first, *augmentation(use["augment"], side), Select(("image", "label", "modality")))
    reading = {"batch": use["batch"], "seed": seed, "workers": workers}
    turns = [(part, steps, 1.0) for part in by_class(found.train, len(classes))] if balanced else []
    part = "test" if test else "val"
    plain = (first, Picture(), resize, Select(("image", "label", "modality", "eye", "group", "picture")))
    scored = one_epoch(found.test if test else found.val, plain, batch=min(use["batch"], 64), workers=workers)
    epoch = max(len(found.train) // use["batch"], 1)
    total = 3 if smoke else use["epochs"] * epoch
    return Recipe(
        objective=objective,
        train=mix(turns, **reading) if turns else train(found.train, steps, **reading),
        optimizer=optimizer(use, total, 0 if smoke else use["warmup"] * epoch, getattr(start.tower.image, "depth", 1)),
        steps=total,
        batch=use["batch"],
        evals={part: Classified(data=scored, classes=classes, ordered=ordered)},
        init_from=start.init_from,
        init_extra=start.init_extra,
        intervals=Intervals(log=max(total // 40, 1), save=0, eval=max(total // 10, 1)),
        best="val/kappa" if ordered else "val/macro_auc",
        seed=seed,
        preprocessing=start.facts | {"classes": classes},
    )


def augmentation(name: Any, side: int) -> tuple[Step, ...]:
    """Of each recipe; RETFound's RandAugment is left out."""
    flip, jitter = t.IndependentFlip(), t.ColorJitter(0.1, 0.1, 0.0)
    if name == "ret_clip":
        crop = t.RandomResizedCrop(side, (0.8, 1.0), (0.9, 1.1))
        return t.Squash(side), t.RandomAffine(30.0), crop, flip, jitter, t.RandomErasing(0.2)
    if name == "retfound":
        return t.RandomResizedCrop(side, (0.08, 1.0)), flip, t.RandomErasing(0.25)
    if name == "visionfm":
        return t.RandomResizedCrop(side, (0.08, 1.0), interpolation="bilinear"), flip, FlipRows()
    return t.RandomAffine(20.0), t.RandomResizedCrop(side, (0.7, 1.0)), flip, FlipRows(), jitter


def optimizer(use: dict[str, Any], steps: int, warmup: int, depth: int) -> optax.GradientTransformation:
    """AdamW with a rate for the encoder and one for the classifier; RET-CLIP's are constant, the others fall to 0."""
    peaks = {"^image/": use["encoder_lr"] * use["batch"] / 256, "": use["lr"] * use["batch"] / 256}
    rule = (lambda path, leaf: True) if use["all_decay"] else decay_matrices
    level = use["augment"] == "ret_clip"
    chains = {}
    for pattern, peak in peaks.items():
        schedule = constant(peak) if level else cosine_schedule(peak, 0, steps, min(warmup, steps // 2))
        betas, eps = (use["betas"], 1e-8) if pattern else (((0.9, 0.99), 1e-6) if level else (use["betas"], 1e-8))
        chains[pattern] = adamw(schedule, betas, eps, use["decay"], rule)
    return optax.chain(grouped(chains), layer_decay(use["layer_decay"], depth))
