"""Sources of text alone: files, the captions of another source, and what the knowledge base says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.language.knowledge import Knowledge
from data_pipelines.records import DataError, Record, Source, text_hash
from data_pipelines.sources.columns import read_once

REPEATS = 4


_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Corpus:
    """A text per row, named by where it comes from; `patient` is the text itself, so that a split keeps equals together."""

    texts: tuple[str, ...]
    where: str = "corpus"

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError(f"{self.where}: has no texts")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Record:
        text = self.texts[index]
        return Record(text, (), text, where=f"{self.where} text {index + 1}")


@dataclass(frozen=True)
class TextFiles:
    """The paragraphs of a .txt file in UTF-8, or of all such files of a folder; a blank line parts two paragraphs.

    Building opens nothing. Raises DataError naming the file at the first use.
    """

    path: Path

    @read_once
    def corpus(self) -> Corpus:
        """What the files hold."""
        files = sorted(self.path.rglob("*.txt")) if self.path.is_dir() else [self.path]
        if not files:
            raise DataError(f"{self.path}: expected .txt files in the folder")
        return Corpus(tuple(text for file in files for text in _paragraphs(file)), str(self.path))

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Record:
        return self.corpus[index]


@dataclass(frozen=True)
class Captions:
    """The reports of another source, whose images stay closed."""

    source: Source | Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        if not record.report:
            raise DataError(f"{record.where or record.patient}: has no caption to learn words from")
        return Record(record.report, (), record.report, where=record.where)


def descriptions(
    known: Knowledge, held_out: float = 0.1, *, evaluate: bool = False, languages: Any = ("en",)
) -> Corpus:
    """What the knowledge base says, without the part that is held out for evaluation; or, with `evaluate`, that part.

    Held out are descriptions, by a hash of their words, so that more knowledge moves none of them. Names, synonyms,
    abbreviations, places and prompts are facts to learn and all in the part for training. A text held out comes REPEATS
    times, as other words are hidden in it every time.
    """
    said = [(f"{name}: {text}", text) for name in known.findings for text in known[name].descriptions("en")]
    said += [
        (text, text) for k in known.findings.values() for t in languages if t != "en" for text in k.descriptions(t)
    ]
    kept = [line for line, text in said if _held(text, held_out) == evaluate]
    kept = kept * REPEATS if evaluate else [*kept, *_facts(known)]
    return Corpus(tuple(kept), "the knowledge base")


@dataclass(frozen=True)
class Words:
    """A Record to its text alone: text str."""

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        return {"text": example.report}


def _facts(known: Knowledge) -> Iterable[str]:
    """Sentences out of the other fields."""
    for finding in known.findings.values():
        yield known.caption(finding.name, modality=finding.modality if finding.modality in known.templates else "CFP")
        for synonym in finding.synonyms:
            yield f"{finding.name}, also called {synonym}"
        if finding.location:
            yield f"{finding.name} is seen at the {finding.location}"
        if finding.abbreviation:
            yield f"{finding.name}, in short {finding.abbreviation}"


def _held(text: str, share: float) -> bool:
    return text_hash(text.encode()) % 10_000 < share * 10_000


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file in UTF-8: {error}") from error
    return [" ".join(part.split()) for part in _BLANK_LINE.split(text) if part.strip()]
