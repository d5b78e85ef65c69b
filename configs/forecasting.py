"""python launch.py train configs/forecasting.py --workdir runs/forecasting --init runs/visionfm --data visits.csv,images=photos

Forecast whether an eye will be worse after a number of days, with VisionFM's forecast head. The encoder of --init is frozen
unless --tune full; without --init, a new encoder is trained too. visits.csv has the columns image, patient, day,
label (higher is worse) and eye; every pair of visits is an example. A list in the authors' format has an image and a label
of 0 or 1: --data list.csv,value=days. Evaluate the test part at the end: launch.py eval runs/forecasting --part test
"""

from functools import partial
from typing import Any, Literal

import optax

from data_pipelines import Data, train
from data_pipelines.synthetic.sources import Patients
from data_pipelines.tasks import forecasting
from data_pipelines.tasks.forecasting import KEYS, VisitReader
from data_pipelines.tasks.labelled import FRACTIONS
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim

PRESETS = {"smoke": {"size": "resnet-smoke", "image_size": 32, "steps": 3, "visits_per_patient": 3}}


def recipe(
    *,
    data: Data = Data(patients=700, fractions=FRACTIONS),
    run: Run = Run(batch=64, steps=800, lr=1e-3, weight_decay=0.05),
    encoder: interop.Encoder = interop.Encoder(size="resnet-tiny"),
    visits: int = 1,
    visits_per_patient: int = 4,
    feature: encoders.Feature = "mean",
    positive: float = 1.0,
    copies: int = 2,
    optimizer: Literal["adamw", "sgd"] = "adamw",
) -> Recipe:
    """VisionFM uses SGD 1e-3 with momentum 0.9 for 500 epochs, --positive 10 (1 is calibrated), --feature unnormalized."""
    learns = encoder.trained(run.tune)
    few = ("normal", "mild diabetic retinopathy") if run.smoke else None
    fields: dict[str, Any] = {"visits": visits_per_patient, "one_eye": True, "conditions": few}
    people = Patients(data.patients, run.seed, modalities=data.modalities, size=96, **fields)
    parts = forecasting.questions(data, people, run.seed, visits)
    fields = {"feature": feature, "frozen": not learns} | run.compute(encoders.ViT, encoders.ResNet)[0]
    start = encoder.open(**fields)
    given = "image" if learns else "feature"
    objective = objectives.Forecast(start.backbone, encoders.ForecastHead(), positive, visits, given=given)
    read = VisitReader(parts, start.preprocessing, workers=run.workers)
    rows = partial(evals.encoded(objective, start, read, run.seed), batch=32)
    total = run.total(max(len(parts.train) // run.batch, 1) if not run.steps else 1)
    passes = read.once(parts.scored, batch=8 if run.smoke else 64) if learns else evals.once(rows("scored"))
    rate: Any = optim.cosine_schedule(run.lr, 0, total, total // 20 if learns else 0)
    rule = optax.sgd(rate, momentum=0.9) if optimizer == "sgd" else optim.adamw(rate, weight_decay=run.weight_decay)
    batches = train(parts.train, read.steps(True, KEYS), **run.loader()) if learns else None
    return Recipe(
        **run.recipe(total, start, log=max(total // 40, 1), save=0, eval=max(total // (4 if learns else 8), 1)),
        objective=objective,
        train=batches or evals.Epochs(rows("train", copies), run.batch, run.seed),
        optimizer=rule,
        evals={parts.name: evals.Classified(data=passes, classes=objective.classes, bands=3)},
        best="val/macro_auc",
        preprocessing=start.preprocessing | {"classes": objective.classes},
    )
