"""python launch.py train configs/ret_clip.py --workdir runs/ret_clip --data patients.csv

RET-CLIP as published: ViT-B/16 and a BERT of base size, both eyes and one report per patient. Without --data it
learns from synthetic patients. A small model, which ten minutes on two CPU cores teach:
python launch.py train configs/ret_clip.py --preset laptop --workdir runs/ret_clip
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import optax

from data_pipelines.datasets.rfmid import rfmid
from data_pipelines.language import tokenizers
from data_pipelines.language.prompts import prompts as words
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.ret_clip import open_pairs
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.transforms.steps import Flip, Select, Squash, Tokenize, ret_clip_aug
from data_pipelines.transforms.views import PairedEyes, SingleView
from fundax.encoders.bert import BERT
from fundax.encoders.vit import ViT
from fundax.evals.laterality import Laterality
from fundax.evals.probe import Probe
from fundax.evals.zero_shot import zero_shot
from fundax.interop.ret_clip import initial
from fundax.objectives.ret_clip import MAX_LOG_SCALE, RetCLIP, ret_clip
from fundax.optim import adamw, clip_params, cosine, decay_matrices, peer_ret_clip
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval

# What --preset stands for; an argument that is given wins.
PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "batch": 256,
        "epochs": 10,
        "lr": 3e-5,
        "weight_decay": 1e-3,
        "context": 100,
        "patients": 20_000,
        "workers": 4,
        "dtype": "bfloat16",
        "remat": "full",
    },
    "laptop": {
        "batch": 64,
        "epochs": 8,
        "lr": 1e-3,
        "weight_decay": 0.1,
        "context": 96,
        "patients": 4000,
        "workers": 0,
        "dtype": "float32",
        "remat": "none",
    },
}
PRESETS["smoke"] = PRESETS["laptop"] | {"batch": 8, "epochs": 1, "context": 32, "patients": 16}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    data: str = "",
    image_dir: str = "",
    vocab: str = "",
    init: str = "",
    rfmid_root: str = "",
    size: str = "B/16",
    text_size: str = "base",
    language: Literal["en", "zh"] = "en",
    batch: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    context: int | None = None,
    patients: int | None = None,
    workers: int | None = None,
    dtype: str | None = None,
    remat: str | None = None,
    total: Literal["sum", "mean"] = "sum",
    parity: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """The published recipe: AdamW 3e-5, 50 steps of warm-up, cosine, decay 1e-3, batch 256, reports of 100 tokens.

    Args:
        preset: published, or laptop: small towers, 64 pixels and settings that two CPU cores finish in ten minutes.
        data: CSV (patient, left, right, text), S_imgs.tsv (with S_texts.jsonl), or a folder of LMDB; empty: synthetic.
        image_dir: where the CSV's paths begin; its own folder by default.
        vocab: BERT's vocab.txt, or a tokenizer's folder; empty takes the bundled English and Chinese one.
        rfmid_root: RFMiD's folder, to probe its 28 labels while training; empty probes the findings of synthetic eyes.
        init: a RET-CLIP checkpoint to start from, or a Chinese-CLIP one for its towers.
        size: of the published preset's image tower (encoders/vit.py).
        text_size: of its text tower: mini, rbt3, base or large (encoders/bert.py).
        language: of the synthetic reports and of the prompts.
        batch: patients in a step.
        epochs: passes over the data.
        lr: peak learning rate.
        weight_decay: of the parameters that decay.
        context: tokens of a report.
        patients: synthetic ones to learn from.
        workers: processes that read and augment; 0 makes each synthetic picture once, in this one.
        dtype: of matrix products.
        remat: none, dots or full: activations to compute again instead of keeping them.
        total: the loss is the sum of the three levels' (RET-CLIP) or their mean (RET-CLIP-PLUS).
        parity: negatives of one device only, each eye flipped by itself, missing eyes not honoured: the peer exactly.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    given = {"batch": batch, "epochs": epochs, "lr": lr, "weight_decay": weight_decay, "context": context}
    given |= {"patients": patients, "workers": workers, "dtype": dtype, "remat": remat}
    use = PRESETS["smoke" if smoke else preset] | {k: v for k, v in given.items() if v is not None and not smoke}
    published = preset == "published" and not smoke
    tokenizer = tokenizers.wordpiece(vocab, use["context"]) if vocab else tokenizers.bundled(use["context"])
    towers = {"dtype": use["dtype"], "remat": use["remat"]}
    objective = (
        ret_clip(size, text_size, vocab=tokenizer.vocab_size, scan=True, **towers)
        if published
        else small(tokenizer, smoke, towers)
    )
    negatives = "local" if parity else "global"
    objective = replace(objective, context=use["context"], total=total, negatives=negatives, presence=not parity)
    side = objective.image.image_size
    synthetic = Patients(n=use["patients"], seed=seed, size=side, language=language)
    unseen = replace(synthetic, n=16 if smoke else 420, start=1_000_000)
    source = open_pairs(data, image_dir) if data else synthetic if use["workers"] else CachedSource(synthetic)
    steps = 2 if smoke else max(use["epochs"] * -(-len(source) // use["batch"]), 1)
    see = ret_clip_aug(side, parity=parity) if published else (Flip(), Squash(side))
    keys = ("left", "right", "left_present", "right_present", "text")
    learn = (PairedEyes(), *see, Tokenize(tokenizer), Select(keys))
    decay = peer_ret_clip if published else decay_matrices
    return Recipe(
        objective=objective,
        train=train(source, learn, batch=use["batch"], seed=seed, workers=use["workers"]),
        optimizer=optax.chain(
            optax.identity() if published else optax.clip_by_global_norm(1.0),
            adamw(cosine(use["lr"], steps, min(50, steps // 2)), (0.9, 0.98), 1e-6, use["weight_decay"], decay),
            clip_params({"^log_scale/": (0.0, MAX_LOG_SCALE)}),
        ),
        steps=steps,
        batch=use["batch"],
        evals=evals(unseen, tokenizer, language, use["batch"]) | {"probe": probe(unseen, rfmid_root, use["batch"])},
        init_from=(initial(init, objective),) if init else (),
        intervals=Intervals(log=20, save=200, eval=200),
        best="zero_shot/macro_auc",
        seed=seed,
        preprocessing={"image_size": side, "mean": objective.mean, "std": objective.std, "resize": "squash"},
        tokenizer=tokenizer,
    )


def small(tokenizer: tokenizers.Tokenizer, smoke: bool, towers: dict[str, Any]) -> RetCLIP:
    """The laptop's towers: 64 pixels, width 128, three and two layers; of --smoke: almost nothing.

    The text is pooled by the mean of its tokens: a fresh [CLS] says nothing of them, and learns to only slowly.
    """
    width, depth, side = (32, 1, 32) if smoke else (128, 3, 64)
    heads, text_depth = width // 32, max(depth - 1, 1)
    report = BERT(tokenizer.vocab_size, 128, width, text_depth, heads, 4 * width, dropout=0.0, pool="mean", **towers)
    image = ViT(side, 8, width, depth, heads, **towers)
    return RetCLIP(image=image, text=report, embed=width, init_logit_scale=2.66)


def evals(unseen: Patients, tokenizer: tokenizers.Tokenizer, language: str, batch: int) -> dict[str, Eval]:
    """Of patients never seen: their condition from both eyes; which eye it is where one is diseased."""
    prompts = {
        level: [tokenizer(words(name, level, language)) for name in unseen.prompts(language)]
        for level in ("patient", "left", "right")
    }
    eyes = PairedEyes(text=None, targets=("label", "label_left", "label_right"))
    keep = Select(("left", "right", "label", "label_left", "label_right"))
    test = one_epoch(CachedSource(unseen), (eyes, Squash(unseen.size), keep), batch=batch)
    return {
        "zero_shot": zero_shot(test, unseen.classes, prompts["patient"], inputs=("left", "right")),
        "laterality": Laterality(data=test, prompts={side: prompts[side] for side in ("left", "right")}),
    }


def probe(unseen: Patients, rfmid_root: str, batch: int) -> Probe:
    """A linear probe of the image tower: RFMiD's 28 labels, or the findings of other synthetic eyes."""
    if rfmid_root:
        splits = {name: rfmid(rfmid_root, name) for name in ("train", "valid", "test")}
    else:
        n, start, side = unseen.n, unseen.start, unseen.size
        shown = {"train": (n, start + n), "valid": (n // 2, start + 2 * n)}
        splits = {name: CachedSource(Eyes(k, unseen.seed, first, size=side)) for name, (k, first) in shown.items()}
    label = "label" if rfmid_root else "findings"
    steps = (SingleView(text=None, targets=(label,)), Squash(unseen.size), Select(("image", label)))
    data = {name: one_epoch(source, steps, batch=batch) for name, source in splits.items()}
    test = data.get("test")
    return Probe(train=data["train"], valid=data["valid"], test=test, label=label, feature="visual")
