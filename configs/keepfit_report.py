"""python launch.py train configs/keepfit_report.py --workdir runs/report --data reports.csv --init flair_resnet.pth

Report generation, as in the FFA branch of KeepFIT: ResNet-50 at 224 pixels, a transformer of 3 + 3 layers, 90 words, beam
search. Without --data, it is trained on synthetic angiograms and photographs. --preset laptop is a small model that also
predicts the findings of an image (docs/methods/reports.md).
"""

from typing import Literal

from data_pipelines import Data, joined, one_epoch, synthetic_parts, train
from data_pipelines.language import CONDITIONS, FINDINGS, tokenizers
from data_pipelines.language.findings import TellFindings, vocabulary
from data_pipelines.tasks.image_text import Reference, report_cut_texts
from data_pipelines.transforms import ColorJitter, Flip, RandomResizedCrop, Select, SingleView, Squash, Tokenize
from fundax import Recipe, Run, encoders, evals, interop, optim
from fundax.objectives.report import amsgrad, report

LAPTOP = {"size": "tiny", "epochs": 4, "lr": 2e-3, "context": 64, "beams": 1, "patients": 6000, "workers": 0}
LAPTOP |= {"findings": True, "augment": "jitter", "weight_decay": 0.05}
PRESETS = {"laptop": LAPTOP, "smoke": {"findings": True}}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    data: Data = Data(patients=20_000, modalities=("FFA", "CFP")),
    run: Run = Run(batch=64, epochs=15, workers=4, lr=1e-4, weight_decay=5e-5),
    size: str = "base",
    image_size: int = 0,
    init: str = "",
    tokenizer: str = "",
    context: int = 90,
    beams: int = 3,
    language: Literal["en", "zh", "both"] = "en",
    findings: bool = False,
    augment: Literal["published", "jitter"] = "published",
) -> Recipe:
    """The published preset has AMSGrad with L2 regularisation, half the learning rate for the encoder, and clipping at 0.1."""
    words = interop.tokenizer(tokenizer, tokenizers.bundled(context + 1), context + 1)
    known = vocabulary()
    names = tuple(sorted(known.reported)) if data.data else (*FINDINGS, *CONDITIONS[1:])
    model = {"image_size": image_size, "beams": beams, "findings": len(names) if findings else 0}
    objective = report(size, words, **model, **run.compute(encoders.ResNet, encoders.ReportDecoder)[0])
    side = objective.image.image_size
    eyes = data.eyes(run.seed, side, language=language)
    parts = data.parts(synthetic_parts(eyes, keep=not run.workers, val=min(data.patients, 420)), run.seed)
    source, test = joined(parts["train"]), joined(data.held_out(parts))
    see = (Squash(256), RandomResizedCrop(side, (0.7, 1.0))) if augment == "published" else (Squash(side),)
    tell, keys = ((TellFindings(names),), ("findings",)) if findings else ((), ())
    learn = (SingleView(), Flip(), *see, ColorJitter(), *tell, Tokenize(words), Select(("image", "text", *keys)))
    shown = (SingleView(), Squash(side), Reference(words), Tokenize(words), Select(("image", "text", "reference")))
    drawn = {"findings": known.only(FINDINGS), "conditions": known.only(CONDITIONS)}
    graded = {"findings": known} if data.data else drawn
    passes = one_epoch(test, shown, batch=min(run.batch, 64))
    report_cut_texts(parts["train"], words)
    steps = run.total(-(-len(source) // run.batch))
    rule = optim.adamw(optim.cosine(run.lr, steps, min(100, steps // 2)), weight_decay=run.weight_decay, clip=1.0)
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective, ("image",)), log=50, save=500, eval=500),
        objective=objective,
        train=train(source, learn, **run.loader()),
        optimizer=amsgrad(run.lr, run.weight_decay) if augment == "published" else rule,
        evals={"reports": evals.WrittenReports(data=passes, decode=words.decode, findings=graded)},
        best="reports/cider",
        preprocessing={"findings": names} if findings else {},
        tokenizer=words,
    )
