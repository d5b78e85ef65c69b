"""python launch.py train configs/keepfit.py --workdir runs/keepfit --init-text runs/keepfit_text

KeepFIT V2, stage 1: categorical public images and a few expert reports, 1:1 in every step. Without --data and --elite it
learns from synthetic eyes of three modalities. docs/keepfit.md says what of it is published and what is ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from data_pipelines.language import knowledge, tokenizers
from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.records import DataError
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.flair import flair_frame, mm_retinal
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.keepfit import WithAppearance, WithElite
from data_pipelines.transforms.flair import Canvas, CategoryCaption, Diagnosed, EliteReport, FlairAugment
from data_pipelines.transforms.steps import Flip, Select, Tokenize
from data_pipelines.transforms.views import SingleView
from fundax.encoders.bert import BERT, bert
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet, resnet
from fundax.evals.zero_shot import zero_shot
from fundax.inference.appearance import appearance_width, looking
from fundax.interop.flair import initial
from fundax.interop.load import is_run, parts_from, text_from
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1, V2
from fundax.optim import flair_adamw
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval


def recipe(
    *,
    data: tuple[str, ...] = (),
    elite: tuple[str, ...] = (),
    root: str = ".",
    vocab: str = "",
    init_text: str = "",
    init: str = "",
    appearance: str = "",
    variant: Literal["v2", "v1", "mixed"] = "v2",
    lam: float = 0.5,
    caption: bool = False,
    preset: Literal["published", "laptop"] = "laptop",
    modalities: tuple[str, ...] = ("CFP", "FFA", "OCT"),
    patients: int = 3000,
    batch: int = 48,
    epochs: int = 25,
    lr: float = 1e-4,
    horizon: int = 100,
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """AdamW 1e-4, decay 1e-5, an epoch of warm-up, FLAIR's cosine; the reference mixes meaning and appearance.

    Args:
        data: CSVs of FLAIR's form; ",modality=FFA" behind one that is no photographs.
        elite: CSVs of MM-Retinal's forms; ",modality=OCT,images=DIR,suffix=.jpg,language=zh" as needed.
        root: folder that the images' paths of `data` begin in, and of `elite` without images=.
        vocab: BERT's vocab.txt (Bio_ClinicalBERT's), or a tokenizer's folder; empty takes the bundled vocabulary.
        init_text: a run of configs/keepfit_text.py, or a BERT, for the text tower.
        init: a run of configs/flair.py or this one of the same sizes, or a checkpoint of FLAIR or KeepFIT.
        appearance: a run of configs/vector_quantize.py or of a ViT; empty compares meanings alone (lam 1).
        variant: v2, our design; v1, the published KeepFIT; mixed, V1 without its reference.
        lam: share of meaning in the mixture, the rest is appearance.
        caption: a decoder writes the expert's report of each elite image as well.
        preset: published, ResNet-50, BERT of base size, 512 pixels, 256 tokens; laptop, small ones, 64 pixels.
        modalities: of the synthetic eyes.
        patients: synthetic ones to learn from; a twentieth as many have a report.
        batch: images in a step, of each half.
        epochs: passes over the public images.
        lr: peak learning rate.
        horizon: epochs after which the cosine would be 0.
        workers: processes that read and augment.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    small = smoke or preset == "laptop"
    if smoke:
        batch, epochs, patients, modalities = 8, 1, 20, modalities[:2]
    side, context = (32, 32) if smoke else (64, 48) if small else (512, 256)
    tokenizer = tokenizers.wordpiece(vocab, context, straight_quotes=False) if vocab else tokenizers.bundled(context)
    eyes: Any = Eyes(patients, seed, size=side, modalities=modalities)
    experts: Any = Eyes(max(patients // 20, 4), seed, start=2_000_000, size=side, modalities=modalities)
    keep = eyes if workers else CachedSource(eyes)
    public = [_frame(word, root) for word in data] or [Diagnosed(keep)]
    told = [_elite(word, root) for word in elite] or [Diagnosed(experts if workers else CachedSource(experts))]
    augment = (Flip(), FlairAugment())
    learn = (CategoryCaption(by_synonym=not data), Canvas(side), *augment, Tokenize(tokenizer),
             Select(("image", "text", "category", "status")))  # fmt: skip
    study = (EliteReport(), Canvas(side), Tokenize(tokenizer), Select(("image", "text", "status")))
    reading: dict[str, Any] = {"batch": batch, "workers": workers}
    both: Any = WithElite(
        mix([(source, learn, float(len(source))) for source in public], seed=seed, **reading),
        mix([(source, study, float(len(source))) for source in told], seed=seed + 1, **reading),
        ("image", "text", "status"),
    )
    reference = {"v1": V1, "v2": replace(V2, lam=lam if appearance else 1.0), "mixed": None}[variant]
    seen = reference is not None and reference.lam < 1
    objective = KeepFIT(
        FLAIR(*_towers(smoke, small, side, tokenizer), context=context, embed=16 if smoke else 128 if small else 512),
        reference,
        caption=_decoder(smoke, small, tokenizer) if caption or smoke else None,
        appearance=appearance_width(appearance) if seen else 1,
        by_status=variant == "v2",
    )
    each = max(sum(len(source) for source in public) // batch, 1)
    return Recipe(
        objective=objective,
        train=WithAppearance(both, looking(appearance)) if seen else both,
        optimizer=flair_adamw(lr, steps_per_epoch=each, horizon=horizon),
        init_from=_starts(init, init_text, objective),
        steps=epochs * each,
        batch=batch,
        evals={f"zero_shot_{name}": _evaluation(name, tokenizer, side, batch, smoke) for name in modalities},
        intervals=Intervals(log=50, save=500, eval=500),
        best=f"zero_shot_{modalities[0]}/macro_auc",
        seed=seed,
        preprocessing={"image_size": side, "mean": FLAIR.mean, "std": FLAIR.std, "resize": "squash",
                       "interpolation": "bilinear"},
        tokenizer=tokenizer,
    )  # fmt: skip


def _starts(init: str, init_text: str, objective: KeepFIT) -> tuple[Any, ...]:
    """What fresh parameters are filled with, in order: the text of stage 0 counts last."""
    steps: list[Any] = []
    if init:
        steps.append(parts_from(init, ("image", "text", "project", "log_scale")) if is_run(init) else initial(init))
    if init_text:
        steps.append(text_from(init_text, objective.text))
    return tuple(steps)


def _split(word: str, *known: str) -> tuple[str, dict[str, str]]:
    path, *rest = word.split(",")
    options = {name: value for name, _, value in (part.partition("=") for part in rest)}
    if unknown := set(options) - set(known):
        raise DataError(f"{word}: unknown {', '.join(sorted(unknown))}; expected of {', '.join(known)}")
    return path, options


def _frame(word: str, root: str) -> Any:
    path, options = _split(word, "modality", "images")
    return flair_frame(path, options.pop("images", root), modality=options.get("modality", "CFP"))


def _elite(word: str, root: str) -> Any:
    path, options = _split(word, "modality", "images", "suffix", "language")
    return mm_retinal(path, options.pop("images", root), **options)


def _towers(smoke: bool, small: bool, side: int, tokenizer: tokenizers.Tokenizer) -> tuple[ResNet, BERT]:
    """The text tower is that of configs/keepfit_text.py with the same preset."""
    fields: dict[str, Any] = {"vocab": tokenizer.vocab_size, "pool": "mean", "pool_layers": POOL_LAYERS}
    if smoke:
        return ResNet(side, 4, (1, 1)), BERT(**fields, context=32, width=16, depth=2, heads=2, hidden=16)
    if small:
        return ResNet(side, 16, (1, 1, 1)), BERT(**fields, context=77, width=128, depth=4, heads=4, hidden=256)
    dtype = "bfloat16"
    return resnet("resnet50", image_size=side, dtype=dtype), bert("base", **fields, dtype=dtype)


def _decoder(smoke: bool, small: bool, tokenizer: tokenizers.Tokenizer) -> ReportDecoder:
    width, depth, heads = (16, 1, 2) if smoke else (128, 2, 4) if small else (512, 3, 8)
    return ReportDecoder(tokenizer.vocab_size, tokenizer.context - 1, width, depth, heads, width,
                         bos=tokenizer.start, eos=tokenizer.end, pad=tokenizer.pad)  # fmt: skip


def _evaluation(modality: str, tokenizer: tokenizers.Tokenizer, side: int, batch: int, smoke: bool) -> Eval:
    """Synthetic eyes nobody has seen, each class by the ensemble of prompts that knowledge gives it."""
    unseen, known = Eyes(14 if smoke else 280, start=1_000_000, size=side, modalities=(modality,)), knowledge.bundled()
    steps = (SingleView(text=None), Canvas(side), Select(("image", "label")))
    names = [finding.name if (finding := known.find(name)) else name for name in unseen.classes]
    said = modality if modality in known.templates else "CFP"
    prompts = [tokenizer(list(known.ensemble(name, said))) for name in names]
    return zero_shot(one_epoch(CachedSource(unseen), steps, batch=batch), unseen.classes, prompts)
