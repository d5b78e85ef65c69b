"""python launch.py train configs/forecasting.py --workdir runs/forecasting --init runs/visionfm --data visits.csv,images=photos

Will this eye be worse after so many days? VisionFM's forecast head on a frozen encoder, whose features are taken once.
`visits.csv` has image, patient, day, label (the state: higher is worse) and eye; each pair of visits is a question. Or
the authors' list, image and label of 0 and 1: --data list.csv,value=days. Without --data: visits of synthetic patients.
The test part once, afterwards: python launch.py eval runs/forecasting --checkpoint best --test
"""

from __future__ import annotations

from typing import Any

import optax

from data_pipelines.followups import Followups, Listed, Visits, single
from data_pipelines.labelled import Parts, Picture, flips, parts, repeated, synthetic_parts
from data_pipelines.pipeline import once
from data_pipelines.synthetic import Patients
from data_pipelines.transforms import Keep, eval_step
from data_pipelines.views import Grouped
from fundax import feature_rows
from fundax.encoders.decoder_heads import ForecastHead
from fundax.evals.supervised import Classified
from fundax.feature_rows import Epochs, Frozen
from fundax.objectives.forecast import Forecast
from fundax.optim import adamw, annealed, frozen
from fundax.recipe import Every, Recipe
from fundax.start import encoder
from fundax.tower import Feature

BESIDE = ("label", "days", "present", "horizon", "modality", "eye", "group", "picture", "index")


def recipe(
    *,
    init: str = "",
    size: str = "tiny",
    data: str = "",
    split: str = "",
    visits: int = 1,
    feature: Feature = "mean",
    positive: float = 10.0,
    copies: int = 2,
    batch: int = 128,
    epochs: int = 100,
    lr: float = 1e-2,
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
        size: of a fresh encoder: tiny, small, or a size of encoders/vit.py.
        data: visits (columns patient, day, label), or with value=COLUMN the authors' list of intervals.
        split: file that holds who is in which part; written at the first use, read afterwards.
        visits: how many of an eye's latest images are looked at.
        feature: mean (of the patches, normalised) or unnormalized (what the authors' code computes).
        positive: weight of eyes that progress; 1 keeps probabilities honest.
        copies: augmented copies of each training question.
        batch: questions in a step.
        epochs: over the training part.
        lr: peak learning rate.
        optimizer: adamw, or sgd (the authors').
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        seen: visits of each synthetic patient.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps of almost nothing.
    """
    patients, batch, size, seen, copies = (16, 4, "smoke", 3, 1) if smoke else (patients, batch, size, seen, copies)
    drawn = ("normal", "mild diabetic retinopathy") if smoke else None
    people = Patients(patients, seed, size=96, visits=seen, one_eye=True, conditions=drawn)
    found = questions(data, split, seed, visits, people)
    start = encoder(init, size=size, feature=feature)
    objective = Forecast(start.tower, ForecastHead(), positive, visits, given="feature")
    source = Frozen(objective, start.init_from, seed, init_extra=start.init_extra)

    def rows(name: str, count: int = 1) -> feature_rows.Read:
        first = Grouped(single(2 * start.tower.image.image_size))
        steps = (Picture(), *(flips() if count > 1 else ()), eval_step(start.facts))
        read = once(
            repeated(getattr(found, name), count),
            (Visits(first, steps), Keep(("image", *BESIDE[:-1]))),
            batch=32,
            workers=workers,
        )
        return source.rows(read, BESIDE)

    train = rows("train", copies)
    part = "test" if test else "val"
    total = 3 if smoke else epochs * 20  # the number of questions is known when they are read
    schedule: Any = annealed(lr, 0, total)
    chain = optax.sgd(schedule, momentum=0.9) if optimizer == "sgd" else adamw(schedule, weight_decay=0.01)
    scored = Classified(
        data=feature_rows.once(rows(part)), classes=objective.classes, inputs=("feature", "days", "present"), bands=3
    )
    return Recipe(
        objective=objective,
        train=Epochs(train, batch, seed),
        optimizer=frozen(chain, "^image/"),
        steps=total,
        batch=batch,
        evals={part: scored},
        init_from=start.init_from,
        init_extra=start.init_extra,
        every=Every(log=max(total // 20, 1), save=0, eval=max(total // 10, 1)),
        best="val/macro_auc",
        seed=seed,
        preprocessing=start.facts | {"classes": objective.classes},
    )


def questions(data: str, split: str, seed: int, visits: int, patients: Patients) -> Parts:
    """The parts, by patient, each as pairs of visits (or as the rows of a list)."""
    found = parts(data, split, seed) if data else synthetic_parts(patients)
    listed = "value" in found.train[0].targets and "value=" in data
    return Parts(*(Listed(one) if listed else Followups(one, visits) for one in (found.train, found.val, found.test)))
