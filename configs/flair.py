"""python launch.py train configs/flair.py --workdir runs/flair --data frames/ --image-dir data/

FLAIR as published: ResNet-50 and BERT-base, trained on many data sets with categories, which are described by expert
knowledge. --data are CSV files in FLAIR's format, or folders of such files. Without --data, the images are synthetic eyes.
"""

from typing import Literal

from data_pipelines import Sources, mix
from data_pipelines.language import bundled, prompts_of
from data_pipelines.sources import CachedSource
from data_pipelines.sources.flair import UNSEEN
from data_pipelines.tasks import keepfit
from data_pipelines.tasks.image_text import rows_of, shares, tests
from data_pipelines.transforms import Canvas, CategoryCaption, Diagnosed, FlairAugment, Flip, Select, Tokenize
from fundax import Recipe, Run, encoders, interop, optim
from fundax.inference.image_text import scores_of
from fundax.objectives.flair import flair


def recipe(
    *,
    data: Sources = Sources(patients=20_000),
    run: Run = Run(batch=128, epochs=15, workers=4, dtype="bfloat16", lr=1e-4, weight_decay=1e-5),
    size: str = "base",
    image_size: int = 0,
    init: str = "",
    tokenizer: str = "",
    context: int = 77,
    ban: bool = True,
    ban_by: Literal["substring", "exact"] = "substring",
    balanced: bool = True,
    negatives: Literal["global", "plain", "ring", "local"] = "global",
    pool: Literal["mean", "unmasked_mean"] = "mean",
    horizon: int = 100,
) -> Recipe:
    """AdamW with an epoch of warm-up and a cosine over 100 epochs, of which 15 are trained, at 512 pixels."""
    words = interop.tokenizer(tokenizer or init, bundled(context), context)
    image, text = run.compute(encoders.ResNet, encoders.BERT)
    model = {"image": image, "text": text | {"pool": pool}, "image_size": image_size, "negatives": negatives}
    objective = flair(size, vocab=words.vocab_size, context=words.context, patients=True, **model)
    side = objective.image.image_size
    eyes = data.eyes(run.seed, side)
    opener = keepfit.opened(data.data + data.val, data.image_dir, ban=UNSEEN if ban else (), ban_by=ban_by)
    drawn = {"train": Diagnosed(eyes), "val": CachedSource(eyes.split("val", min(data.patients, 420)))}
    parts = data.parts(drawn, run.seed, opener=opener)
    sources = parts["train"]
    keys = Select(("image", "text", "category", "patient"))
    chain = (CategoryCaption(by_synonym=not data.data), Canvas(side), Flip(), FlairAugment(), Tokenize(words), keys)
    epoch = max(rows_of(sources) // run.batch, 1)
    scored = {name: keepfit.by_category(part) for name, part in parts.items()}
    held_out = tests(data, scored, Canvas(side), words, prompts_of, run.batch)
    return Recipe(
        **run.recipe(run.total(epoch), interop.warm_start(init, objective), log=50, save=500, eval=1000),
        objective=objective,
        train=mix(shares(sources, chain, equal=balanced), **run.loader()),
        optimizer=optim.flair_adamw(run.lr, steps_per_epoch=epoch, horizon=horizon, weight_decay=run.weight_decay),
        **scores_of(held_out),
        tokenizer=words,
    )
