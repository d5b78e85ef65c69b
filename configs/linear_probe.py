"""python launch.py train configs/linear_probe.py --workdir runs/probe --init runs/visionfm --data labels.csv,images=photos

A linear layer (or VisionFM's decoder, --head mlp) on the features of a frozen encoder, which are taken once. Without
--data it learns the conditions of synthetic eyes, without --init the encoder is a random one. Selection is on validation
(VisionFM's and RET-CLIP's scripts choose on the test set); the test part is scored once, after that:
python launch.py eval runs/probe --checkpoint best --test
"""

from __future__ import annotations

from typing import Literal

from data_pipelines.pipeline import one_epoch
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.labelled import Picture, flips, labels_of, parts, repeated, synthetic_parts
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.encoders.backbone import Feature
from fundax.encoders.heads import MLPHead
from fundax.evals import features
from fundax.evals.features import Epochs, Frozen
from fundax.evals.supervised import Classified
from fundax.interop.start import encoder
from fundax.losses.supervised import inverse_frequencies
from fundax.objectives.classify import Classify
from fundax.optim import adamw, cosine_schedule, freeze
from fundax.recipe import Intervals, Recipe

BESIDE = ("label", "modality", "eye", "group", "picture")


def recipe(
    *,
    init: str = "",
    size: str = "tiny",
    data: str = "",
    split: str = "",
    ordered: bool = False,
    head: Literal["linear", "mlp"] = "linear",
    feature: Feature = "token",
    blocks: int = 4,
    copies: int = 1,
    weights: Literal["none", "balanced"] = "none",
    balanced: bool = False,
    focal: float = 0.0,
    smoothing: float = 0.0,
    batch: int = 128,
    epochs: int = 100,
    lr: float = 1e-3,
    decay: float = 0.05,
    patients: int = 1400,
    cache: str = "",
    workers: int = 0,
    test: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's values for a decoder of one modality; `--head linear` is what its paper calls linear probing.

    Args:
        init: a run, or an import of other weights (launch.py import), whose encoder is probed.
        size: of a fresh encoder: tiny, small, or a size of encoders/vit.py.
        data: one labelled source (data_pipelines/open.py); label=A+B+C are several findings at once.
        split: file that holds who is in which part; written at the first use, read afterwards. Cite its digest.
        ordered: classes are grades; quadratic kappa is reported, and chooses the best step.
        head: linear, or mlp: batch norm and three layers.
        feature: token, mean, unnormalized, token_mean or pooled (fundax/encoders/backbone.py).
        blocks: last blocks whose class tokens are read.
        copies: augmented copies of each training image; 1 takes the images as they are, without augmentation.
        weights: of classes in the loss: none, or by inverse frequency.
        balanced: classes take turns in training.
        focal: gamma of the focal loss.
        smoothing: of labels.
        batch: images in a step.
        epochs: over the training part.
        lr: peak learning rate for 256 images in a step.
        decay: weight decay, of everything.
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        cache: folder that keeps features of synthetic eyes.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps of almost nothing.
    """
    patients, batch, size = (28, 8, "smoke") if smoke else (patients, batch, size)
    found = parts(data, split, seed) if data else synthetic_parts(Eyes(patients, seed, size=128))
    start = encoder(init, size=size, feature=feature, blocks=blocks)
    several, classes = found.kind()
    counted = inverse_frequencies(labels_of(found.train), len(classes)) if weights == "balanced" else ()
    objective = Classify(
        start.tower, MLPHead(len(classes), 3 if head == "mlp" else 1, norm=head == "mlp"),
        kind="several" if several else "single", classes=classes, weights=counted, focal=focal, smoothing=smoothing,
        given="feature",
    )  # fmt: skip
    source = Frozen(objective, start.init_from, seed, cache, start.init_extra)
    first = (Grouped(SingleView(size_hint=2 * start.tower.image.image_size, text=None)), Picture())
    resize, keep = eval_step(start.facts), Select(("image", *BESIDE))
    plain, changed = (*first, resize, keep), (*first, *flips(), resize, keep)
    told = "" if data else f"synthetic {patients} {seed} {copies}"

    def rows(name: str, count: int = 1) -> features.Read:
        part, steps = repeated(getattr(found, name), count), changed if count > 1 else plain
        return source.rows(
            one_epoch(part, steps, batch=64, workers=workers), (*BESIDE, "index"), told and f"{name} {told}"
        )

    steps = 3 if smoke else max(epochs * copies * len(found.train) // batch, 1)
    epoch = max(len(found.train) * copies // batch, 1)
    chain = adamw(cosine_schedule(lr * batch / 256, 0, steps), weight_decay=decay, decay=lambda path, leaf: True)
    part = "test" if test else "val"
    scored = Classified(data=features.one_epoch(rows(part)), classes=classes, ordered=ordered)
    return Recipe(
        objective=objective,
        train=Epochs(rows("train", copies), batch, seed, "label" if balanced else ""),
        optimizer=freeze(chain, "^image/"),
        steps=steps,
        batch=batch,
        evals={part: scored},
        init_from=start.init_from,
        init_extra=start.init_extra,
        intervals=Intervals(log=max(steps // 20, 1), save=0, eval=max(epoch, steps // 20)),
        best="val/kappa" if ordered else "val/macro_auc",
        seed=seed,
        preprocessing=start.facts | {"classes": classes},
    )
