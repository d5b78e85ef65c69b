"""python launch.py train configs/forecasting.py --workdir runs/forecasting --init runs/visionfm --data visits.csv,images=photos

Will this eye be worse after so many days? VisionFM's forecast head: on the encoder of --init, which stays frozen unless
--train-encoder True, or on a fresh one that learns with it (the default; some minutes on two CPU cores).
`visits.csv` has image, patient, day, label (the state: higher is worse) and eye; each pair of visits is a question. Or
the authors' list, image and label of 0 and 1: --data list.csv,value=days. Without --data: visits of synthetic patients.
The test part once, afterwards: python launch.py eval runs/forecasting --checkpoint best --test
"""

from __future__ import annotations

from typing import Any

import optax

from data_pipelines.pipeline import one_epoch, train
from data_pipelines.synthetic.sources import Patients
from data_pipelines.tasks.forecasting import Followups, Listed, Visits, single
from data_pipelines.tasks.labelled import Parts, Picture, flips, parts, repeated, synthetic_parts
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped
from fundax.encoders.backbone import Feature
from fundax.encoders.heads import ForecastHead
from fundax.evals import features
from fundax.evals.features import Epochs, Frozen
from fundax.evals.supervised import Classified
from fundax.interop.start import convolutional, encoder
from fundax.objectives.forecast import Forecast
from fundax.optim import adamw, cosine_schedule, freeze
from fundax.recipe import Intervals, Recipe

BESIDE = ("label", "days", "present", "horizon", "modality", "eye", "group", "picture", "index")


def recipe(
    *,
    init: str = "",
    size: str = "resnet",
    data: str = "",
    split: str = "",
    visits: int = 1,
    train_encoder: bool | None = None,
    feature: Feature | None = None,
    positive: float = 1.0,
    copies: int = 2,
    batch: int = 64,
    steps: int = 800,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    patients: int = 700,
    seen: int = 4,
    workers: int = 0,
    test: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's: SGD 1e-3 with momentum 0.9 for 500 epochs, positives weighing 10, features without the final norm.

    Args:
        init: a run, or an import of other weights, whose encoder is read.
        size: of a fresh encoder: resnet (a small one), tiny, small, or a size of encoders/vit.py.
        data: visits (columns patient, day, label), or with value=COLUMN the authors' list of intervals.
        split: file that holds who is in which part; written at the first use, read afterwards.
        visits: how many of an eye's latest images are looked at.
        train_encoder: the encoder learns too; by default a fresh one does, and that of --init does not.
        feature: mean (of the patches, normalised; pooled of a resnet) or unnormalized (what the authors' code computes).
        positive: weight of eyes that progress; the authors' is 10, and 1 keeps probabilities honest.
        copies: augmented copies of each training question on a frozen encoder.
        batch: questions in a step.
        steps: of training.
        lr: peak learning rate.
        optimizer: adamw, or sgd (the authors').
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        seen: visits of each synthetic patient.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps of almost nothing.
    """
    learns = not init if train_encoder is None else train_encoder
    patients, batch, seen, copies = (16, 8, 3, 1) if smoke else (patients, batch, seen, copies)
    drawn = ("normal", "mild diabetic retinopathy") if smoke else None
    people = Patients(patients, seed, size=96, visits=seen, one_eye=True, conditions=drawn)
    found = questions(data, split, seed, visits, people)
    resnet = size == "resnet" and not init
    fields: dict[str, Any] = {"feature": feature or ("pooled" if resnet else "mean"), "frozen": not learns}
    shape: tuple[Any, ...] = (32, 8, (1,)) if smoke else (96,)
    start = convolutional(*shape, **fields) if resnet else encoder(init, size=size, **fields)
    objective = Forecast(start.tower, ForecastHead(), positive, visits, given="image" if learns else "feature")
    source = Frozen(objective, start.init_from, seed, init_extra=start.init_extra)
    first = Grouped(single(2 * start.tower.image.image_size))

    def read(moved: bool, *keys: str) -> tuple[Any, ...]:
        steps = (Picture(), *(flips() if moved else ()), eval_step(start.facts))
        return Visits(first, steps), Select(("image", *keys))

    def rows(name: str, count: int = 1) -> features.Read:
        chain = read(count > 1, *BESIDE[:-1])
        return source.rows(one_epoch(repeated(getattr(found, name), count), chain, batch=32, workers=workers), BESIDE)

    part, total = "test" if test else "val", 3 if smoke else steps
    schedule: Any = cosine_schedule(lr, 0, total, total // 20 if learns else 0)
    chain = optax.sgd(schedule, momentum=0.9) if optimizer == "sgd" else adamw(schedule, weight_decay=0.05)
    images = one_epoch(getattr(found, part), read(False, *BESIDE[:-1]), batch=8 if smoke else 64, workers=workers)
    scored = Classified(data=images if learns else features.one_epoch(rows(part)), classes=objective.classes, bands=3)
    given = train(
        found.train, read(True, "label", "days", "present", "modality"), batch=batch, seed=seed, workers=workers
    )
    return Recipe(
        objective=objective,
        train=given if learns else Epochs(rows("train", copies), batch, seed),
        optimizer=chain if learns else freeze(chain, "^image/"),
        steps=total,
        batch=batch,
        evals={part: scored},
        init_from=start.init_from,
        init_extra=start.init_extra,
        intervals=Intervals(log=max(total // 40, 1), save=0, eval=max(total // (4 if learns else 8), 1)),
        best="val/macro_auc",
        seed=seed,
        preprocessing=start.facts | {"classes": objective.classes},
    )


def questions(data: str, split: str, seed: int, visits: int, patients: Patients) -> Parts:
    """The parts, by patient, each as pairs of visits (or as the rows of a list)."""
    found = parts(data, split, seed) if data else synthetic_parts(patients, 0.5 if patients.n < 20 else 0.25)
    listed = "value" in found.train[0].targets and "value=" in data
    return Parts(*(Listed(one) if listed else Followups(one, visits) for one in (found.train, found.val, found.test)))
