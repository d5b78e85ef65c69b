"""python launch.py train configs/keepfit_report.py --workdir runs/report --data reports.csv --init flair_resnet.pth

Reports of images, word by word, as the FFA branch of KeepFIT writes them: ResNet-50 at 224 pixels, a transformer of
3 + 3 layers, 90 words, beam search. Without --data it learns from synthetic angiograms and photographs. A small model
for a laptop, which learns the findings of an image beside the words of its report (docs/reports.md):
python launch.py train configs/keepfit_report.py --preset laptop --workdir runs/report
"""

from __future__ import annotations

from typing import Any, Literal

import optax

from data_pipelines.language import tokenizers
from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.findings import TellFindings, vocabulary
from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.splits import split_by
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import ColorJitter, Flip, RandomResizedCrop, Select, Squash, Tokenize
from data_pipelines.transforms.views import SingleView
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet, resnet
from fundax.evals.reports import WrittenReports
from fundax.interop.flair import initial
from fundax.interop.load import is_run
from fundax.objectives.report import Report
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe
from fundax.runtime.checkpoint import partial

# What --preset stands for; an argument that is given wins.
PRESETS: dict[str, dict[str, Any]] = {
    "published": {"batch": 64, "epochs": 15, "lr": 1e-4, "image_size": 224, "context": 90, "beams": 3,
                  "patients": 20_000, "workers": 4, "findings": False},
    "laptop": {"batch": 64, "epochs": 4, "lr": 2e-3, "image_size": 96, "context": 64, "beams": 1,
               "patients": 6000, "workers": 0, "findings": True},
}  # fmt: skip
PRESETS["smoke"] = PRESETS["laptop"] | {"batch": 8, "epochs": 1, "image_size": 32, "context": 24, "patients": 16}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    data: str = "",
    init: str = "",
    vocab: str = "",
    modalities: tuple[str, ...] = ("FFA", "CFP"),
    language: Literal["en", "zh", "both"] = "en",
    findings: bool | None = None,
    batch: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    context: int | None = None,
    beams: int | None = None,
    patients: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """The published recipe: Adam with AMSGrad, the image tower at half the rate, gradients clipped at 0.1 by value.

    Args:
        preset: published, or laptop: a small ResNet of 96 pixels and a decoder of two layers.
        data: a CSV with columns image and text (and patient), or another source (data_pipelines/open.py); a
            tenth of its patients is kept to evaluate. Empty: synthetic eyes.
        init: start the image tower from a run of fundax that has an `image` tower of the same shape, or from a FLAIR,
            KeepFIT or RetiXfer checkpoint.
        vocab: BERT's vocab.txt, or a tokenizer's folder; empty takes the bundled English and Chinese one.
        modalities: of the synthetic eyes.
        language: of the synthetic reports.
        findings: learn what a report finds beside its words, and tell the writer what the image shows (not published).
        batch: images in a step.
        epochs: passes over the data.
        lr: peak learning rate of the decoder.
        image_size: side of the image.
        context: the longest report, in tokens.
        beams: open reports while one is written; 1 takes the likeliest word.
        patients: synthetic ones to learn from.
        workers: processes that read and augment; 0 makes each synthetic picture once, in this one.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    given = {"batch": batch, "epochs": epochs, "lr": lr, "image_size": image_size, "context": context, "beams": beams}
    given |= {"patients": patients, "workers": workers, "findings": findings}
    use = PRESETS["smoke" if smoke else preset] | {k: v for k, v in given.items() if v is not None and not smoke}
    published = preset == "published" and not smoke
    side, tokenizer = use["image_size"], tokenizers.bundled(use["context"] + 1)
    if vocab:
        tokenizer = tokenizers.wordpiece(vocab, use["context"] + 1)
    eyes = Eyes(use["patients"], seed, size=side, modalities=modalities, language=language)
    unseen = CachedSource(Eyes(16 if smoke else 420, seed, 1_000_000, modalities, side, language))
    source: Source = eyes if use["workers"] else CachedSource(eyes)
    test: Source = unseen
    if data:
        parts = split_by(named(data).source, fractions={"train": 0.9, "val": 0.1}, seed=seed)
        source, test = parts["train"], parts["val"]
    see = (Squash(256), RandomResizedCrop(side, (0.7, 1.0))) if published else (Squash(side),)
    names = tuple(sorted(vocabulary().reported)) if data else (*FINDINGS, *CONDITIONS[1:])
    tell, keys = ((TellFindings(names),), ("findings",)) if use["findings"] else ((), ())
    learn = (SingleView(), Flip(), *see, ColorJitter(), *tell, Tokenize(tokenizer), Select(("image", "text", *keys)))
    shown = (SingleView(), Squash(side), Tokenize(tokenizer), Select(("image", "text")))
    steps = 2 if smoke else max(use["epochs"] * -(-len(source) // use["batch"]), 1)
    return Recipe(
        objective=(objective := _objective(published, smoke, tokenizer, use, len(names))),
        train=train(source, learn, batch=use["batch"], seed=seed, workers=use["workers"]),
        optimizer=_published(use["lr"]) if published else optax.chain(
            optax.clip_by_global_norm(1.0), adamw(cosine(use["lr"], steps, min(100, steps // 2)), weight_decay=0.05)
        ),
        steps=steps,
        batch=use["batch"],
        evals={"reports": WrittenReports(data=one_epoch(test, shown, batch=min(use["batch"], 64)), decode=tokenizer.decode,
                                         findings=_findings(bool(data)))},
        init_from=((partial(f"{init}:image") if is_run(init) else initial(init)),) if init else (),
        intervals=Intervals(log=50, save=500, eval=500),
        best="reports/cider",
        seed=seed,
        preprocessing={"image_size": side, "mean": objective.mean, "std": objective.std, "resize": "squash"}
        | ({"findings": names} if use["findings"] else {}),
        tokenizer=tokenizer,
    )  # fmt: skip


def _objective(
    published: bool, smoke: bool, tokenizer: tokenizers.Tokenizer, use: dict[str, Any], findings: int
) -> Report:
    ids = {"bos": tokenizer.start, "eos": tokenizer.end, "pad": tokenizer.pad, "context": use["context"]}
    ask: dict[str, Any] = {"beams": use["beams"]}
    if use["findings"]:
        ask |= {"findings": findings, "words_every": 1 if published else 4}
    if published:
        tower = resnet("resnet50", image_size=use["image_size"])
        return Report(tower, ReportDecoder(tokenizer.vocab_size, **ids), **ask)
    width, depth = (32, 1) if smoke else (128, 2)
    # a ResNet sees small lesions after a few thousand images, a ViT of its cost does not
    tower = ResNet(use["image_size"], 8 if smoke else 24, (1, 1, 1, 1))
    decoder = ReportDecoder(
        tokenizer.vocab_size, width=width, depth=depth, heads=width // 32, hidden=2 * width,
        visual_dropout=0.1, **ids,
    )  # fmt: skip
    return Report(tower, decoder, **ask)


def _published(lr: float) -> optax.GradientTransformation:
    """Adam with AMSGrad and L2 5e-5, gradients clipped at 0.1 by value, the image tower at half the rate."""

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(5e-5), optax.amsgrad(rate))

    groups = optax.multi_transform(
        {"image": adam(lr / 2), "decoder": adam(lr)},
        lambda params: {name: "image" if name == "image" else "decoder" for name in params},
    )
    return optax.chain(optax.clip(0.1), groups)


def _findings(real: bool) -> dict[str, Any]:
    """Findings of the whole vocabulary for a user's reports; signs and conditions apart for synthetic ones."""
    known = vocabulary()
    return {"findings": known} if real else {"findings": known.only(FINDINGS), "conditions": known.only(CONDITIONS)}
