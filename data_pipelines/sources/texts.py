"""Sources of texts without images: text files, the captions of another source, and the knowledge base."""

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
    """One text per row. The text is also the patient, so that a split keeps equal texts together."""

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
    """The paragraphs of a UTF-8 .txt file, or of all .txt files in a folder. Blank lines separate paragraphs.

    The first use reads the files and raises DataError naming the file that cannot be read.
    """

    path: Path

    @read_once
    def corpus(self) -> Corpus:
        """The paragraphs of the files."""
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
    """The reports of another source, without opening its images."""

    source: Source | Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        if not record.report:
            raise DataError(f"{record.where or record.patient}: has no caption")
        return Record(record.report, (), record.report, where=record.where)


def descriptions(
    known: Knowledge, held_out: float = 0.1, *, evaluate: bool = False, languages: Any = ("en",)
) -> Corpus:
    """The texts of the knowledge base for training, or with `evaluate` the part that is held out for evaluation.

    Only descriptions are held out. A hash of their words decides, so that additions to the knowledge base move none of
    them. Sentences about names, synonyms, abbreviations and locations are always in the training part. A held-out text
    occurs REPEATS times, because other words are masked each time.
    """
    lines = [(f"{name}: {text}", text) for name in known.findings for text in known[name].descriptions("en")]
    lines += [
        (text, text) for k in known.findings.values() for t in languages if t != "en" for text in k.descriptions(t)
    ]
    kept = [line for line, text in lines if _is_held_out(text, held_out) == evaluate]
    kept = kept * REPEATS if evaluate else [*kept, *_facts(known)]
    return Corpus(tuple(kept), "the knowledge base")


@dataclass(frozen=True)
class Words:
    """First step: only the text of a record."""

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        return {"text": example.report}


def _facts(known: Knowledge) -> Iterable[str]:
    """Sentences made from the other fields."""
    for finding in known.findings.values():
        yield known.caption(finding.name, modality=finding.modality if finding.modality in known.templates else "CFP")
        for synonym in finding.synonyms:
            yield f"{finding.name}, also called {synonym}"
        if finding.location:
            yield f"{finding.name} is seen at the {finding.location}"
        if finding.abbreviation:
            yield f"{finding.name}, in short {finding.abbreviation}"


def _is_held_out(text: str, share: float) -> bool:
    return text_hash(text.encode()) % 10_000 < share * 10_000


def _paragraphs(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a text file in UTF-8")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file in UTF-8: {error}") from error
    return [" ".join(part.split()) for part in _BLANK_LINE.split(text) if part.strip()]
