"""python launch.py train configs/keepfit.py --workdir runs/keepfit --init-text runs/keepfit_text

KeepFIT V2, stage 1: public images with categories and a few expert reports, 1:1 in every step. --data are CSV files of
FLAIR's form, --elite of MM-Retinal's; without them, synthetic eyes of three modalities. docs/methods/flair_keepfit.md
says which parts are published and which are our design.
"""

from dataclasses import replace
from typing import Literal

from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import prompts_of
from data_pipelines.open import Named, Sources
from data_pipelines.sources.cached import CachedSource
from data_pipelines.tasks import keepfit
from data_pipelines.tasks.image_text import report_cut_texts, rows_of, tests
from data_pipelines.tasks.keepfit import WithAppearance
from data_pipelines.transforms.flair import Canvas, Diagnosed
from fundax import encoders, interop, optim
from fundax.evals.retrieval import retrieval
from fundax.evals.zero_shot import zero_shot
from fundax.inference.appearance import appearance_width, looking
from fundax.objectives.flair import flair
from fundax.objectives.keepfit import KeepFIT, caption_decoder
from fundax.objectives.keepfit_reference import V1, V2
from fundax.recipe import Recipe, Run

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
    """AdamW with one epoch of warm-up and FLAIR's cosine. --appearance is a run of configs/vector_quantize.py or of a ViT."""
    words = interop.tokenizer(init, tokenizers.bundled(context), context)
    words = tokenizers.wordpiece(tokenizer, context, straight_quotes=False) if tokenizer else words
    image, text = run.compute(encoders.ResNet, encoders.BERT)
    base = flair(size, vocab=words.vocab_size, context=words.context, image=image, text=text)
    reference = {"v1": V1, "v2": replace(V2, lam=lam if appearance else 1.0), "mixed": None}[variant]
    seen = reference is not None and reference.lam < 1
    branches = {"caption": caption_decoder(size, words) if caption else None, "by_status": variant == "v2"}
    objective = KeepFIT(base, reference, appearance=appearance_width(appearance) if seen else 1, **branches)
    side = base.image.image_size
    eyes = data.eyes(run.seed, side)
    synthetic = [eyes, eyes.split("task_train", max(data.patients // 20, 4))]
    synthetic = synthetic if run.workers else list(map(CachedSource, synthetic))
    public, experts = ([Named("synthetic", Diagnosed(source))] for source in synthetic)
    few = min(max(14, data.patients // 10), 280)
    unseen = [replace(eyes.split("val", few), modalities=(name,)) for name in data.modalities]
    drawn = {"val": [Named(one.modalities[0], CachedSource(one)) for one in unseen]}
    if data.data or elite:
        parts = data.parts({}, run.seed, opener=keepfit.opened(data.data + data.val, data.image_dir), also=elite)
        read = [[one for one in parts["train"] if ("elite" in one.options) == expert] for expert in (False, True)]
        public, experts = read[0] or public, read[1] or experts
        drawn = {name: keepfit.by_category(part) for name, part in parts.items()}
        report_cut_texts(experts, words)
    both = keepfit.pairs(public, experts, words, side, run.loader(), synonyms=not data.data)
    epoch = max(rows_of(public) // run.batch, 1)
    held_out = tests(data, drawn, Canvas(side), words, prompts_of, run.batch)
    scores = {f"zero_shot{t.suffix}": zero_shot(t.labelled, t.classes, t.prompts) for t in held_out if t.labelled}
    paired = {f"retrieval{t.suffix}": retrieval(t.pairs) for t in held_out if t.pairs and (data.data or elite)}
    start = interop.warm_start(init, objective) + interop.warm_start(init_text, objective, ("text",))
    return Recipe(
        **run.recipe(run.total(epoch), start, log=50, save=500, eval=500),
        objective=objective,
        train=WithAppearance(both, looking(appearance)) if seen else both,
        optimizer=optim.flair_adamw(run.lr, steps_per_epoch=epoch, horizon=horizon, weight_decay=run.weight_decay),
        evals=scores | paired,
        best="zero_shot*/macro_auc" if scores else "retrieval*/image_to_text_R@1" if paired else None,
        tokenizer=words,
    )
