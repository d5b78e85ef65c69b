"""python launch.py train configs/flair.py --workdir runs/flair --frames frames/ --root data/

FLAIR as published: ResNet-50 and a BERT of base size, categories of many data sets said in words of experts. Without
--frames it learns from synthetic eyes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from data_pipelines.language import knowledge, tokenizers
from data_pipelines.pipeline import Data, mix, one_epoch
from data_pipelines.records import DataError
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.flair import UNSEEN, flair_frame
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.flair import Canvas, CategoryCaption, Diagnosed, FlairAugment
from data_pipelines.transforms.steps import Flip, Select, Tokenize
from data_pipelines.transforms.views import SingleView
from fundax.encoders.bert import BERT, bert
from fundax.encoders.resnet import ResNet, resnet
from fundax.evals.zero_shot import zero_shot
from fundax.interop.flair import initial
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.optim import flair_adamw
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval


def recipe(
    *,
    frames: str = "",
    root: str = ".",
    vocab: str = "",
    init: str = "",
    ban: bool = True,
    ban_by: Literal["substring", "exact"] = "substring",
    balance: bool = True,
    batch: int = 128,
    epochs: int = 15,
    lr: float = 1e-4,
    horizon: int = 100,
    negatives: Literal["global", "plain", "ring", "local"] = "global",
    pool: Literal["mean", "unmasked_mean"] = "mean",
    image_size: int = 512,
    patients: int = 20_000,
    dtype: str = "bfloat16",
    workers: int = 4,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """The published recipe: AdamW 1e-4, decay 1e-5, one epoch of warm-up, a cosine of 100 epochs of which 15 are trained.

    Args:
        frames: folder of CSVs, one for each data set; empty takes synthetic eyes.
        root: folder that the images' paths in the CSVs begin in.
        vocab: BERT's vocab.txt (Bio_ClinicalBERT's), or a tokenizer's folder; empty takes the bundled vocabulary.
        init: a checkpoint of FLAIR, KeepFIT or RetiXfer to start from.
        ban: leave out the categories that are kept to test on what was never seen.
        ban_by: substring (FLAIR) or exact (KeepFIT).
        balance: sample every data set alike, however large.
        batch: images in a step.
        epochs: passes over as many images as there are.
        lr: peak learning rate.
        horizon: epochs after which the cosine would be 0.
        negatives: of the whole batch (as a ring where it is large; plain or ring always), or of each device's share (the peer).
        pool: of the text tower; unmasked_mean is the peer's, which averages padding in.
        image_size: side of the canvas.
        patients: synthetic ones to learn from.
        dtype: of matrix products.
        workers: processes that read and augment.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    if smoke:
        batch, epochs, image_size, patients, dtype, workers = 8, 1, 32, 16, "float32", 0
    tokenizer = tokenizers.wordpiece(vocab, 77) if vocab else tokenizers.bundled(32 if smoke else 77)
    sources = (
        _frames(frames, root, UNSEEN if ban else (), ban_by)
        if frames
        else [Diagnosed(Eyes(patients, seed, size=image_size))]
    )
    augment = (Flip(), FlairAugment())
    caption = CategoryCaption(by_synonym=not frames)
    steps = (caption, Canvas(image_size), *augment, Tokenize(tokenizer), Select(("image", "text", "category")))
    # Counting the rows of real frames reads them; one pass over synthetic eyes is their number.
    each = max(sum(len(source) for source in sources) // batch, 1)
    weights = [1.0 if balance else float(len(source)) for source in sources]
    parts = [(source, steps, weight) for source, weight in zip(sources, weights, strict=True)]
    return Recipe(
        objective=FLAIR(*_towers(smoke, image_size, tokenizer, pool, dtype), context=tokenizer.context,
                        embed=16 if smoke else 512, negatives=negatives),
        train=mix(parts, batch=batch, seed=seed, workers=workers),
        optimizer=flair_adamw(lr, steps_per_epoch=each, horizon=horizon),
        init_from=(initial(init),) if init else (),
        steps=epochs * each,
        batch=batch,
        evals={"zero_shot": _evaluation(tokenizer, image_size, batch, smoke)},
        intervals=Intervals(log=50, save=500, eval=1000),
        seed=seed,
        preprocessing={"image_size": image_size, "mean": FLAIR.mean, "std": FLAIR.std, "resize": "squash",
                       "interpolation": "bilinear"},
        tokenizer=tokenizer,
    )  # fmt: skip


def _frames(folder: str, root: str, ban: tuple[str, ...], ban_by: str) -> list[Any]:
    paths = sorted(Path(folder).glob("*.csv"))
    if not paths:
        raise DataError(f"{folder}: expected CSV files, one for each data set")
    return [flair_frame(path, root, ban=ban, ban_by=ban_by) for path in paths]


def _towers(smoke: bool, image_size: int, tokenizer: Any, pool: Any, dtype: str) -> tuple[ResNet, BERT]:
    fields: dict[str, Any] = {"vocab": tokenizer.vocab_size, "pool": pool, "pool_layers": POOL_LAYERS, "dtype": dtype}
    if smoke:
        return ResNet(image_size, 4, (1, 1), dtype=dtype), BERT(
            **fields, context=32, width=16, depth=2, heads=2, hidden=16
        )
    return resnet("resnet50", image_size=image_size, dtype=dtype), bert("base", **fields)


def _evaluation(tokenizer: Any, image_size: int, batch: int, smoke: bool) -> Eval:
    """Synthetic eyes nobody has seen, each class by the ensemble of prompts that knowledge gives it."""
    unseen, known = Eyes(16 if smoke else 420, start=1_000_000, size=image_size), knowledge.bundled()
    data: Data = one_epoch(
        CachedSource(unseen), (SingleView(text=None), Canvas(image_size), Select(("image", "label"))), batch=batch
    )
    names = [finding.name if (finding := known.find(name)) else name for name in unseen.classes]
    return zero_shot(data, unseen.classes, [tokenizer(list(known.ensemble(name))) for name in names])
