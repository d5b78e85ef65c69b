"""Image-text pairs: their share of a mix, the tests on images held out, and the tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.language import tokenizers
from data_pipelines.language.conditions import CONDITIONS, PROMPTS
from data_pipelines.open import Named
from data_pipelines.pipeline import Data, Part, one_epoch
from data_pipelines.records import EYE_PHRASES, PHRASES, DataError
from data_pipelines.transforms.steps import Select, Step, Tokenize
from data_pipelines.transforms.views import SingleView

Wording = Callable[[str, str], Sequence[str]]  # (name of a class, modality) -> sentences that describe it


class Test(NamedTuple):
    """What one source held out can be tested on; None or () where it has no texts or no classes."""

    suffix: str  # "" of a single source, else "_" and its name
    pairs: Data | None  # batches of image and text
    labelled: Data | None  # batches of image and label
    classes: tuple[str, ...]
    prompts: list[np.ndarray]  # token ids i32 [P L] of each class


def tests(
    parts: Sequence[Named],
    resize: Step,
    tokenizer: tokenizers.Tokenizer,
    wording: Wording,
    batch: int,
    prompt: str = "{text}",
) -> list[Test]:
    """The tests on each of the sources. `wording` describes classes, `prompt` words the texts of the pairs."""
    found = []
    for part in parts:
        suffix, first = "" if len(parts) == 1 else f"_{part.name}", part.source[0]
        pairs = labelled = None
        names: tuple[str, ...] = tuple(getattr(part.source, "classes", ())) if "label" in first.targets else ()
        if first.report:
            steps = (SingleView(prompt=prompt, targets=()), resize, Tokenize(tokenizer), Select(("image", "text")))
            pairs = one_epoch(part.source, steps, batch=batch)
        if names:
            steps = (SingleView(text=None), resize, Select(("image", "label")))
            labelled = one_epoch(part.source, steps, batch=batch)
        prompts = [tokenizer(list(wording(name, first.views[0].modality))) for name in names]
        found.append(Test(suffix, pairs, labelled, names, prompts))
    return found


def shares(sources: Sequence[Named], steps: Sequence[Step], equal: bool = False) -> list[Part]:
    """The parts of a mix: each source by its `weight`, else by its number of rows, or all equally often."""
    rows = [len(one.source) for one in sources]
    default = [1.0 if equal else n / sum(rows) for n in rows]
    return [Part(one.source, tuple(steps), one.weight or w) for one, w in zip(sources, default, strict=True)]


def rows_of(sources: Sequence[Named]) -> int:
    """Number of images of all sources together."""
    return sum(len(one.source) for one in sources)


def worded(prompt: str) -> Wording:
    """Classes described by the prompt of the training texts, with the name of the class for the text."""

    def wording(name: str, modality: str) -> Sequence[str]:
        (english, chinese), (eye, eye_zh) = PHRASES[modality], EYE_PHRASES[""]
        return [prompt.format(text=name, modality=english, modality_zh=chinese, eye=eye, eye_zh=eye_zh)]

    return wording


def templated(templates: Sequence[str], language: str = "en") -> Wording:
    """Classes described by templates such as "{}."; a synthetic condition is named as the synthetic reports name it."""

    def wording(name: str, modality: str) -> Sequence[str]:
        del modality
        known = PROMPTS[language][CONDITIONS.index(name)] if name in CONDITIONS else name
        return [template.format(known) for template in templates]

    return wording


def tokenizer_of(tokenizer: str, init: str, context: int = 77, **fields: bool) -> tokenizers.Tokenizer:
    """The tokenizer named by a path, else that of the checkpoint `init`, else the built-in one of `context` tokens.

    A path is a folder, BERT's vocab.txt or OpenAI's merges file; `fields` are those of a WordPiece tokenizer. Raises
    DataError for a checkpoint without a tokenizer: weights cannot read the token ids of another one.
    """
    if tokenizer:
        if (Path(tokenizer) / "tokenizer_config.json").is_file():
            return tokenizers.load(tokenizer)
        is_wordpiece = Path(tokenizer).is_dir() or Path(tokenizer).suffix == ".txt"
        return tokenizers.wordpiece(tokenizer, context, **fields) if is_wordpiece else tokenizers.clip_bpe(tokenizer)
    if not init:
        return tokenizers.bundled(context)
    for folder in (Path(init), Path(init).parent, Path(init) / "tokenizer"):
        if (folder / "tokenizer_config.json").is_file():
            return tokenizers.load(folder)
    raise DataError(f"{init} has no tokenizer; name the one of its weights with --tokenizer")
