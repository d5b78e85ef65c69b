"""python launch.py train configs/keepfit.py --workdir runs/keepfit --init-text runs/keepfit_text

KeepFIT V2, stage 1: public images with categories and a few expert reports, 1:1 in every batch. --data are CSV files in
FLAIR's format, --elite in MM-Retinal's; without them, the images are synthetic eyes of three modalities.
docs/methods/flair_keepfit.md lists the parts that are published and the parts that are our design.
"""

from dataclasses import replace
from typing import Any, Literal

from data_pipelines import Sources
from data_pipelines.language import prompts_of, tokenizers
from data_pipelines.tasks import keepfit
from data_pipelines.tasks.image_text import report_cut_texts, rows_of, tests
from data_pipelines.transforms import Canvas
from fundax import Recipe, Run, encoders, inference, interop, objectives, optim
from fundax.inference.image_text import scores_of
from fundax.objectives.flair import flair
from fundax.objectives.keepfit import caption_decoder
from fundax.objectives.keepfit_reference import V1, V2

SMOKE = {"patients": 20, "modalities": ("CFP", "FFA"), "caption": True}
PRESETS = {"published": {"size": "base", "context": 256, "dtype": "bfloat16"}, "smoke": SMOKE}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "laptop",
    data: Sources = Sources(modalities=("CFP", "FFA", "OCT")),
    run: Run = Run(batch=48, epochs=25, lr=1e-4, weight_decay=1e-5),
    elite: tuple[str, ...] = (),
    size: str = "tiny",
    init: str = "",
    init_text: str = "",
    tokenizer: str = "",
    context: int = 48,
    appearance: str = "",
    variant: Literal["v2", "v1", "mixed"] = "v2",
    lam: float = 0.5,
    caption: bool = False,
    horizon: int = 100,
) -> Recipe:
    """AdamW with an epoch of warm-up and FLAIR's cosine. --appearance is a run of configs/vector_quantize.py or of a ViT."""
    words = interop.tokenizer(init, tokenizers.bundled(context), context)
    words = tokenizers.wordpiece(tokenizer, context, straight_quotes=False) if tokenizer else words
    image, text = run.compute(encoders.ResNet, encoders.BERT)
    base = flair(size, vocab=words.vocab_size, context=words.context, image=image, text=text, patients=True)
    reference = {"v1": V1, "v2": replace(V2, lam=lam if appearance else 1.0), "mixed": None}[variant]
    seen = reference is not None and reference.lam < 1
    branches: dict[str, Any] = {
        "caption": caption_decoder(size, words) if caption else None,
        "by_status": variant == "v2",
    }
    branches["appearance"] = inference.appearance_width(appearance) if seen else 1
    objective = objectives.KeepFIT(base, reference, **branches)
    side = base.image.image_size
    eyes = data.eyes(run.seed, side)
    public, experts, held_out = keepfit.sources(data, elite, eyes, run.seed, keep=not run.workers)
    report_cut_texts(experts, words)
    both = keepfit.pairs(public, experts, words, side, run.loader(), synonyms=not data.data)
    epoch = max(rows_of(public) // run.batch, 1)
    found = tests(data, held_out, Canvas(side), words, prompts_of, run.batch)
    start = interop.warm_start(init, objective) + interop.warm_start(init_text, objective, ("text",))
    return Recipe(
        **run.recipe(run.total(epoch), start, log=50, save=500, eval=500),
        objective=objective,
        train=keepfit.WithAppearance(both, inference.looking(appearance)) if seen else both,
        optimizer=optim.flair_adamw(run.lr, steps_per_epoch=epoch, horizon=horizon, weight_decay=run.weight_decay),
        **scores_of(found, pairs=bool(data.data or elite)),
        tokenizer=words,
    )
