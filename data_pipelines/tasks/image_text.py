"""Image-text pairs: sampling weights of training sources, and evaluation data with class prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.language.conditions import CONDITIONS, PROMPTS
from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.open import Data, Named
from data_pipelines.pipeline import Data as Batches
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.records import EYE_PHRASES, PHRASES, DataError, Source
from data_pipelines.sources.splits import select
from data_pipelines.transforms.steps import Select, Step, Tokenize
from data_pipelines.transforms.views import SingleView

Wording = Callable[[str, str], Sequence[str]]  # (name of a class, modality) -> sentences that describe it


class Test(NamedTuple):
    """Evaluation data of one held-out source; None or () if it has no texts or no classes."""

    suffix: str  # "" if there is a single source, else "_" and its name
    pairs: Batches | None  # batches of image and text
    labelled: Any  # batches of image and label; None without labels
    classes: tuple[str, ...]
    prompts: list[np.ndarray]  # prompts of each class as token ids i32 [P L]


def tests(
    parts: Sequence[Named],
    resize: Step,
    tokenizer: Tokenizer,
    wording: Wording,
    batch: int,
    prompt: str = "{text}",
) -> list[Test]:
    """Evaluation data of each source. `wording` gives the prompts of a class; `prompt` formats the texts of the pairs."""
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
    """The parts of a mix, weighted by `weight`; without it, by the number of rows, or equally if `equal`."""
    rows = [len(one.source) for one in sources]
    default = [1.0 if equal else n / sum(rows) for n in rows]
    return [Part(one.source, tuple(steps), one.weight or w) for one, w in zip(sources, default, strict=True)]


def rows_of(sources: Sequence[Named]) -> int:
    """Total number of rows in all sources."""
    return sum(len(one.source) for one in sources)


def worded(prompt: str) -> Wording:
    """Class prompts from the prompt of the training texts, with the class name in place of the text."""

    def wording(name: str, modality: str) -> Sequence[str]:
        (english, chinese), (eye, eye_zh) = PHRASES[modality], EYE_PHRASES[""]
        return [prompt.format(text=name, modality=english, modality_zh=chinese, eye=eye, eye_zh=eye_zh)]

    return wording


def templated(templates: Sequence[str], language: str = "en") -> Wording:
    """Class prompts from templates such as "{}."; synthetic conditions have their names in the synthetic reports."""

    def wording(name: str, modality: str) -> Sequence[str]:
        del modality
        known = PROMPTS[language][CONDITIONS.index(name)] if name in CONDITIONS else name
        return [template.format(known) for template in templates]

    return wording


def fingerprint(data: Data, seed: int) -> str:
    """A key for cached features of the images of --data; "" if they cannot be identified.

    It contains digests of the CSV and of the split file. Image files are assumed not to change.
    """
    words = data.data or ("synthetic",)
    tables = [Path(word.split(",")[0]) for word in data.data]
    if not all(table.is_file() for table in tables):
        return ""
    files = [path for path in (*tables, Path(data.split)) if path.is_file()]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return " ".join((*words, str(data.patients), str(seed), *digests))


def by_modality(source: Source) -> dict[str, Source]:
    """Divide a labelled source by modality. Raises DataError if classes have no names or a row has no label."""
    if not getattr(source, "classes", ()):
        raise DataError("the classes of --data have no names, which prompts need; expected labels as words")
    rows: dict[str, list[int]] = {}
    for row in range(len(source)):
        record = source[row]
        if "label" not in record.targets:
            raise DataError(f"{record.where or f'row {row + 1}'}: has no label")
        rows.setdefault(record.views[0].modality, []).append(row)
    return {modality: select(source, chosen) for modality, chosen in rows.items()}
