"""python launch.py train configs/visit.py --workdir runs/visit

Contrastive pretraining on visits: both eyes, several modalities, reports of the visit, its eyes and its views, any of which
may be missing. --data is a table of visits; without it, synthetic visits with CFP, OCT and FFA of both eyes, on which two
CPU cores train in ten minutes. See docs/methods/visits.md.
"""

from typing import Literal

import optax

from data_pipelines.language.tokenizers import bundled
from data_pipelines.open import Data, synthetic_parts
from data_pipelines.packing import Pack
from data_pipelines.pipeline import mix
from data_pipelines.sources.modality_folders import moments
from data_pipelines.synthetic.sources import Visits
from data_pipelines.tasks.image_text import rows_of, templated
from data_pipelines.tasks.visits import parts_of_visits, visit_passes
from data_pipelines.transforms.steps import Squash
from data_pipelines.transforms.visits import VisitViews
from fundax import encoders, evals, interop, optim
from fundax.objectives.visit import visit
from fundax.recipe import Recipe, Run

TEMPLATES = ("{}.", "both eyes: {}.", "right eye: {}.", "left eye: {}.", "findings consistent with {}.")
PRESETS = {"smoke": {"patients": 24, "context": 48, "image_slots": 6, "text_slots": 9}}


def recipe(
    *,
    data: Data = Data(patients=1500, modalities=("CFP", "OCT", "FFA")),
    run: Run = Run(batch=32, steps=600, lr=1e-3, weight_decay=0.1),
    size: str = "tiny",
    init: str = "",
    tokenizer: str = "",
    context: int = 48,
    levels: tuple[str, ...] = ("visit", "eye", "view"),
    between_images: float = 1.0,
    reconstruction: float = 0.0,
    repeats: Literal["mask", "share", "negatives"] = "mask",
    views: Literal["all", "one", "pair"] = "all",
    shares: tuple[float, ...] = (),
    missing_views: float = 0.4,
    image_slots: int = 3,
    text_slots: int = 6,
) -> Recipe:
    """Terms of all levels and between the modalities of an eye; views of all modalities share one encoder."""
    words, names = interop.tokenizer(tokenizer or init, bundled(context), context), data.modalities
    weights = (*((level, 1.0) for level in levels), ("images", between_images))
    mean, std = moments(names)
    objective = visit(
        size, names, vocab=words.vocab_size, context=words.context, mean=mean, std=std, images=image_slots, texts=text_slots,
        weights=weights, repeats=repeats, reconstruction=reconstruction, **run.compute(encoders.ViT)[0],
    )  # fmt: skip
    side = objective.image.image_size
    drawn = Visits(data.patients, run.seed, modalities=names, size=side, missing=missing_views)
    parts = data.parts(synthetic_parts(drawn, keep=not run.workers, val=min(data.patients, 420)), run.seed)
    first = VisitViews(names, (Squash(side),), levels, choose=views, most=objective.most)
    passes = visit_passes(data, parts, first, words, templated(TEMPLATES), run.batch)
    steps, room = run.total(-(-rows_of(parts["train"]) // run.batch)), Pack(images=image_slots, texts=text_slots)
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=300),
        objective=objective,
        train=mix(parts_of_visits(parts["train"], first, words, shares=shares), room=room, **run.loader()),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optim.adamw(optim.cosine(run.lr, steps, min(50, steps // 2)), (0.9, 0.98), 1e-6, run.weight_decay),
            optim.clip_params({"^log_scale": (0.0, optim.MAX_LOG_SCALE)}),
        ),
        evals={name: evals.VisitScores(**arguments) for name, arguments in passes.items()},
        best="visits*/macro_auc" if any(one["classes"] for one in passes.values()) else None,
        preprocessing={"modalities": names},
        tokenizer=words,
    )
