"""python launch.py train configs/multi_modality.py --workdir runs/multi --init runs/visionfm --data fundus.csv oct.csv,modality=OCT

VisionFM's modality-agnostic decoder of thirteen labels, on features of several modalities. They are computed by a single
frozen encoder, or by one for each modality (--init CFP=runs/fundus OCT=runs/oct). CSV files have the thirteen columns of
data_pipelines/tasks/visionfm_labels.py (label=A+B+..., empty=keep for gaps); without --data, the images are synthetic eyes.
Evaluate the test part at the end: launch.py eval runs/multi --part test
"""

import optax

from data_pipelines import MODALITIES, Data, modality_name
from data_pipelines.tasks import visionfm_labels
from data_pipelines.tasks.labelled import FRACTIONS, Reader
from data_pipelines.tasks.visionfm_labels import FINDINGS, GRADES
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim
from fundax.losses.supervised import LAYOUT

PRESETS = {"smoke": {"steps": 3, "patients": 14}}


def recipe(
    *,
    data: Data = Data(patients=700, modalities=("CFP", "FFA", "OCT"), fractions=FRACTIONS),
    run: Run = Run(batch=128, epochs=60, lr=1e-2),
    init: tuple[str, ...] = (),
    checkpoint: str = "",
    size: str = "tiny",
    blocks: int = 4,
    copies: int = 2,
) -> Recipe:
    """VisionFM uses ten copies, batch 8192 and SGD for 100 epochs. The learning rate is for a batch of 256."""
    parts = visionfm_labels.parts(data, run.seed)
    pairs = [word.partition("=") for word in init if "=" in word]
    paths = {MODALITIES.index(modality_name(name)): path for name, _, path in pairs} or (init[0] if init else size)
    start = interop.backbone(paths, checkpoint=checkpoint, blocks=blocks, **run.compute(encoders.ViT)[0])
    objective = objectives.MultiModality(start.backbone, encoders.MLPHead(len(LAYOUT)), given="feature")
    read = Reader(parts, start.preprocessing, ("label", "grade", "answers"), workers=run.workers)
    rows = evals.encoded(objective, start, read, run.seed)
    grades = len(GRADES)
    scored = {"data": evals.once(rows("scored"))}
    graded = {"classes": GRADES, "ordered": True, "label": "grade", "columns": tuple(range(grades))}
    answers = {"classes": FINDINGS, "label": "answers", "columns": tuple(range(grades, len(LAYOUT)))}
    steps = run.steps or max(run.epochs * copies * len(parts.train) // run.batch, 1)
    sgd = optax.chain(optax.trace(0.9), optim.scale_by_rate(optim.cosine_schedule(run.lr * run.batch / 256, 0, steps)))
    return Recipe(
        **run.recipe(steps, start, log=max(steps // 20, 1), save=0, eval=max(steps // 10, 1)),
        objective=objective,
        train=evals.Epochs(rows("train", copies), run.batch, run.seed),
        optimizer=sgd,
        evals={
            f"{parts.name}_grades": evals.Classified(**scored, **graded),
            f"{parts.name}_findings": evals.Classified(**scored, **answers),
        },
        best="val_findings/macro_auc",
        preprocessing=start.preprocessing | {"classes": LAYOUT},
    )
