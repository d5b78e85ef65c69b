"""python launch.py train configs/mm_fundus_clip.py --workdir runs/mm_fundus_clip --data train.csv --init WEIGHTS

MM-Fundus-CLIP as published: DFN ViT-H/14 at 378 pixels, tuned on photographs and their reports at a constant 1e-6
(its article says 1e-5: --lr 1e-5). Several sources mix: --data csdi/labels.csv,text=text_en tfds:idrid tfds:kermany_oct
--prompt "{modality}: {text}" (data_pipelines/open.py has the words). Without --data: synthetic eyes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import optax

from data_pipelines.language import tokenizers
from data_pipelines.open import DATA_DIR, Named, named
from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.records import EYE_PHRASES, PHRASES, Source
from data_pipelines.sources.splits import split_by
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Squash, Tokenize, extra_aug
from data_pipelines.transforms.views import SingleView
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT, size_named
from fundax.evals.retrieval import retrieval
from fundax.evals.zero_shot import zero_shot
from fundax.interop.load import init_from
from fundax.objectives.clip import CLIP, clip
from fundax.optim import adamw, clip_params, constant, peer_open_clip
from fundax.recipe import Intervals, Recipe
from fundax.types import Eval, UserError


def recipe(
    *,
    data: tuple[str, ...] = (),
    val: tuple[str, ...] = (),
    val_fraction: float = 0.1,
    image_dir: str = "",
    image_column: str = "image",
    text_column: str = "text",
    separator: str = ",",
    data_dir: str = DATA_DIR,
    prompt: str = "{text}",
    size: str = "H/14-378",
    init: str = "",
    tokenizer: str = "",
    batch: int = 128,
    accumulate: int = 1,
    epochs: int = 10,
    steps: int = 0,
    lr: float = 1e-6,
    weight_decay: float = 0.2,
    warmup: int = 0,
    aug: Literal["extra", "device", "none"] = "extra",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    remat: Literal["full", "dots", "none"] = "full",
    attention: Literal["plain", "xla", "cudnn"] = "plain",
    fsdp: int = 1,
    model_axis: int = 1,
    workers: int = 8,
    on_bad_image: Literal["error", "skip"] = "error",
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """The published recipe; only what changes needs saying.

    Args:
        data: sources to learn from: CSV files, image folders, tfds:NAME, synthetic; options after commas.
        val: sources to evaluate on; without them, patients held out of `data`.
        val_fraction: share of the patients held out where there is no `val`.
        image_dir: where the image paths of a CSV begin; its own folder by default.
        image_column: of a CSV that does not say image=.
        text_column: of a CSV that does not say text=.
        separator: of a CSV that does not say sep=; "tab" for a tab.
        data_dir: where `launch.py data build` wrote its data sets.
        prompt: how a text is worded, with {text}, {modality}, {eye} and {modality_zh}, {eye_zh}.
        size: of both towers: H/14-378, L/14, B/16, S/16, ... (encoders/vit.py).
        init: an open_clip or Hugging Face CLIP folder or file, or a run, to start from.
        tokenizer: its folder or OpenAI's merges file; by default that of `init`, else the bundled one.
        batch: pairs in a step.
        accumulate: micro-batches a step is computed in; all negatives are kept.
        epochs: passes over the data.
        steps: instead of epochs.
        lr: learning rate after warm-up.
        weight_decay: on matrices and embeddings.
        warmup: steps.
        aug: the published extra augmentation, the same with its jitter on the device, or none.
        dtype: of matrix products; parameters and losses are float32.
        remat: what to compute again instead of keeping.
        attention: how it is computed; cudnn needs an NVIDIA GPU.
        fsdp: devices that split parameters and optimizer state among them.
        model_axis: devices that share the heads and hidden units of one copy.
        workers: processes that read images.
        on_bad_image: stop at an unreadable image, or skip and list it.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    if smoke:
        batch, steps, workers, dtype, data = 8, 2, 0, "float32", data or ("synthetic,n=32,size=32",)
    defaults = {"image": image_column, "text": text_column, "images": image_dir, "sep": separator}
    words = tokenizer_for(tokenizer, init)
    objective = tiny(words) if smoke else clip(
        size, vocab=words.vocab_size, context=words.context, dtype=dtype, remat=remat, attention=attention,
        scan=remat != "none" or size_named(size).depth > 12)  # fmt: skip
    side, objective = objective.image.image_size, replace(objective, jitter=(0.2, 0.2) if aug == "device" else (0, 0))
    parts = [named(word, defaults, data_dir) for word in data or (f"synthetic,n=20000,size={side}",)]
    learn, held_out = split(parts, [named(word, defaults, data_dir) for word in val], val_fraction, seed)
    rows = [len(part.source) for part in learn]
    weights = [part.weight or n / sum(rows) for part, n in zip(learn, rows, strict=True)]
    epoch = -(-sum(rows) // batch)
    steps = steps or epochs * epoch
    see = (Squash(side),) if aug == "none" else extra_aug(side, jitter=aug == "extra")
    chain = (SingleView(size_hint=None, prompt=prompt), *see, Tokenize(words), Select(("image", "text")))
    evals = evaluations(held_out, words, prompt, side, batch)
    best = next((f"{name}/macro_auc" for name in evals if name.startswith("zero_shot")), "retrieval/image_to_text_R@1")
    return Recipe(
        objective=objective,
        train=mix([(part.source, chain, w) for part, w in zip(learn, weights, strict=True)], batch=batch, seed=seed,
                  workers=workers, on_bad_image=on_bad_image),
        optimizer=optax.chain(
            adamw(constant(lr, warmup), (0.9, 0.95), 1e-6, weight_decay, peer_open_clip),
            clip_params({"^log_scale": (0.0, 4.605170185988092)}),
        ),
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        evals=evals,
        init_from=(init_from(init, objective),) if init else (),
        mesh=(-1, fsdp, model_axis),
        intervals=Intervals(log=32, save=epoch, eval=epoch),
        best=best if evals else None,
        seed=seed,
        preprocessing={"image_size": side, "mean": objective.mean, "std": objective.std, "resize": "squash",
                       "interpolation": "bicubic"},
        tokenizer=words,
    )  # fmt: skip


def tokenizer_for(tokenizer: str, init: str) -> tokenizers.Tokenizer:
    """The tokenizer asked for, else that of the weights, else the bundled one: weights read no other's ids."""
    if tokenizer:
        return (
            tokenizers.load(tokenizer)
            if (Path(tokenizer) / "tokenizer_config.json").is_file()
            else tokenizers.clip_bpe(tokenizer)
        )
    if not init:
        return tokenizers.bundled(77)
    for folder in (Path(init), Path(init).parent, Path(init) / "tokenizer"):
        if (folder / "tokenizer_config.json").is_file():
            return tokenizers.load(folder)
    raise UserError(f"{init} holds no tokenizer; give --tokenizer with the merges file or folder its ids come from")


def tiny(words: tokenizers.Tokenizer) -> CLIP:
    """The model of --smoke."""
    return CLIP(ViT(32, 8, 32, 1, 2), TextTransformer(words.vocab_size, words.context, 32, 1, 2), embed=32)


def split(parts: list[Named], val: list[Named], fraction: float, seed: int) -> tuple[list[Named], list[Named]]:
    """Sources to learn from and to evaluate on; no patient is in both unless `val` says so."""
    if val or not fraction:
        return parts, val
    learn, held_out = [], []
    for part in parts:
        if isinstance(part.source, Eyes):
            more = Eyes(
                n=max(16, len(part.source) // 50), seed=part.source.seed, start=1_000_000, size=part.source.size
            )
            two: tuple[Source, Source] = part.source, more
        else:
            cut = split_by(part.source, "patient", {"train": 1 - fraction, "val": fraction}, seed)
            two = cut["train"], cut["val"]
        learn.append(Named(part.name, two[0], part.weight))
        held_out.append(Named(part.name, two[1]))
    return learn, held_out


def evaluations(parts: list[Named], words: tokenizers.Tokenizer, prompt: str, side: int, batch: int) -> dict[str, Eval]:
    """Retrieval where there are texts and zero-shot classification where there are classes, by source."""
    evals: dict[str, Eval] = {}
    for part in parts:
        end = "" if len(parts) == 1 else f"_{part.name}"
        first = part.source[0]
        classes: tuple[str, ...] = getattr(part.source, "classes", ())
        if first.report:
            chain = (SingleView(prompt=prompt, targets=()), Squash(side), Tokenize(words), Select(("image", "text")))
            evals[f"retrieval{end}"] = retrieval(one_epoch(part.source, chain, batch=batch))
        if classes and "label" in first.targets:
            chain = (SingleView(text=None), Squash(side), Select(("image", "label")))
            (english, chinese), (eye, eye_zh) = PHRASES[first.views[0].modality], EYE_PHRASES[""]
            said: list[str] = [
                prompt.format(text=name, modality=english, modality_zh=chinese, eye=eye, eye_zh=eye_zh)
                for name in classes
            ]
            prompts = [words([sentence]) for sentence in said]
            evals[f"zero_shot{end}"] = zero_shot(one_epoch(part.source, chain, batch=batch), classes, prompts)
    return evals
