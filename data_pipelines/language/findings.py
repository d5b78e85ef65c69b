"""Extract findings and conditions from English and Chinese reports, with negation and uncertainty.

    vocabulary()("Flame haemorrhages and hard exudates, no macular oedema.") == {"flame haemorrhage", "hard exudate"}

The wordings come from the synthetic reports, the names in data/eyes.json, and data/synonyms.json. Only whole wordings
match. If several match at the same position, the longest is used.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.knowledge import Finding, Knowledge, bundled
from data_pipelines.language.phrases import END, NUMBER, Phrases, tokens
from data_pipelines.language.scopes import CUES, Status, statuses
from data_pipelines.language.wording import ABSENT, IMPRESSIONS, MODALITY_SIGNS, SIGNS
from data_pipelines.records import DataError

# Names in data/eyes.json that mean the absence of something, or nothing specific.
_VAGUE = re.compile(
    r"^(?:no|non|normal|abnormal)\b|^(?:a disease|ungradable|noisy|scar|maculopathy|exudates)$|grade|silicon"
)
_SHORT = 3  # letters; shorter abbreviations are ambiguous

# Severity is read only in a phrase with its disease. In Chinese, stages are those of the guideline of 2014.
_SEVERITIES = {
    "mild diabetic retinopathy": ("mild", "minimal", "very mild"),
    "moderate diabetic retinopathy": ("moderate", "mild to moderate", "moderately severe"),
    "severe diabetic retinopathy": ("severe", "moderate to severe", "very severe"),
}
_SEVERITIES_ZH = {
    "mild diabetic retinopathy": (("轻度", "轻"), ("i", "1")),
    "moderate diabetic retinopathy": (("中度", "轻中度", "中"), ("ii", "2")),
    "severe diabetic retinopathy": (("重度", "严重", "中重度", "重"), ("iii", "3")),
    "proliferative diabetic retinopathy": ((), ("iv", "v", "vi", "4", "5", "6")),
}
_DISEASE_ZH = ("糖尿病视网膜病变", "糖尿病性视网膜病变", "糖网病", "糖网")
_TYPES_ZH = ("", "非增殖期", "非增殖性", "非增殖型", "非增生期", "非增生性", "非增生型", "非增殖", "NPDR")


class Mention(NamedTuple):
    """A finding that a text mentions, and whether it is present, absent or uncertain."""

    finding: str
    status: Status


@dataclass(frozen=True)
class Vocabulary:
    """Pairs (wording, finding), and the findings to report. {number} in a wording stands for any number.

    Wordings of findings that are not reported still match, so that "preretinal haemorrhage" is not taken for
    "haemorrhage".
    """

    phrases: tuple[tuple[str, str], ...]
    reported: frozenset[str]

    def only(self, names: Iterable[str]) -> Vocabulary:
        """A copy of the vocabulary that reports only these findings."""
        return Vocabulary(self.phrases, frozenset(names))

    def __call__(self, text: str) -> frozenset[str]:
        """The findings that a text states to be present, in either eye."""
        return frozenset(name for name, status in self.mentions(text) if status == "present")

    def mentions(self, text: str) -> list[Mention]:
        """All findings that a text mentions, in the order of the text."""
        words = tokens(text)
        matches = _phrases(self.phrases).matches(words)
        status = statuses(words, matches)
        named = ((match.start, name) for match in matches if match.start in status for name in match.values)
        return [Mention(name, status[start]) for start, name in named if name in self.reported]


@dataclass(frozen=True)
class TellFindings:
    """A step that adds `findings` f32 [F]: 1 for each of `names` that is present in `text`. Put it before Tokenize."""

    names: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not isinstance(example.get("text"), str):
            raise DataError("the example has no text to extract findings from")
        present = _only(self.names)(example["text"])
        return example | {"findings": np.asarray([name in present for name in self.names], np.float32)}


@functools.cache
def _only(names: tuple[str, ...]) -> Vocabulary:
    return vocabulary().only(names)


@functools.lru_cache(maxsize=8)
def _phrases(pairs: tuple[tuple[str, str], ...]) -> Phrases:
    return Phrases((*pairs, *CUES))


@functools.cache
def vocabulary() -> Vocabulary:
    """All wordings of conditions.FINDINGS and CONDITIONS (except normal), the names in the knowledge base, and synonyms.

    A category of the knowledge base is the same as a finding if one of its names is already a wording of it ("hard
    exudates"). The other categories ("choroidal folds") are additional findings.
    """
    owners: dict[str, dict[str, str]] = {}  # wording in plain tokens -> finding -> wording as written
    for word, name in (*_templates(), *_severities(), *_synonyms()):
        owners.setdefault(_plain(word), {}).setdefault(name, word)
    _add_knowledge(owners, bundled())
    pairs = tuple((word, name) for names in owners.values() for name, word in names.items())
    return Vocabulary(pairs, frozenset(name for _, name in pairs if name))


def _templates() -> Iterator[tuple[str, str]]:
    """The wordings of the synthetic reports: in photographs, angiograms and scans, in negations, and of conditions."""
    tables = (*SIGNS.values(), *MODALITY_SIGNS.values(), *({k: (v,) for k, v in a.items()} for a in ABSENT.values()))
    for name in FINDINGS:
        words = (name, *(word for table in tables for word in table.get(name, ())))
        yield from ((word.replace("{cup}", NUMBER), name) for word in words)
    for name in CONDITIONS[1:]:
        yield from ((word, name) for word in (name, *(word for table in IMPRESSIONS.values() for word in table[name])))


def _severities() -> Iterator[tuple[str, str]]:
    """Wordings of the grades of diabetic retinopathy. A grade after a comma or colon must be at the end of the clause."""
    kinds = tuple(f"{kind}{name}" for kind, name in product(("", "non-proliferative "), ("diabetic retinopathy", "DR")))
    for name, words in _SEVERITIES.items():
        for word, kind in product(words, (*kinds, "background diabetic retinopathy", "NPDR")):
            yield f"{word} {kind}", name
            yield from ((f"{kind} {form}", name) for form in (f"of {word} degree", f"of {word} severity", f"({word})"))
            yield from ((f"{kind}{mark} {word} {END}", name) for mark in (",", ":", ""))
            yield from ((f"diabetic retinopathy{mark} {word} NPDR", name) for mark in (",", ":", " ("))
    for name, (words, stages) in _SEVERITIES_ZH.items():
        for disease, kind, word in product(_DISEASE_ZH, _TYPES_ZH, words):
            forms = (f"{word}{kind}{disease}", f"{kind}{disease}{word}" if len(word) > 1 else "")
            more = (
                f"{kind}{disease}({word})",
                f"{disease}({word}{kind})",
                f"{disease}({kind}{word})",
                f"{disease}({kind},{word})",
            )
            yield from ((form, name) for form in (*forms, *more, f"{disease}{word}{kind}{END}") if form)
            yield from ((f"{kind}{disease}{mark}{word}{END}", name) for mark in (",", ":"))
        for disease, stage in product(_DISEASE_ZH, stages):
            yield from (
                (form, name) for form in (f"{disease}{stage}期", f"{disease}({stage}期)", f"{stage}期{disease}")
            )


def _synonyms() -> Iterator[tuple[str, str]]:
    """Wordings in data/synonyms.json. The ones under the name "" contain the wording of a finding but are not findings."""
    path = Path(__file__).with_name("data") / "synonyms.json"
    for name, words in json.loads(path.read_text(encoding="utf-8")).items():
        yield from ((word, name) for word in words)


def _add_knowledge(owners: dict[str, dict[str, str]], known: Knowledge) -> None:
    for finding in known.findings.values():
        words = _names(finding, known)
        names = [name for word in words for name in owners.get(_plain(word), ())]
        for word in words:
            owners.setdefault(_plain(word), {names[0] if names else finding.name: word})


def _names(finding: Finding, known: Knowledge) -> list[str]:
    """The unambiguous names of a category; none if it means the absence of something."""
    if _VAGUE.search(finding.name):
        return []
    names = [name for name in (finding.name, *finding.synonyms) if known.find(name) in (finding, None)]
    return [word for name in names if len(word := name.removesuffix(f" on {finding.modality}")) >= _SHORT]


def _plain(word: str) -> str:
    return " ".join(token.text for token in tokens(word))
