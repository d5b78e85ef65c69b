"""python launch.py train configs/zero_shot.py --model runs/quickstart --workdir runs/zero_shot --data labels.csv,images=photos

What an image-text model makes of labelled images without learning from one: each class is told in words, by what
experts know of it and in the words of its modality. Nothing is trained. Without --data: synthetic eyes it never saw.
"""

from __future__ import annotations

from pathlib import Path

import optax

from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import prompts_of
from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import DataError, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.splits import read_split, select
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.evals.zero_shot import zero_shot
from fundax.interop.image_text import opened, tiny
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval, UserError


def recipe(
    *,
    model: str = "",
    checkpoint: str = "latest",
    data: str = "",
    split: str = "",
    part: str = "test",
    modalities: tuple[str, ...] = ("CFP",),
    wording: str = "",
    patients: int = 420,
    parity: bool = False,
    batch: int = 64,
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """Zero-shot classification, an evaluation for each modality of the images.

    Args:
        model: a run, or the import (launch.py import) of another program's weights.
        which: checkpoint of a run: latest, best or a step.
        data: one labelled source (data_pipelines/open.py); empty takes synthetic eyes never trained on.
        split: file of a frozen split, of which only `part` is scored.
        part: of the split.
        modalities: of synthetic eyes.
        wording: such as "{modality} showing {text}", instead of what experts know of the class.
        patients: synthetic ones of each modality.
        parity: the scores of MM-Fundus-CLIP's script, to compare with its numbers and for nothing else.
        batch: images in a forward pass.
        workers: processes that read images.
        seed: of synthetic eyes.
        smoke: a model that knows nothing, few images.
    """
    words = tokenizers.bundled(48)
    use = tiny(words.vocab_size, words.context) if smoke else opened(model, checkpoint)
    words = tokenizers.load(use.tokenizer) if use.tokenizer else words
    sources = by_modality(data, split, part, modalities, 28 if smoke else patients, seed, int(use.facts["image_size"]))
    steps = (
        Grouped(SingleView(text=None)),
        eval_step(use.facts),
        Select(("image", "label", "group", "modality", "eye")),
    )
    evals: dict[str, Eval] = {}
    for modality, source in sources.items():
        classes = tuple(getattr(source, "classes", ()))
        prompts = [words(list(prompts_of(name, modality, wording))) for name in classes]
        name = "zero_shot" if len(sources) == 1 else f"zero_shot_{modality.lower()}"
        evals[name] = zero_shot(one_epoch(source, steps, batch=batch, workers=workers), classes, prompts, parity=parity)
    first = next(iter(sources.values()))
    return Recipe(
        objective=use.objective,
        train=train(first, steps, batch=batch, seed=seed, workers=0),
        optimizer=optax.identity(),
        steps=0,
        batch=batch,
        evals=evals,
        init_from=use.init_from,
        init_extra=use.init_extra,
        intervals=Intervals(log=0, save=0, eval=0),
        seed=seed,
        preprocessing=use.facts,
        tokenizer=words,
    )


def by_modality(
    data: str, split: str, part: str, modalities: tuple[str, ...], patients: int, seed: int, size: int
) -> dict[str, Source]:
    """The images to score by the modality of their first view."""
    if not data:
        return {m: CachedSource(Eyes(patients, seed, 4_000_000, (m,), size)) for m in modalities}
    source = named(data).source
    if split:
        parts = read_split(split, source)
        if part not in parts:
            raise UserError(f"{split} has no part {part!r}, only {', '.join(parts)}")
        source = parts[part]
    if not getattr(source, "classes", ()):
        raise UserError(f"{data}: its classes have no names, and a model is asked by names; expected labels as words")
    rows: dict[str, list[int]] = {}
    for row in range(len(source)):
        record = source[row]
        if "label" not in record.targets:
            raise DataError(f"{record.where or f'{Path(data).name} row {row + 1}'}: has no label")
        rows.setdefault(record.views[0].modality, []).append(row)
    return {modality: select(source, chosen) for modality, chosen in rows.items()}
