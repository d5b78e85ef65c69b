"""python launch.py train configs/clip_adapter.py --model runs/quickstart --workdir runs/adapter --data labels.csv,images=photos

CLIP-Adapter (arXiv:2110.04544) on a split's training part: two small matrices behind a frozen image-text model whose
classes are told in words, learnt from features taken once. Without --data: synthetic eyes. Selection is on validation;
the test part is scored once, after that: python launch.py eval runs/adapter --checkpoint best --test
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import prompts_of
from data_pipelines.pipeline import one_epoch
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.labelled import Picture, parts, synthetic_parts
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.evals import features
from fundax.evals.features import Epochs, Frozen
from fundax.evals.supervised import Classified
from fundax.evals.zero_shot import class_features
from fundax.interop.image_text import opened, tiny
from fundax.objectives.adapter import Adapted, ClipAdapter
from fundax.optim import adamw, cosine_schedule, freeze
from fundax.recipe import Intervals, Recipe
from fundax.runtime.checkpoint import load_params
from fundax.types import Params

BESIDE = ("label", "modality", "eye", "group", "picture")


def recipe(
    *,
    model: str = "",
    checkpoint: str = "latest",
    data: str = "",
    split: str = "",
    wording: str = "",
    ratio: float = 0.2,
    reduction: int = 4,
    batch: int = 64,
    epochs: int = 40,
    lr: float = 1e-3,
    decay: float = 0.01,
    patients: int = 700,
    cache: str = "",
    workers: int = 0,
    test: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """FLAIR's values of the adapter, in steps of a batch instead of single images.

    Args:
        model: a run, or the import (launch.py import) of another program's weights.
        which: checkpoint of a run: latest, best or a step.
        data: one labelled source (data_pipelines/open.py); empty takes synthetic eyes never trained on.
        split: file that holds who is in which part; written at the first use, read afterwards. Cite its digest.
        wording: such as "{modality} showing {text}", instead of what experts know of the class.
        ratio: of the adapted feature in the sum with the model's own.
        reduction: how much narrower the middle is.
        batch: images in a step.
        epochs: over the training part.
        lr: peak learning rate.
        decay: weight decay, of everything.
        patients: synthetic ones to learn from; a quarter as many in validation and test.
        cache: folder that keeps features of synthetic eyes.
        workers: processes that read images.
        test: score the test part and nothing else; for `launch.py eval RUN --checkpoint best --test`.
        seed: of everything random.
        smoke: three steps behind a model that knows nothing.
    """
    patients, batch = (28, 8) if smoke else (patients, batch)
    words = tokenizers.bundled(48)
    use = tiny(words.vocab_size, words.context) if smoke else opened(model, checkpoint)
    words = tokenizers.load(use.tokenizer) if use.tokenizer else words
    found = (
        parts(data, split, seed) if data else synthetic_parts(Eyes(patients, seed, size=int(use.facts["image_size"])))
    )
    if not found.classes:
        raise DataError(f"{data}: its classes have no names, and a model is told them; expected labels as words")
    modality = found.train[0].views[0].modality
    prompts = [words(list(prompts_of(name, modality, wording))) for name in found.classes]
    adapter = ClipAdapter(use.objective.embed, len(found.classes), ratio, reduction)
    objective = Adapted(use.objective, adapter)
    begin = (
        partial(filled, model="" if smoke else model, checkpoint=checkpoint),
        partial(told, objective, prompts, model, checkpoint, smoke),
    )
    extra = tuple(lambda fresh, change=change: {"model": change(fresh["model"])} for change in use.init_extra)
    source = Frozen(objective, begin, seed, cache, extra)
    first = (Grouped(SingleView(text=None, targets=("label",))), Picture())
    steps_of = (*first, eval_step(use.facts), Select(("image", *BESIDE)))
    says = "" if data else f"synthetic {patients} {seed}"

    def rows(name: str) -> features.Read:
        read = one_epoch(getattr(found, name), steps_of, batch=64, workers=workers)
        return source.rows(read, (*BESIDE, "index"), says and f"{name} {says}")

    epoch = max(len(found.train) // batch, 1)
    steps = 3 if smoke else epochs * epoch
    part = "test" if test else "val"
    chain = adamw(cosine_schedule(lr, 0, steps), weight_decay=decay, decay=lambda path, leaf: True)
    return Recipe(
        objective=objective,
        train=Epochs(rows("train"), batch, seed),
        optimizer=freeze(chain, "^(model|heads)/"),
        steps=steps,
        batch=batch,
        evals={part: Classified(data=features.one_epoch(rows(part)), classes=found.classes)},
        init_from=begin,
        init_extra=extra,
        intervals=Intervals(log=max(steps // 20, 1), save=0, eval=max(epoch, steps // 20)),
        best="val/macro_auc",
        seed=seed,
        preprocessing=use.facts | {"classes": found.classes},
        tokenizer=words,
    )


def filled(params: Params, model: str, checkpoint: str) -> Params:
    """The model's weights in place; those of --smoke stay fresh."""
    return {**params, "model": load_params(model, checkpoint)[0]} if model else params


def told(objective: Adapted, prompts: list[Any], model: str, checkpoint: str, smoke: bool, params: Params) -> Params:
    """The classes' features in place, from the model's own reading of their prompts."""
    extra = {} if smoke else load_params(model, checkpoint)[1]
    return objective.told(params, {"model": extra}, partial(class_features, prompts=prompts))
