"""python launch.py train configs/linear_probe.py --workdir runs/probe --init runs/visionfm --data labels.csv,images=photos

Train a linear classifier (or VisionFM's decoder, --head mlp) on features of a frozen encoder, which are computed once.
Without --data, the classes are the conditions of synthetic eyes; without --init, the encoder is random. The checkpoint is
selected on the validation part; evaluate the test part at the end: launch.py eval runs/probe --part test
"""

from typing import Literal

from data_pipelines import Data
from data_pipelines.tasks import labelled
from data_pipelines.tasks.image_text import fingerprint
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim

PRESETS = {"smoke": {"steps": 3, "patients": 28}}


def recipe(
    *,
    data: Data = Data(patients=1400, fractions=labelled.FRACTIONS),
    run: Run = Run(batch=128, epochs=100, lr=1e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(),
    supervision: objectives.Supervision = objectives.Supervision(),
    head: Literal["linear", "mlp"] = "linear",
    feature: encoders.Feature = "token",
    blocks: int = 4,
    copies: int = 1,
    cache: str = "",
) -> Recipe:
    """A linear probe with VisionFM's settings for a single modality. The learning rate is for a batch of 256."""
    parts = labelled.parts(data, data.eyes(run.seed, 128), run.seed)
    fields = {"feature": feature, "blocks": blocks} | run.compute(encoders.ViT)[0]
    start = encoder.open(**fields)
    several, classes = parts.kind()
    if supervision.ordered:
        parts.check_order()
    decoder = encoders.MLPHead(len(classes), 3 if head == "mlp" else 1, norm=head == "mlp")
    weighed = supervision.fields(several, classes, lambda: labelled.labels_of(parts.train))
    objective = objectives.Classify(start.backbone, decoder, given="feature", **weighed)
    read = labelled.Reader(parts, start.preprocessing, workers=run.workers)
    rows = evals.encoded(objective, start, read, run.seed, cache, f"{copies} {fingerprint(data, run.seed)}")
    epoch = max(len(parts.train) * copies // run.batch, 1)
    steps = run.steps or max(run.epochs * copies * len(parts.train) // run.batch, 1)
    rate = optim.cosine_schedule(run.lr * run.batch / 256, 0, steps)
    scored = evals.Classified(data=evals.once(rows("scored")), classes=classes, ordered=supervision.ordered)
    return Recipe(
        **run.recipe(steps, start, log=max(steps // 20, 1), save=0, eval=max(epoch, steps // 20)),
        objective=objective,
        train=evals.Epochs(rows("train", copies), run.batch, run.seed, "label" if supervision.balanced else ""),
        optimizer=optim.freeze(optim.adamw(rate, weight_decay=run.weight_decay, decay=optim.decay_all), "^image/"),
        evals={parts.name: scored},
        best=supervision.best,
        preprocessing=start.preprocessing | {"classes": classes},
    )
