"""python launch.py train configs/zero_shot.py --init runs/quickstart --workdir runs/zero_shot --data labels.csv,images=photos

Zero-shot classification of labelled images by an image-text model, without training. Each class is described by prompts from
expert knowledge, for the modality of the images. Without --data, the images are synthetic eyes that no training uses.
"""

from typing import Any

import optax

from data_pipelines import Data, train
from data_pipelines.language import prompts_of
from data_pipelines.sources import CachedSource
from data_pipelines.tasks.image_text import by_modality, zero_shot_pass
from data_pipelines.tasks.labelled import strata
from data_pipelines.transforms import Select, SingleView, eval_step
from fundax import Recipe, Run
from fundax.evals.zero_shot import zero_shot
from fundax.inference.image_text import image_text

PRESETS = {"smoke": {"steps": 0, "patients": 28, "batch": 64}}


def recipe(
    *,
    data: Data = Data(patients=420, fractions=(0.7, 0.15, 0.15), part="all"),
    run: Run = Run(batch=64),
    init: str = "",
    checkpoint: str = "",
    wording: str = "",
    parity: bool = False,
) -> Recipe:
    """Zero-shot classification, with an evaluation for each modality, on all images of --data or those of --part."""
    model = image_text(init, checkpoint, smoke=run.smoke)
    eyes = data.eyes(run.seed, int(model.preprocessing["image_size"])).split("test")
    sources: dict[str, Any] = {
        name: CachedSource(type(eyes)(eyes.n, eyes.seed, eyes.start, (name,), eyes.size)) for name in data.modalities
    }
    if data.data:
        sources = by_modality(data.matched(data.scored(data.parts({}, run.seed, strata)), strict=False))
    steps = (SingleView(text=None), eval_step(model.preprocessing), Select(("image", "label")))
    evals = {}
    for modality, source in sources.items():
        name = "zero_shot" if len(sources) == 1 else f"zero_shot_{modality.lower()}"
        prompts = [model.tokenizer(list(prompts_of(label, modality, wording))) for label in source.classes]
        passes = zero_shot_pass(source, steps[1], run.batch, run.workers)
        evals[name] = zero_shot(passes, source.classes, prompts, parity=parity)
    return Recipe(
        **run.recipe(0, model, log=0, save=0, eval=0),
        objective=model.objective,
        train=train(next(iter(sources.values())), steps, **run.loader()),
        optimizer=optax.identity(),
        evals=evals,
        preprocessing=model.preprocessing,
        tokenizer=model.tokenizer,
    )
