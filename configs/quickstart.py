"""python launch.py train configs/quickstart.py --workdir runs/quickstart

A small CLIP that learns from synthetic eyes and their reports, in about three minutes on the CPU of a laptop. It sees no
labels: at the end, it classifies the eyes of new patients by sentences that name a condition.
"""

import optax

from data_pipelines.language.tokenizers import bundled
from data_pipelines.open import Data, synthetic_parts
from data_pipelines.pipeline import mix
from data_pipelines.tasks.image_text import report_cut_texts, rows_of, shares, templated, tests
from data_pipelines.transforms.steps import Flip, Select, Squash, Tokenize
from data_pipelines.transforms.views import SingleView
from fundax import encoders, interop, optim
from fundax.inference.image_text import scores_of
from fundax.objectives.clip import clip
from fundax.recipe import Recipe, Run

TEMPLATES = ("{}.", "findings consistent with {}.", "fundus photograph showing {}.")


def recipe(
    *,
    data: Data = Data(),
    run: Run = Run(batch=64, steps=400, lr=1e-3, weight_decay=0.1),
    size: str = "",
    image_size: int = 0,
    init: str = "",
    tokenizer: str = "",
) -> Recipe:
    """A small CLIP on synthetic fundus photographs and their reports, or on images and texts of your own."""
    words = interop.tokenizer(tokenizer or init, bundled(48))
    model = {"vocab": words.vocab_size, "context": words.context, "image_size": image_size}
    objective = clip(size or "tiny", **model, **run.compute(encoders.ViT)[0])
    objective = objective if size else interop.sized_like(init, objective)
    side = objective.image.image_size
    eyes = synthetic_parts(data.eyes(run.seed, side), keep=not run.workers, val=min(data.patients, 420))
    parts = data.parts(eyes, run.seed)
    steps = run.total(-(-rows_of(parts["train"]) // run.batch))
    chain = (SingleView(), Flip(), Squash(side), Tokenize(words), Select(("image", "text")))
    held_out = tests(data, parts, Squash(side), words, templated(TEMPLATES), run.batch)
    report_cut_texts(parts["train"], words)
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=200),
        objective=objective,
        train=mix(shares(parts["train"], chain), **run.loader()),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optim.adamw(
                optim.cosine(run.lr, steps, min(50, steps // 2)),
                betas=(0.9, 0.98),
                eps=1e-6,
                weight_decay=run.weight_decay,
            ),
            optim.clip_params({"log_scale": (0.0, optim.MAX_LOG_SCALE)}),
        ),
        **scores_of(held_out, pairs=False),
        tokenizer=words,
    )
