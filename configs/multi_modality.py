"""python launch.py train configs/multi_modality.py --workdir runs/multi --init runs/visionfm --data fundus.csv oct.csv,modality=OCT

VisionFM's modality-agnostic decoder: features of several modalities, by one frozen encoder or one for each (--init
CFP=runs/fundus OCT=runs/oct), pooled into one decoder of thirteen answers. A CSV has the thirteen columns of
data_pipelines/tasks/visionfm_labels.py (label=A+B+..., empty=keep for gaps); without --data: synthetic eyes of three modalities.
The test part once, afterwards: python launch.py eval runs/multi --checkpoint best --test
"""

from __future__ import annotations

import optax

from data_pipelines.pipeline import one_epoch
from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.labelled import NAMES, Parts, Picture, flips, parts, repeated, synthetic_parts
from data_pipelines.tasks.visionfm_labels import FINDINGS, GRADES, Pooled, Thirteen
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.encoders.heads import MLPHead
from fundax.evals import features
from fundax.evals.features import Epochs, Frozen
from fundax.evals.supervised import Classified
from fundax.interop.start import Start, encoder, several
from fundax.losses.supervised import LAYOUT
from fundax.objectives.classify import MultiModality
from fundax.optim import cosine_schedule, freeze, scale_by_rate
from fundax.recipe import Intervals, Recipe

TARGETS = ("label", "grade", "answers")
BESIDE = (*TARGETS, "modality", "eye", "group", "picture", "index")


def recipe(
    *,
    init: tuple[str, ...] = (),
    size: str = "tiny",
    data: tuple[str, ...] = (),
    seed: int = 0,
    blocks: int = 4,
    copies: int = 2,
    batch: int = 128,
    epochs: int = 60,
    lr: float = 1e-2,
    patients: int = 700,
    workers: int = 0,
    test: bool = False,
    smoke: bool = False,
) -> Recipe:
    """VisionFM's: ten augmented copies, SGD 1e-3 for 256 images in a step with momentum 0.9, 100 epochs, batch 8192.

    Args:
        init: a run or an import, or one for each modality: NAME=RUN NAME=RUN.
        size: of a fresh encoder: tiny, small, or a size of encoders/vit.py.
        data: sources with thirteen labels each; every source is split by patient, 70, 15 and 15 %.
        seed: of everything random.
        blocks: last blocks whose class tokens are read.
        copies: augmented copies of each training image.
        batch: images in a step.
        epochs: over the training part.
        lr: peak learning rate for 256 images in a step.
        patients: synthetic ones of each modality to learn from; a quarter as many in validation and test.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        smoke: three steps of almost nothing.
    """
    patients, batch, size, copies = (14, 8, "smoke", 1) if smoke else (patients, batch, size, copies)
    found = pooled(data, seed, patients)
    start = started(init, size, blocks)
    objective = MultiModality(start.tower, MLPHead(len(LAYOUT)), given="feature")
    source = Frozen(objective, start.init_from, seed, init_extra=start.init_extra)

    def rows(name: str, count: int = 1) -> features.Read:
        part = repeated(Thirteen(getattr(found, name)), count)
        first = Grouped(SingleView(size_hint=2 * start.tower.image.image_size, text=None, targets=TARGETS))
        moved = flips() if count > 1 else ()
        steps = (first, Picture(), *moved, eval_step(start.facts), Select(("image", *BESIDE[:-1])))
        return source.rows(one_epoch(part, steps, batch=64, workers=workers), BESIDE)

    part = "test" if test else "val"
    scored = features.one_epoch(rows(part))
    graded = Classified(data=scored, classes=GRADES, ordered=True, label="grade", columns=tuple(range(len(GRADES))))
    columns = tuple(range(len(GRADES), len(LAYOUT)))
    answers = Classified(data=scored, classes=FINDINGS, label="answers", columns=columns)
    total = 3 if smoke else max(epochs * copies * len(found.train) // batch, 1)
    chain = optax.chain(optax.trace(0.9), scale_by_rate(cosine_schedule(lr * batch / 256, 0, total)))
    return Recipe(
        objective=objective,
        train=Epochs(rows("train", copies), batch, seed),
        optimizer=freeze(chain, "^image/"),
        steps=total,
        batch=batch,
        evals={f"{part}_grades": graded, f"{part}_findings": answers},
        init_from=start.init_from,
        init_extra=start.init_extra,
        intervals=Intervals(log=max(total // 20, 1), save=0, eval=max(total // 10, 1)),
        best="val_findings/macro_auc",
        seed=seed,
        preprocessing=start.facts | {"classes": LAYOUT},
    )


def pooled(data: tuple[str, ...], seed: int, patients: int) -> Parts:
    """The parts of every source one after the other: no patient of a source is in two."""
    if data:
        each = [parts(word, "", seed) for word in data]
    else:
        each = [synthetic_parts(Eyes(patients, seed, modalities=(name,), size=96)) for name in ("CFP", "FFA", "OCT")]
    return Parts(*(Pooled(tuple(getattr(one, name) for one in each), each[0].classes) for name in NAMES))


def started(init: tuple[str, ...], size: str, blocks: int) -> Start:
    """One encoder of all modalities, or one for each."""
    if not any("=" in word for word in init):
        return encoder(*init, size=size, blocks=blocks)
    pairs = (word.split("=", 1) for word in init)
    return several({MODALITIES.index(modality_name(name)): run for name, run in pairs}, size=size, blocks=blocks)
