"""python launch.py train configs/quickstart.py --workdir runs/quickstart

A small CLIP that learns to read synthetic eyes from their reports, on a laptop's CPU in about three minutes. It sees
no label: at the end, sentences that name a condition sort the eyes of patients it has never met.
"""

from __future__ import annotations

import optax

from data_pipelines.language import tokenizers
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.sources.cached import CachedSource
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Flip, Select, Squash, Tokenize
from data_pipelines.transforms.views import SingleView
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.layers import quick_gelu
from fundax.encoders.vit import ViT
from fundax.evals.zero_shot import zero_shot
from fundax.objectives.clip import CLIP, MEAN, STD
from fundax.optim import adamw, clip_params, cosine
from fundax.recipe import Intervals, Recipe

TEMPLATES = ("{}.", "findings consistent with {}.", "fundus photograph showing {}.")


def recipe(
    *,
    steps: int = 400,
    batch: int = 64,
    lr: float = 1e-3,
    patients: int = 3000,
    modalities: tuple[str, ...] = ("CFP",),
    image_size: int = 64,
    width: int = 128,
    depth: int = 4,
    workers: int = 0,
    save_every: int = 200,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """A small CLIP on synthetic fundus photographs and their reports.

    Args:
        steps: optimizer steps.
        batch: image-text pairs in a step.
        lr: peak learning rate.
        patients: synthetic patients to learn from; 420 others are for evaluation.
        modalities: of their pictures: CFP, UWF, FFA, OCT.
        image_size: side of the square image in pixels.
        width: of both transformers.
        depth: layers of the image transformer; the text has half as many.
        workers: processes that make the pictures; 0 makes each once, in this one.
        save_every: steps between checkpoints.
        seed: of everything random.
        smoke: two steps of almost nothing, to see that all parts fit.
    """
    if smoke:
        steps, batch, patients, width, depth, image_size = 2, 8, 16, 32, 1, 32
    tokenizer = tokenizers.bundled(context=48)
    eyes = Eyes(n=patients, seed=seed, modalities=modalities, size=image_size)
    unseen = Eyes(n=16 if smoke else 420, seed=seed, start=1_000_000, modalities=modalities, size=image_size)
    see = Squash(image_size)
    learn = (SingleView(), Flip(), see, Tokenize(tokenizer), Select(("image", "text")))
    test = one_epoch(CachedSource(unseen), (SingleView(text=None), see, Select(("image", "label"))), batch=batch)
    prompts = [tokenizer([t.format(name) for t in TEMPLATES]) for name in unseen.prompts()]
    return Recipe(
        objective=CLIP(
            image=ViT(image_size, 8, width, depth, heads=width // 32, activation=quick_gelu),
            text=TextTransformer(tokenizer.vocab_size, tokenizer.context, width, max(depth // 2, 1), width // 32),
            embed=width,
        ),
        train=train(eyes if workers else CachedSource(eyes), learn, batch=batch, seed=seed, workers=workers),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            adamw(cosine(lr, steps, warmup=min(50, steps // 2)), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1),
            clip_params({"log_scale": (0.0, 4.6052)}),
        ),
        steps=steps,
        batch=batch,
        evals={"zero_shot": zero_shot(test, unseen.classes, prompts)},
        intervals=Intervals(log=20, save=save_every, eval=200),
        best="zero_shot/macro_auc",
        seed=seed,
        preprocessing={
            "image_size": image_size,
            "mean": MEAN,
            "std": STD,
            "resize": "squash",
            "interpolation": "bicubic",
        },
        tokenizer=tokenizer,
    )
