"""Image-text pairs: sampling weights of training sources, and evaluation data with class prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.language.conditions import CONDITIONS, PROMPTS
from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.open import Data, Sources, joined
from data_pipelines.pipeline import Data as Batches
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.records import EYE_PHRASES, MODALITIES, DataError, Source, modality_phrases
from data_pipelines.sources.splits import select
from data_pipelines.tasks.labelled import WithAttributes, attribute_names
from data_pipelines.transforms.steps import Select, Step, Tokenize
from data_pipelines.transforms.views import Grouped, SingleView, words
from data_pipelines.words import Named

_log = logging.getLogger(__name__)
Wording = Callable[[str, str], Sequence[str]]  # (name of a class, modality) -> sentences that describe it


class Test(NamedTuple):
    """Evaluation data of one held-out source; None or () if it has no texts or no classes."""

    suffix: str  # "" if there is a single source, else "_" and its name
    pairs: Batches | None  # batches of image and text
    labelled: Any  # batches of image and label; None without labels
    classes: tuple[str, ...]
    prompts: list[np.ndarray]  # prompts of each class as token ids i32 [P L]


def tests(
    data: Sources,
    parts: Mapping[str, list[Named]],
    resize: Step,
    tokenizer: Tokenizer,
    wording: Wording,
    batch: int,
    prompt: str = "{text}",
) -> list[Test]:
    """Evaluation data of each source of the evaluated part.

    `wording` gives the prompts of a class, and `prompt` is the template of the texts of the pairs. Raises DataError if
    the classes are numbers.
    """
    scored, out = data.scored(parts), []
    matches = data.matched(scored, strict=False) if isinstance(data, Data) else scored
    for (suffix, named), matched in zip(scored_names(data, parts), matches, strict=True):
        first, pairs, classified = named.source[0], None, None
        names: tuple[str, ...] = tuple(getattr(matched.source, "classes", ())) if "label" in first.targets else ()
        if first.report:
            steps = (
                SingleView(prompt=prompt, targets=(), names=data.known),
                resize,
                Tokenize(tokenizer),
                Select(("image", "text")),
            )
            pairs = one_epoch(named.source, steps, batch=batch)
        if names:
            check_words(names, named.name)
            classified = zero_shot_pass(matched.source, resize, batch, known=data.known)
        prompts = [tokenizer(list(wording(name, first.views[0].modality))) for name in names]
        out.append(Test(suffix, pairs, classified, names, prompts))
    return out


def scored_names(data: Sources, parts: Mapping[str, list[Named]]) -> list[tuple[str, Named]]:
    """The sources of the evaluated part, each with the suffix for the names of its evaluations.

    The suffix is "" for the part val of a single source.
    """
    scored, part = data.scored(parts), "_test" if data.part == "test" else ""
    return [(part + (f"_{named.name}" if len(scored) > 1 else ""), named) for named in scored]


@dataclass(frozen=True)
class Reference:
    """Add `reference` i32 [most], the token ids of the whole text, because Tokenize truncates the text."""

    tokenizer: Tokenizer
    most: int = 4096

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return example | {"reference": replace(self.tokenizer, context=self.most)([example["text"]])[0]}


def zero_shot_pass(
    source: Source, resize: Step, batch: int, workers: int = 0, known: tuple[str, ...] = MODALITIES
) -> Batches:
    """One pass over the labelled rows of a source: image, label, modality, eye, group and the attributes of the patients."""
    names, rows = attribute_names(source), known_rows(source)
    first = WithAttributes(Grouped(SingleView(text=None, names=known)), names)
    steps = (first, resize, Select(("image", "label", "group", "modality", "eye", *names)))
    return one_epoch(rows, steps, batch=batch, workers=workers)


def known_rows(source: Source) -> Source:
    """The rows of a source that have one or several labels."""
    labels = [source[row].targets.get("label", -1) for row in range(len(source))]
    known = [row for row, label in enumerate(labels) if np.ndim(label) or label >= 0]
    return source if len(known) == len(labels) else select(source, known)


def check_words(names: Sequence[str], called: str) -> None:
    """Raise DataError if a class name has no letter, because prompts need words."""
    if numbers := [name for name in names if not any(letter.isalpha() for letter in name)]:
        codes = "+".join(f"{name}:NAME" for name in names[:3]) + ("+..." if len(names) > 3 else "")
        raise DataError(
            f"{called}: its classes are {', '.join(names[:9])}, and {numbers[0]!r} cannot be used in a prompt; give names "
            f"by {called},classes={codes} or --classes {codes.replace('+', ' ')}, or omit the labels by label="
        )


def report_cut_texts(
    sources: Sequence[Named], tokenizer: Tokenizer, prompt: str = "{text}", most: int = 10_000
) -> None:
    """Warn for each source about the number of texts that are longer than the tokenizer's context and so are truncated.

    At most `most` rows, evenly spaced, are counted. Synthetic sources are skipped, because counting would render them.
    """
    for named in sources:
        if named.name == "synthetic":
            continue
        rows = range(0, len(named.source), max(-(-len(named.source) // most), 1))
        records = [named.source[row] for row in rows]
        texts = [words(record, record.views[0], "report", prompt) for record in records]
        cut = sum(_length(tokenizer, text) > tokenizer.context for text in texts)
        if cut:
            message = "%s: %d of %d texts are longer than %d tokens and are cut"
            _log.warning(message, named.name, cut, len(texts), tokenizer.context)


def shares(sources: Sequence[Named], steps: Sequence[Step], equal: bool = False) -> list[Part]:
    """The parts of a mix. A source without `weight` is weighted by its number of rows, or by 1 if `equal`."""
    rows = [len(named.source) for named in sources]
    default = [1.0 if equal else n / sum(rows) for n in rows]
    return [Part(named.source, tuple(steps), named.weight or w) for named, w in zip(sources, default, strict=True)]


def rows_of(sources: Sequence[Named]) -> int:
    """Total number of rows in all sources."""
    return sum(len(named.source) for named in sources)


def worded(prompt: str) -> Wording:
    """Class prompts from the prompt of the training texts, with the class name in place of the text."""

    def wording(name: str, modality: str) -> Sequence[str]:
        (english, chinese), (eye, eye_zh) = modality_phrases(modality), EYE_PHRASES[""]
        return [prompt.format(text=name, modality=english, modality_zh=chinese, eye=eye, eye_zh=eye_zh)]

    return wording


def templated(templates: Sequence[str], language: str = "en") -> Wording:
    """Class prompts from templates such as "{}."; synthetic conditions are named as in the synthetic reports."""

    def wording(name: str, modality: str) -> Sequence[str]:
        del modality
        known = PROMPTS[language][CONDITIONS.index(name)] if name in CONDITIONS else name
        return [template.format(known) for template in templates]

    return wording


def _length(tokenizer: Tokenizer, text: str) -> int:
    """Number of tokens of a text with its start and end token, before truncation."""
    return 2 + len(tokenizer.backend.encode(tokenizer.clean(text), add_special_tokens=False).ids)


def fingerprint(data: Data, seed: int) -> str:
    """A key for cached features of the parts of --data, assuming that image files do not change. Open the parts first."""
    settings = (data.patients, data.modalities, data.fractions, data.part, data.fold, seed, data.used)
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def by_modality(sources: Sequence[Named]) -> dict[str, Source]:
    """Group labelled sources with the same classes by modality. Raises DataError if the classes are numbers."""
    source = joined(sources)
    if not (classes := tuple(getattr(source, "classes", ()))):
        raise DataError("the classes of --data have no names; prompts need labels that are words")
    check_words(classes, sources[0].name)
    source, rows = known_rows(source), {}
    for row in range(len(source)):
        rows.setdefault(source[row].views[0].modality, []).append(row)
    return {modality: select(source, chosen) for modality, chosen in rows.items()}
