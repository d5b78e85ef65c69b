"""python launch.py train configs/linear_probe.py --workdir runs/probe --init imagenet --data labels.csv --folds 5

A classifier on the features of a frozen encoder, which are computed once: scikit-learn's logistic regression, a linear layer
or VisionFM's decoder (--head mlp). Without --data it learns the conditions of synthetic eyes, without --init the encoder is
random. Layer and decoder are selected on the part val; evaluate the test part at the end: launch.py eval RUN --part test
"""

import dataclasses
from typing import Literal

from data_pipelines import Data
from data_pipelines.tasks import labelled
from data_pipelines.tasks.image_text import fingerprint
from fundax import Recipe, Run, encoders, evals, interop, objectives
from fundax.objectives import probing

PRESETS = {"smoke": {"steps": 3, "patients": 28}}


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
    parts = labelled.parts(data, data.eyes(run.seed, 128), run.seed, selects=head != "logistic")
    start = encoder.open(feature=feature, blocks=blocks, **look.tiling, **run.compute(encoders.ViT)[0])
    seen = look.preprocessing(start.preprocessing, data, interop.is_run(encoder.init))
    several, classes = parts.kind()
    if supervision.ordered:
        parts.check_order()
    weighed = supervision.fields(several, classes, lambda: labelled.labels_of(parts.train))
    count = len(parts.train) * copies
    probe = probing.probe(head, run, start.backbone.width, count, len(classes), several, strength)
    weighed |= {"given": "feature", "penalty": probe.penalty, "test_flips": look.test_flips}
    objective = objectives.Classify(start.backbone, probe.head, **weighed)
    read = labelled.Reader(parts, seen, workers=run.workers)
    rows = evals.encoded(objective, start, read, run.seed, cache, f"{copies} {fingerprint(data, run.seed)} {seen}")
    train = rows("train", copies)
    start = dataclasses.replace(start, init_extra=(*start.init_extra, *probe.init_extra(train)))
    scored = evals.Classified(data=evals.once(rows("scored")), classes=classes, ordered=supervision.ordered)
    every = probe.steps if probe.exact else max(count // run.batch, 1, probe.steps // 20)
    fields = run.recipe(probe.steps, start, log=max(probe.steps // 20, 1), save=0, eval=every)
    fields["batch"] = probe.batch
    return Recipe(
        **fields,
        objective=objective,
        train=evals.passes(probe.exact, train, probe.batch, run.seed, "label" if supervision.balanced else ""),
        optimizer=probe.rule,
        evals={parts.name: scored},
        best=None if probe.exact else supervision.best,
        preprocessing=seen | {"classes": classes},
    )
