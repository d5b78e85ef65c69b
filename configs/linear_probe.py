"""python launch.py train configs/linear_probe.py --workdir runs/probe --init imagenet --data labels.csv --folds 5

A classifier on the features of a frozen encoder, which are computed once: scikit-learn's logistic regression of standardised
features, a linear layer, or VisionFM's decoder (--head mlp). Without --data it learns the conditions of synthetic eyes,
without --init the encoder is random. The linear layer and the decoder are selected on the validation part; evaluate the test
part at the end: launch.py eval runs/probe --part test
"""

import dataclasses
from typing import Literal

from data_pipelines import Data
from data_pipelines.tasks import labelled
from data_pipelines.tasks.image_text import fingerprint
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim
from fundax.objectives import classify

PRESETS = {"smoke": {"steps": 3, "patients": 28, "head": "linear"}}


def recipe(
    *,
    data: Data = Data(patients=1400, fractions=labelled.FRACTIONS),
    run: Run = Run(batch=128, epochs=100, lr=1e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(),
    look: labelled.Look = labelled.Look(),
    supervision: objectives.Supervision = objectives.Supervision(),
    head: Literal["logistic", "linear", "mlp"] = "logistic",
    strength: float = 0.01,
    feature: encoders.Feature = "token",
    blocks: int = 4,
    copies: int = 1,
    cache: str = "",
) -> Recipe:
    """The linear layer and the decoder have VisionFM's settings; their learning rate is for a batch of 256."""
    exact = head == "logistic"
    parts = labelled.parts(data, data.eyes(run.seed, 128), run.seed, selects=not exact)
    fields = {"feature": feature, "blocks": blocks, "tiles": look.tiles, "tile_pool": look.tile_pool}
    start = encoder.open(**fields, **run.compute(encoders.ViT)[0])
    seen = look.preprocessing(start.preprocessing, data, interop.is_run(encoder.init))
    several, classes = parts.kind()
    if supervision.ordered:
        parts.check_order()
    weighed = supervision.fields(several, classes, lambda: labelled.labels_of(parts.train))
    count = len(parts.train) * copies
    steps, batch = run.steps or max(run.epochs * count // run.batch, 1), run.batch
    rate = optim.cosine_schedule(run.lr * run.batch / 256, 0, steps)
    rule = optim.adamw(rate, weight_decay=run.weight_decay, decay=optim.decay_all)
    if exact:
        weighed["penalty"], rule, enough = classify.logistic(
            start.backbone.width, count, len(classes), several, strength
        )
        steps, batch = run.steps or enough, -(-count // 8) * 8
    layers = {"layers": 3 if head == "mlp" else 1, "norm": head != "linear"}
    decoder = encoders.MLPHead(len(classes), **layers, **({"standardized": True, "epsilon": 1e-12} if exact else {}))
    objective = objectives.Classify(start.backbone, decoder, given="feature", **weighed)
    read = labelled.Reader(parts, seen, workers=run.workers)
    rows = evals.encoded(objective, start, read, run.seed, cache, f"{copies} {fingerprint(data, run.seed)} {seen}")
    train, frozen = rows("train", copies), ("^image/", *(("^head/norm/",) if exact else ()))
    start = dataclasses.replace(
        start, init_extra=(*start.init_extra, *((evals.standardizing(train),) if exact else ()))
    )
    shuffled = evals.Epochs(train, batch, run.seed, "label" if supervision.balanced else "")
    scored = evals.Classified(data=evals.once(rows("scored")), classes=classes, ordered=supervision.ordered)
    every = steps if exact else max(count // run.batch, 1, steps // 20)
    return Recipe(
        **run.recipe(steps, start, log=max(steps // 20, 1), save=0, eval=every) | {"batch": batch},
        objective=objective,
        train=evals.Whole(train, batch) if exact else shuffled,
        optimizer=optim.freeze(rule, *frozen),
        evals={parts.name: scored},
        best=None if exact else supervision.best,
        preprocessing=seen | {"classes": classes},
    )
