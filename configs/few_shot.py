"""python launch.py train configs/few_shot.py --model runs/quickstart --workdir runs/few_shot

What a few labelled images are worth on top of a pretrained image-text model: none, 1, 2, 4, 8 and 16 per class, by
logistic regression, CLIP-Adapter and Tip-Adapter(-F). Nothing of the model is trained; features are taken once.
The images to learn from and those to test on share no patient: --data labels.csv,images=photos --split split.json
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import optax

from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import prompts_of
from data_pipelines.open import named
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import DataError, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.splits import read_split, select, stratified, write_split
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, eval_step
from data_pipelines.transforms.views import Grouped, SingleView
from fundax.evals.few_shot import FewShot
from fundax.evals.zero_shot import class_features
from fundax.interop.image_text import opened, tiny
from fundax.recipe import Intervals, Recipe


def recipe(
    *,
    model: str = "",
    checkpoint: str = "latest",
    data: str = "",
    split: str = "",
    shots: tuple[int, ...] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    methods: tuple[str, ...] = ("zero_shot", "linear", "clip_adapter", "tip_adapter", "tip_adapter_f"),
    cache: str = "",
    batch: int = 64,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """FLAIR's protocol on features of one model.

    Args:
        model: a run, or the import (launch.py import) of another program's weights.
        which: checkpoint of a run: latest, best or a step.
        data: one labelled source (data_pipelines/open.py); empty takes synthetic eyes never trained on.
        split: file that holds who is in which part; written at the first use, read afterwards. Cite its digest.
        shots: images per class.
        seeds: draws of each.
        methods: of evals/few_shot.py.
        cache: folder that keeps features of synthetic eyes, or of a CSV as long as neither it nor the split changes.
        batch: images in a forward pass.
        seed: of the split.
        smoke: one draw of one image per class, with a model that knows nothing.
    """
    words = tokenizers.bundled(48)
    use = tiny(words.vocab_size, words.context) if smoke else opened(model, checkpoint)
    words = tokenizers.load(use.tokenizer) if use.tokenizer else words
    shots, seeds = ((1,), 1) if smoke else (shots, seeds)
    pool, test = parts(data, split, seed, int(use.facts["image_size"]), 28 if smoke else 420)
    classes = getattr(pool, "classes", ())
    prompts = [words(list(prompts_of(name, pool[0].views[0].modality))) for name in classes]
    steps = (
        Grouped(SingleView(text=None, targets=("label",))),
        eval_step(use.facts),
        Select(("image", "label", "group")),
    )
    told = fingerprint(data, split, seed)
    return Recipe(
        objective=use.objective,
        train=train(pool, steps, batch=batch, seed=seed, workers=0),
        optimizer=optax.identity(),
        steps=0,
        batch=batch,
        evals={
            "few_shot": FewShot(
                pool=one_epoch(pool, steps, batch=batch),
                test=one_epoch(test, steps, batch=batch),
                classes=classes,
                class_features=partial(class_features, prompts=prompts),
                shots=shots,
                seeds=seeds,
                methods=methods,
                patient="group",
                cache=cache,
                pool_fingerprint=told and f"pool of {told}",
                test_fingerprint=told and f"test of {told}",
            )
        },
        init_from=use.init_from,
        init_extra=use.init_extra,
        intervals=Intervals(log=0, save=0, eval=0),
        seed=seed,
        preprocessing=use.facts,
        tokenizer=words,
    )


def parts(data: str, split: str, seed: int, size: int, count: int) -> tuple[Source, Source]:
    """Images to learn from, and to test on: no patient is in both."""
    if not data:
        eyes = [Eyes(count, seed, start, size=size) for start in (3_000_000, 4_000_000)]
        return CachedSource(eyes[0]), CachedSource(eyes[1])
    source = named(data).source
    if split and Path(split).is_file():
        found = read_split(split, source)
        if missing := {"train", "test"} - set(found):
            raise DataError(f"{split} has no part {min(missing)!r}, only {', '.join(found)}")
        return found["train"], found["test"]
    records = [source[row] for row in range(len(source))]
    if lacking := [r for r, record in enumerate(records) if "label" not in record.targets]:
        raise DataError(f"{data}: row {lacking[0] + 1} has no label; expected a column label")
    patients = [record.patient for record in records]
    rows = stratified(patients, [int(record.targets["label"]) for record in records], {"train": 0.5, "test": 0.5}, seed)
    if split:
        write_split(split, patients, rows, seed=seed, source=data)
    return select(source, rows["train"]), select(source, rows["test"])


def fingerprint(data: str, split: str, seed: int) -> str:
    """What the features are of; "" where that cannot be told, and they are not kept. Images are taken not to change."""
    table = Path(data.split(",")[0])
    if data and not table.is_file():
        return ""
    files = [path for path in (table, Path(split)) if path.is_file()] if data else []
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return " ".join((data or "synthetic", str(seed), *digests))
