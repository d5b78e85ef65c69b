"""python launch.py train configs/keepfit_text.py --workdir runs/keepfit_text

Stage 0 of KeepFIT V2: the text tower learns words before it meets images. Whole words are hidden in what the knowledge
base says, and in --texts and the captions of --elite where given. Stage 1: configs/keepfit.py --init-text runs/keepfit_text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax

from data_pipelines.language import knowledge, tokenizers
from data_pipelines.pipeline import mix, one_epoch
from data_pipelines.sources.flair import mm_retinal
from data_pipelines.sources.texts import Captions, TextFiles, Words, descriptions
from data_pipelines.transforms.steps import Select, Tokenize
from data_pipelines.transforms.word_masks import MaskWords
from fundax.encoders.bert import BERT, bert
from fundax.evals.masked_text import masked_words
from fundax.interop.load import text_from
from fundax.objectives.flair import POOL_LAYERS
from fundax.objectives.masked_text import MaskedText
from fundax.optim import adamw, cosine
from fundax.recipe import Intervals, Recipe


def recipe(
    *,
    texts: tuple[str, ...] = (),
    elite: tuple[str, ...] = (),
    language: Literal["en", "zh"] = "en",
    vocab: str = "",
    init: str = "",
    preset: Literal["published", "laptop"] = "laptop",
    batch: int = 32,
    steps: int = 1200,
    lr: float = 0.0,
    rate: float = 0.15,
    context: int = 0,
    eval_every: int = 200,
    workers: int = 0,
    seed: int = 0,
    smoke: bool = False,
) -> Recipe:
    """Masked words; AdamW (0.9, 0.98), decay 0.01, a tenth of warm-up and a cosine. The best held-out step is kept.

    Args:
        texts: .txt files or folders of them, paragraphs parted by blank lines.
        elite: CSVs of MM-Retinal's forms, for their captions.
        language: of those captions.
        vocab: BERT's vocab.txt (Bio_ClinicalBERT's), or a tokenizer's folder; empty takes the bundled vocabulary.
        init: a BERT to start from, with the ids of `vocab`: a .safetensors or .bin file, its folder, or a run.
        preset: published, a tower of base size at 5e-5 and 256 tokens; laptop, a small one at 1e-3 and 48.
        batch: texts in a step.
        steps: optimizer steps.
        lr: peak learning rate; 0 takes the preset's.
        rate: share of the pieces that are hidden.
        context: tokens of a text; 0 takes the preset's.
        eval_every: steps between evaluations on what is held out.
        workers: processes that hide words.
        seed: of everything random.
        smoke: two steps of almost nothing.
    """
    small = smoke or preset == "laptop"
    if smoke:
        batch, steps, eval_every = 8, 2, 2
    context = context or (32 if smoke else 48 if small else 256)
    tokenizer = tokenizers.wordpiece(vocab, context, straight_quotes=False) if vocab else tokenizers.bundled(context)
    known = knowledge.bundled()
    sources: list[Any] = [descriptions(known, languages=("en", language))]
    sources += [TextFiles(Path(path)) for path in texts]
    sources += [Captions(mm_retinal(path, ".", language=language)) for path in elite]
    mask = MaskWords(tokenizer, rate)
    hide = (Words(), Tokenize(tokenizer), mask, Select(("text", "original", "hidden")))
    held_out = one_epoch(descriptions(known, evaluate=True), hide, batch=batch)
    # no more than that are hidden: the share, or one word, which has at most mask.longest pieces
    guesses = min(max(round(rate * context), mask.longest), context)
    objective = MaskedText(_tower(smoke, small, tokenizer), context, guesses)
    return Recipe(
        objective=objective,
        # a source is drawn from by its number of texts; the knowledge base alone is one
        train=mix([(source, hide, float(len(source))) for source in sources], batch=batch, seed=seed, workers=workers),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            adamw(cosine(lr or (1e-3 if small else 5e-5), steps, warmup=max(steps // 10, 1)), (0.9, 0.98),
                  weight_decay=0.01),
        ),
        init_from=(text_from(init, objective.text),) if init else (),
        steps=steps,
        batch=batch,
        evals={"masked": masked_words(held_out, lambda: _counts(sources, tokenizer))},
        intervals=Intervals(log=50, save=eval_every, eval=eval_every),
        best="masked/below_unigram",
        seed=seed,
        tokenizer=tokenizer,
    )  # fmt: skip


def _tower(smoke: bool, small: bool, tokenizer: tokenizers.Tokenizer) -> BERT:
    """FLAIR's and KeepFIT's text tower; pooling plays no part here, but the run keeps the tower whole."""
    fields: dict[str, Any] = {"vocab": tokenizer.vocab_size, "pool": "mean", "pool_layers": POOL_LAYERS}
    if smoke:
        return BERT(**fields, context=32, width=16, depth=2, heads=2, hidden=16)
    return BERT(**fields, context=77, width=128, depth=4, heads=4, hidden=256) if small else bert("base", **fields)


def _counts(sources: list[Any], tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """How often each id occurs in the training texts, i64 [V]; start, end and padding are never guessed."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for source in sources:
        for row in range(len(source)):
            counts += np.bincount(tokenizer([source[row].report])[0], minlength=len(counts))
    counts[[tokenizer.start, tokenizer.end, tokenizer.pad]] = 0
    return counts
