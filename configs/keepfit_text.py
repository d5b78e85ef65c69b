"""python launch.py train configs/keepfit_text.py --workdir runs/keepfit_text

Stage 0 of KeepFIT V2: the text encoder is trained to predict masked words in the descriptions of the knowledge base and, if
given, in --texts and the captions of --elite. Stage 1 is configs/keepfit.py --init-text runs/keepfit_text.
"""

from pathlib import Path
from typing import Literal

from data_pipelines import mix, one_epoch
from data_pipelines.language import knowledge, tokenizers
from data_pipelines.open import Named
from data_pipelines.sources import split_by
from data_pipelines.sources.parts import joint
from data_pipelines.sources.texts import Captions, TextFiles, Words, descriptions
from data_pipelines.tasks import keepfit
from data_pipelines.tasks.image_text import report_cut_texts, shares
from data_pipelines.transforms import MaskWords, Select, Tokenize
from fundax import Recipe, Run, encoders, evals, interop, objectives, optim
from fundax.objectives.flair import text_encoder

PRESETS = {"published": {"size": "base", "context": 256, "lr": 5e-5}}


def recipe(
    *,
    preset: Literal["published", "laptop"] = "laptop",
    run: Run = Run(batch=32, steps=1200, lr=1e-3, weight_decay=0.01),
    texts: tuple[str, ...] = (),
    elite: tuple[str, ...] = (),
    language: Literal["en", "zh"] = "en",
    size: str = "tiny",
    init: str = "",
    tokenizer: str = "",
    context: int = 48,
    text_rate: float = 0.15,
) -> Recipe:
    """Masked language modelling: AdamW, warm-up for a tenth of the steps, cosine decay. Held-out texts select the step."""
    words = interop.tokenizer(init, tokenizers.bundled(context), context)
    words = tokenizers.wordpiece(tokenizer, context, straight_quotes=False) if tokenizer else words
    known = knowledge.bundled()
    own = [TextFiles(Path(path)) for path in texts]
    own += [Captions(named.source) for named in keepfit.elite(elite, language=language)]
    parts = [split_by(source, "report", {"train": 0.9, "val": 0.1}, run.seed) for source in own]
    sources = [descriptions(known, languages=("en", language)), *(part["train"] for part in parts)]
    unseen = joint([part["val"] for part in parts]) if parts else descriptions(known, evaluate=True)
    report_cut_texts([Named("texts", source) for source in own], words)
    mask = MaskWords(words, text_rate)
    hide = (Words(), Tokenize(words), mask, Select(("text", "original", "hidden")))
    held_out = one_epoch(unseen, hide, batch=run.batch)
    # The maximum number of masked tokens: the fraction text_rate, or a single word of at most mask.longest tokens.
    guesses = min(max(round(text_rate * context), mask.longest), context)
    encoder = text_encoder(size, words.vocab_size, **run.compute(encoders.BERT)[0])
    objective = objectives.MaskedText(encoder, words.context, guesses)
    steps = run.total(max(sum(map(len, sources)) // run.batch, 1))
    rate = optim.cosine(run.lr, steps, warmup=max(steps // 10, 1))
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective, ("text",)), log=50, save=200, eval=200),
        objective=objective,
        train=mix(shares([Named("texts", source) for source in sources], hide), **run.loader()),
        optimizer=optim.adamw(rate, (0.9, 0.98), weight_decay=run.weight_decay, clip=1.0),
        evals={"masked": evals.masked_words(held_out, lambda: keepfit.id_counts(sources, words))},
        best="masked/below_unigram",
        tokenizer=words,
    )
