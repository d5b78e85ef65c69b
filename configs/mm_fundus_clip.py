"""python launch.py train configs/mm_fundus_clip.py --workdir runs/mm_fundus_clip --data train.csv --init WEIGHTS

MM-Fundus-CLIP fine-tunes a pretrained CLIP on photographs and their reports. The model has the size of --init. The learning
rate is constant, 1e-6 (1e-5 in the article). --preset published is DFN ViT-H/14 at 378 pixels. Several sources can be mixed:
--data csdi/labels.csv,text=text_en tfds:idrid --prompt "{modality}: {text}". Without --data, the images are synthetic eyes.
"""

import logging
from typing import Literal

from data_pipelines import Data, mix, synthetic_parts
from data_pipelines.language import bundled
from data_pipelines.tasks.image_text import report_cut_texts, rows_of, shares, tests, worded
from data_pipelines.transforms import Select, SingleView, Squash, Tokenize, extra_aug
from fundax import Recipe, Run, encoders, interop, optim
from fundax.inference.image_text import scores_of
from fundax.objectives.clip import clip, optimizer

# The published model is large, so it needs accelerators and a pretrained CLIP.
PUBLISHED = {"size": "H/14-378", "batch": 128, "dtype": "bfloat16", "remat": "full", "workers": 8, "patients": 20_000}
PRESETS = {"published": PUBLISHED}
NOISE = "without --init the model starts from random weights, but --lr 1e-6 is for a pretrained CLIP: give --init"


def recipe(
    *,
    preset: Literal["published", "laptop"] = "laptop",
    data: Data = Data(),
    run: Run = Run(epochs=10, lr=1e-6, weight_decay=0.2),
    size: str = "",
    init: str = "",
    tokenizer: str = "",
    prompt: str = "{text}",
    augment: Literal["extra", "device", "none"] = "extra",
    warmup: int = 0,
) -> Recipe:
    """The published recipe. --augment extra is its augmentation; --augment device computes colour jitter on the device."""
    if not init and not run.smoke:
        logging.getLogger("fundax").warning(NOISE)
    words = interop.tokenizer(tokenizer or init, bundled(77))
    jitter = (0.2, 0.2) if augment == "device" else (0, 0)
    model = {"vocab": words.vocab_size, "context": words.context, "jitter": jitter, "patients": True}
    deep = run.remat != "none" or clip(size or "tiny").image.depth > 12
    objective = clip(size or "tiny", scan=deep, **model, **run.compute(encoders.ViT)[0])
    objective = objective if size else interop.sized_like(init, objective)
    side = objective.image.image_size
    eyes = data.eyes(run.seed, side)
    parts = data.parts(synthetic_parts(eyes, keep=False, val=max(16, data.patients // 50)), run.seed)
    epoch = -(-rows_of(parts["train"]) // run.batch)
    see = (Squash(side),) if augment == "none" else extra_aug(side, jitter=augment == "extra")
    view = SingleView(prompt=prompt, choose="random", names=data.known)
    chain = (view, *see, Tokenize(words), Select(("image", "text", "patient")))
    report_cut_texts(parts["train"], words, prompt)
    return Recipe(
        **run.recipe(run.total(epoch), interop.warm_start(init, objective), log=32, save=epoch, eval=epoch),
        objective=objective,
        train=mix(shares(parts["train"], chain), **run.loader()),
        optimizer=optimizer(optim.constant(run.lr, warmup), run.weight_decay),
        **scores_of(tests(data, parts, Squash(side), words, worded(prompt), run.batch, prompt)),
        tokenizer=words,
    )
