"""python launch.py train configs/linear_probe.py --workdir runs/probe --init runs/visionfm --data labels.csv,images=photos

A linear classifier (or VisionFM's decoder, --head mlp) on the features of a frozen encoder, which are computed once. Without
--data it learns the conditions of synthetic eyes, without --init the encoder is random. The checkpoint is selected on the
validation part; evaluate the test part at the end: launch.py eval runs/probe --part test
"""

from functools import partial
from typing import Literal

from data_pipelines.open import Data
from data_pipelines.tasks import labelled
from data_pipelines.tasks.image_text import fingerprint
from fundax import encoders, evals, interop, objectives, optim
from fundax.encoders.backbone import Feature
from fundax.evals import features
from fundax.losses.supervised import inverse_frequencies
from fundax.recipe import Recipe, Run

PRESETS = {"smoke": {"steps": 3, "patients": 28}}


def recipe(
    *,
    data: Data = Data(patients=1400, fractions=labelled.FRACTIONS),
    run: Run = Run(batch=128, epochs=100, lr=1e-3, weight_decay=0.05),
    init: str = "",
    checkpoint: str = "",
    size: str = "tiny",
    head: Literal["linear", "mlp"] = "linear",
    feature: Feature = "token",
    blocks: int = 4,
    copies: int = 1,
    smoothing: float = 0.0,
    focal: float = 0.0,
    weights: Literal["equal", "balanced"] = "equal",
    balanced: bool = False,
    ordered: bool = False,
    cache: str = "",
) -> Recipe:
    """VisionFM's settings for the decoder of one modality; the learning rate is for a batch of 256."""
    parts = labelled.parts(data, data.eyes(run.seed, 128), run.seed)
    fields = {"feature": feature, "blocks": blocks} | run.compute(encoders.ViT)[0]
    start = interop.backbone(init or size, checkpoint=checkpoint, **fields)
    several, classes = parts.kind()
    if ordered:
        parts.check_order()
    objective = objectives.Classify(
        start.backbone, encoders.MLPHead(len(classes), 3 if head == "mlp" else 1, norm=head == "mlp"), given="feature",
        kind="several" if several else "single", classes=classes, focal=focal, smoothing=smoothing,
        weights=inverse_frequencies(labelled.labels_of(parts.train), len(classes)) if weights == "balanced" else (),
    )  # fmt: skip
    frozen = evals.Frozen(objective, start.init_from, run.seed, cache, start.init_extra)
    read = labelled.Reader(parts, start.preprocessing, workers=run.workers)
    origin = f"{copies} {fingerprint(data, run.seed)}"
    rows = partial(frozen.part, read, fingerprint=origin)
    epoch = max(len(parts.train) * copies // run.batch, 1)
    steps = run.steps or max(run.epochs * copies * len(parts.train) // run.batch, 1)
    rate = optim.cosine_schedule(run.lr * run.batch / 256, 0, steps)
    scored = evals.Classified(data=features.one_epoch(rows("scored")), classes=classes, ordered=ordered)
    return Recipe(
        **run.recipe(steps, start, log=max(steps // 20, 1), save=0, eval=max(epoch, steps // 20)),
        objective=objective,
        train=evals.Epochs(rows("train", copies), run.batch, run.seed, "label" if balanced else ""),
        optimizer=optim.freeze(optim.adamw(rate, weight_decay=run.weight_decay, decay=optim.decay_all), "^image/"),
        evals={parts.name: scored},
        best="val/kappa" if ordered else "val/macro_auc",
        preprocessing=start.preprocessing | {"classes": classes},
    )
