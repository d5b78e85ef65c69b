"""python launch.py train configs/ret_clip.py --workdir runs/ret_clip --data patients.csv

RET-CLIP as published: ViT-B/16 and a BERT of base size, both eyes and one report per patient. Without --data it
learns from synthetic patients. --laptop is a small model that ten minutes on two CPU cores teach:
python launch.py train configs/ret_clip.py --laptop --workdir runs/ret_clip
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import optax

from data_pipelines import text
from data_pipelines.memory import Remembered
from data_pipelines.pipeline import once, train
from data_pipelines.ret_clip_files import open_pairs
from data_pipelines.synthetic import Patients
from data_pipelines.transforms import Flip, Keep, PairedEyes, Squash, Tokenize, ret_clip_aug
from fundax.encoders.bert import BERT
from fundax.encoders.vit import ViT
from fundax.evals.laterality import Laterality
from fundax.evals.zero_shot import zero_shot
from fundax.interop.ret_clip import chinese_clip
from fundax.objectives.ret_clip import MAX_LOG_SCALE, RetCLIP, ret_clip
from fundax.optim import adamw, clamped, cosine, decay_matrices, peer_ret_clip
from fundax.recipe import Every, Recipe

TEMPLATES = {
    "en": {
        "patient": ("{}.", "Both eyes: {}.", "Right eye: {0}. Left eye: {0}."),
        "left": ("Left eye: {}.", "In the left eye, {}.", "OS: {}."),
        "right": ("Right eye: {}.", "In the right eye, {}.", "OD: {}."),
    },
    "zh": {
        "patient": ("{}。", "双眼：{}。", "右眼：{0}。左眼：{0}。"),
        "left": ("左眼：{}。", "左眼（OS）：{}。"),
        "right": ("右眼：{}。", "右眼（OD）：{}。"),
    },
}


def recipe(
    *,
    data: str = "",
    image_dir: str = "",
    vocab: str = "",
    init: str = "",
    size: str = "B/16",
    text_size: str = "base",
    language: Literal["en", "zh"] = "en",
    batch: int = 256,
    epochs: int = 10,
    lr: float = 3e-5,
    context: int = 100,
    patients: int = 20_000,
    workers: int = 4,
    dtype: str = "bfloat16",
    remat: str = "full",
    total: Literal["sum", "mean"] = "sum",
    parity: bool = False,
    laptop: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """The published recipe: AdamW 3e-5, 50 steps of warm-up, cosine, decay 1e-3, reports of 100 tokens.

    Args:
        data: CSV (patient, left, right, text), S_imgs.tsv (with S_texts.jsonl), or a folder of LMDB; empty: synthetic.
        image_dir: where the CSV's paths begin; its own folder by default.
        vocab: BERT's vocab.txt, or a tokenizer's folder; empty takes the bundled English and Chinese one.
        init: a Chinese-CLIP or RET-CLIP checkpoint whose towers to start from.
        size: of the image tower (encoders/vit.py).
        text_size: mini, rbt3, base or large (encoders/bert.py).
        language: of the synthetic reports and of the prompts.
        batch: patients in a step.
        epochs: passes over the data.
        lr: peak learning rate.
        context: tokens of a report.
        patients: synthetic ones to learn from.
        workers: processes that read and augment.
        dtype: of matrix products.
        remat: none, dots or full: activations to recompute.
        total: the loss is the sum of the three levels' (RET-CLIP) or their mean (RET-CLIP-PLUS).
        parity: negatives of one device only, eyes flipped each by itself, the peer's decay groups.
        laptop: a small model, 64 pixels and settings for a CPU, instead of the published ones.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    if laptop:
        batch, epochs, lr, patients, context, workers = 64, 16, 1e-3, 4000, 96, 0
    if smoke:
        batch, epochs, patients, workers, context = 8, 1, 16, 0, 32
    tokenizer = text.wordpiece(vocab, context) if vocab else text.bundled(context)
    objective = small(tokenizer, smoke) if laptop or smoke else None
    if objective is None:
        objective = ret_clip(size, text_size, vocab=tokenizer.vocab_size, dtype=dtype, remat=remat, scan=True)
    negatives = "local" if parity else "global"
    objective = replace(objective, context=context, total=total, negatives=negatives, presence=not parity)
    side = objective.image.image_size
    synthetic = Patients(n=patients, seed=seed, size=side, language=language)
    source = open_pairs(data, image_dir) if data else synthetic if workers else Remembered(synthetic)
    steps = 2 if smoke else max(epochs * -(-len(source) // batch), 1)
    see = (Flip(), Squash(side)) if laptop or smoke else ret_clip_aug(side, parity=parity)
    keys = ("left", "right", "left_present", "right_present", "text")
    learn = (PairedEyes(), *see, Tokenize(tokenizer), Keep(keys))
    warmup = min(50, steps // 2)
    decay = peer_ret_clip if parity or not laptop else decay_matrices
    return Recipe(
        objective=objective,
        train=train(source, learn, batch=batch, seed=seed, workers=workers),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0) if laptop else optax.identity(),
            adamw(cosine(lr, steps, warmup), (0.9, 0.98), 1e-6, 0.1 if laptop else 1e-3, decay),
            clamped({"^log_scale/": (0.0, MAX_LOG_SCALE)}),
        ),
        steps=steps,
        batch=batch,
        evals=evals(replace(synthetic, n=16 if smoke else 420, start=1_000_000), tokenizer, language, batch),
        init_from=(chinese_clip(init),) if init else (),
        every=Every(log=20, save=250, eval=250),
        best="zero_shot/macro_auc",
        seed=seed,
        preprocessing={"image_size": side, "mean": objective.mean, "std": objective.std, "resize": "squash"},
        tokenizer=tokenizer,
    )


def small(tokenizer: text.Tokenizer, smoke: bool) -> RetCLIP:
    """The towers of --laptop: 64 pixels, width 128; of --smoke: almost nothing."""
    width, depth, side = (32, 1, 32) if smoke else (128, 4, 64)
    report = BERT(tokenizer.vocab_size, 128, width, max(depth // 2, 1), width // 32, 4 * width, dropout=0.0)
    return RetCLIP(image=ViT(side, 8, width, depth, width // 32), text=report, embed=width, init_logit_scale=2.66)


def evals(unseen: Patients, tokenizer: text.Tokenizer, language: str, batch: int) -> dict:
    """Conditions of patients never seen, from both eyes; and which eye it is where one is diseased."""
    said, words = TEMPLATES[language], unseen.prompts(language)
    prompts = {level: [tokenizer([t.format(w) for t in said[level]]) for w in words] for level in said}
    eyes = PairedEyes(text=None, targets=("label", "label_left", "label_right"))
    keys = ("left", "right", "label", "label_left", "label_right")
    test = once(Remembered(unseen), (eyes, Squash(unseen.size), Keep(keys)), batch=batch)
    return {
        "zero_shot": zero_shot(test, unseen.classes, prompts["patient"], inputs=("left", "right")),
        "laterality": Laterality(data=test, prompts={side: prompts[side] for side in ("left", "right")}),
    }
