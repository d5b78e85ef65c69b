"""python launch.py train configs/quickstart.py --workdir runs/quickstart

Train a small CLIP on synthetic eyes and their reports, in about three minutes on the CPU of a laptop, without labels. At the
end, it classifies the eyes of new patients by comparing images with prompts for each condition (zero-shot).
"""

from data_pipelines import Data, mix, synthetic_parts
from data_pipelines.language import bundled
from data_pipelines.tasks.image_text import report_cut_texts, rows_of, shares, templated, tests
from data_pipelines.transforms import Flip, Select, SingleView, Squash, Tokenize
from fundax import Recipe, Run, encoders, interop, optim
from fundax.inference.image_text import scores_of
from fundax.objectives.clip import clip, optimizer

TEMPLATES = ("{}.", "findings consistent with {}.", "fundus photograph showing {}.")


def recipe(
    *,
    data: Data = Data(),
    run: Run = Run(batch=64, steps=400, lr=2e-3, weight_decay=0.1),
    size: str = "",
    image_size: int = 0,
    init: str = "",
    tokenizer: str = "",
) -> Recipe:
    """A small CLIP on synthetic fundus photographs and their reports, or on images and texts of your own."""
    words = interop.tokenizer(tokenizer or init, bundled(48))
    model = {"vocab": words.vocab_size, "context": words.context, "image_size": image_size, "patients": True}
    objective = clip(size or "tiny", **model, **run.compute(encoders.ViT)[0])
    objective = objective if size else interop.sized_like(init, objective)
    side = objective.image.image_size
    eyes = synthetic_parts(data.eyes(run.seed, side), keep=not run.workers, val=min(data.patients, 420))
    parts = data.parts(eyes, run.seed)
    steps = run.total(-(-rows_of(parts["train"]) // run.batch))
    chain = (SingleView(choose="random"), Flip(), Squash(side), Tokenize(words), Select(("image", "text", "patient")))
    held_out = tests(data, parts, Squash(side), words, templated(TEMPLATES), run.batch)
    report_cut_texts(parts["train"], words)
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=200),
        objective=objective,
        train=mix(shares(parts["train"], chain), **run.loader()),
        optimizer=optimizer(optim.cosine(run.lr, steps, min(50, steps // 2)), run.weight_decay, published=False),
        **scores_of(held_out, pairs=False),
        tokenizer=words,
    )
