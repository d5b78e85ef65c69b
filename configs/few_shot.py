"""python launch.py train configs/few_shot.py --init runs/quickstart --workdir runs/few_shot

Few-shot classification with a pretrained image-text model and 0, 1, 2, 4, 8 and 16 labelled images per class, by logistic
regression, CLIP-Adapter and Tip-Adapter(-F). The model is not trained; its features are computed once. Training and test
images are of different patients: --data labels.csv,images=photos --split split.json
"""

from functools import partial
from typing import Any, Literal

import optax

from data_pipelines import Data, joined, one_epoch, train
from data_pipelines.language import prompts_of
from data_pipelines.sources import CachedSource
from data_pipelines.tasks.image_text import check_words, fingerprint
from data_pipelines.tasks.labelled import strata
from data_pipelines.transforms import Grouped, Select, SingleView, eval_step
from fundax import Recipe, Run, evals
from fundax.inference.image_text import image_text

METHODS = ("zero_shot", "linear", "clip_adapter", "tip_adapter", "tip_adapter_f")
RET_CLIP = {"shots": (1, 5, 10), "methods": ("zero_shot", "probe", "clip_adapter", "tip_adapter", "tip_adapter_f")}
PRESETS = {"smoke": {"steps": 0, "patients": 28, "batch": 64, "shots": (1,), "seeds": 1}, "ret_clip": RET_CLIP}


def recipe(
    *,
    preset: Literal["published", "ret_clip"] = "published",
    data: Data = Data(patients=420, fractions=(0.5, 0.5), part="test"),
    run: Run = Run(batch=64),
    init: str = "",
    level: Literal["patient", "left", "right"] = "patient",
    checkpoint: str = "",
    shots: tuple[int, ...] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    methods: tuple[str, ...] = METHODS,
    cache: str = "",
) -> Recipe:
    """FLAIR's protocol on the features of one model. Encoders of images alone (VisionFM) have no prompts."""
    model = image_text(init, checkpoint, smoke=run.smoke, encoders=True, level=level)
    eyes = data.eyes(run.seed, int(model.preprocessing["image_size"]))
    own = {"train": CachedSource(eyes.split("task_val")), "test": CachedSource(eyes.split("test"))}
    parts = data.parts(own, run.seed, strata, names=tuple(own))
    pool = joined(data.matched(parts["train"], strict=True))
    classes, modality = tuple(getattr(pool, "classes", ())), pool[0].views[0].modality
    test = joined(data.matched(data.scored(parts), strict=False, names=classes))
    check_words(classes if model.tokenizer and methods != ("linear",) else (), "--data")
    prompts = [model.tokenizer(list(prompts_of(name, modality))) for name in classes if model.tokenizer]
    view = Grouped(SingleView(text=None, targets=("label",)))
    steps = (view, eval_step(model.preprocessing), Select(("image", "label", "group", "modality")))
    passes = {"pool": one_epoch(pool, steps, batch=run.batch), "test": one_epoch(test, steps, batch=run.batch)}
    named: dict[str, Any] = {
        f"{name}_fingerprint": f"{name} of {fingerprint(data, run.seed)} {level}" for name in passes
    }
    named |= {"classes": classes, "class_features": partial(evals.class_features, prompts=prompts) if prompts else None}
    named |= dict(zip(("feature", "linear_feature"), model.features, strict=True)) | {"patient": "group"}
    methods = methods if prompts else (*(m for m in methods if m in ("linear", "probe")), "prototypes")
    return Recipe(
        **run.recipe(0, model, log=0, save=0, eval=0),
        objective=model.objective,
        train=train(pool, steps, **run.loader()),
        optimizer=optax.identity(),
        evals={"few_shot": evals.FewShot(**passes, **named, shots=shots, seeds=seeds, methods=methods, cache=cache)},
        preprocessing=model.preprocessing,
        tokenizer=model.tokenizer,
    )
