"""What a report says is there: findings and conditions by the project's own vocabulary, negations respected.

    vocabulary().found("Flame haemorrhages and hard exudates, no macular oedema.") == {"flame haemorrhage", "hard exudate"}

English and Chinese. The words are those that synthetic reports are written in, and the names of knowledge/eyes.json."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.language.conditions import CONDITIONS, FINDINGS
from data_pipelines.language.knowledge import Finding, Knowledge, bundled
from data_pipelines.language.wording import ABSENT, IMPRESSIONS, MODALITY_SIGNS, SIGNS
from data_pipelines.records import DataError

# A denial reaches to the end of its clause; one that stands behind what it denies, back to the beginning of its own.
_BEFORE = re.compile(r"\b(?:no|not|without|free of|absence of|negative for|nor|neither)\b|未见|未发现|未查见|没有|无")


_AFTER = re.compile(r"\b(?:not (?:seen|present|visible|found|detected)|absent|ruled out|excluded)\b")


# What ends its reach within a clause.
_BUT = re.compile(r"\b(?:but|with|except|apart from|although|however|yet|besides|other than)\b|但|偶见|除")


_CLAUSE = re.compile(r"[;:；：。!?！？\n]|\.(?!\d)|[,，](?!\d)")


# A list that begins with a denial and goes on over commas, as long as an "or" closes it.
_LISTED = re.compile(r"(?:[^,.;:]*,){0,5}?[^,.;:]*\bn?or\b[^,.;:]*")


# Names of knowledge/eyes.json that say that something is absent, or nothing in particular.
_VAGUE = re.compile(
    r"^(?:no|non|normal|abnormal)\b|^(?:a disease|ungradable|noisy|scar|maculopathy|exudates)$|grade|silicon"
)


_SHORT = 3  # letters: shorter abbreviations mean too many things


@dataclass(frozen=True)
class Vocabulary:
    """(wording, finding) pairs; {cup} in a wording stands for a number. `told` are the findings that are answered.

    A wording of a finding that is not told still takes its place: "preretinal haemorrhage" is never "haemorrhage".
    """

    phrases: tuple[tuple[str, str], ...]
    told: frozenset[str]

    def only(self, names: Iterable[str]) -> Vocabulary:
        """The same vocabulary, telling these findings alone."""
        return Vocabulary(self.phrases, frozenset(names))

    def __call__(self, text: str) -> frozenset[str]:
        """The findings that a text says are there, at least once."""
        return frozenset(name for name, there in self.mentions(text) if there)

    def mentions(self, text: str) -> list[tuple[str, bool]]:
        """(finding, True where it is there and False where it is denied) in the order of the text.

        Of wordings that overlap the first, and of those that begin together the longest, counts.
        """
        plain, (pattern, owners) = text.lower(), self._compiled
        denied = _denied(plain)
        hits = [(match.start(), owners[(match.lastindex or 1) - 1]) for match in pattern.finditer(plain)]
        return [(name, not any(a <= at < b for a, b in denied)) for at, name in hits if name in self.told]

    @functools.cached_property
    def _compiled(self) -> tuple[re.Pattern[str], list[str]]:
        words = sorted(self.phrases, key=lambda pair: -len(pair[0]))
        return re.compile("|".join(f"({_regex(word)})" for word, _ in words)), [name for _, name in words]


@dataclass(frozen=True)
class TellFindings:
    """A step: `findings` f32 [F], 1 for each of `names` that the example's `text` says is there; before Tokenize."""

    names: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not isinstance(example.get("text"), str):
            raise DataError("findings are read from the words of a report, and this example has no text")
        said = _only(self.names)(example["text"])
        return example | {"findings": np.asarray([name in said for name in self.names], np.float32)}


@functools.cache
def _only(names: tuple[str, ...]) -> Vocabulary:
    return vocabulary().only(names)


@functools.cache
def vocabulary() -> Vocabulary:
    """All wordings of conditions.FINDINGS and CONDITIONS (but normal), and the names of the knowledge base.

    A category of the knowledge base of which one name is a wording already ("hard exudates") is that finding; the others
    ("choroidal folds") are findings of their own.
    """
    owner: dict[str, str] = {}
    for name in FINDINGS:
        for word in (name, *_signs(name)):
            owner.setdefault(_bare(word), name)
    for name in CONDITIONS[1:]:
        for word in (name, *(word for by_name in IMPRESSIONS.values() for word in by_name[name])):
            for part in re.split(r"[,，(（)）]", word):
                owner.setdefault(_bare(part.strip()), name)
    _add_knowledge(owner, bundled())
    told = frozenset(owner.values())
    return Vocabulary(tuple((word, name) for word, name in owner.items() if word), told)


def _signs(name: str) -> list[str]:
    """Every wording of a finding: in photographs, in angiograms and scans, and where it is denied."""
    words = [word for by_name in SIGNS.values() for word in by_name[name]]
    words += [word for by_name in MODALITY_SIGNS.values() for word in by_name.get(name, ())]
    return words + [by_name[name] for by_name in ABSENT.values() if name in by_name]


def _add_knowledge(owner: dict[str, str], known: Knowledge) -> None:
    for finding in known.findings.values():
        words = _names(finding, known)
        if words:
            name = next((owner[word] for word in words if word in owner), finding.name)
            for word in words:
                owner.setdefault(word, name)


def _names(finding: Finding, known: Knowledge) -> list[str]:
    """The names of a category that belong to it alone; none where it says that something is absent."""
    if _VAGUE.search(finding.name):
        return []
    names = [name for name in (finding.name, *finding.synonyms) if known.find(name) in (finding, None)]
    return [word for name in names if len(word := _bare(name.removesuffix(f" on {finding.modality}"))) >= _SHORT]


def _bare(word: str) -> str:
    """Lower case, without an article before it and the plural's s behind it: what the regex puts back."""
    return re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", re.sub(r"^(?:an?|the) ", "", word.lower()))


def _regex(word: str) -> str:
    """A wording with any hyphen or space between its words, perhaps in the plural."""
    if not word.isascii():
        return re.escape(word).replace(re.escape("{cup}"), r"[\d.]+")
    parts = [re.escape(part).replace(re.escape("{cup}"), r"\d[\d.]*") for part in re.split(r"[\s-]+", word)]
    spelt = r"[\s-]+".join(parts).replace("haem", "ha?em").replace("oedema", "o?edema").replace("ischaem", "ischa?em")
    return rf"(?<!\w)(?<!\w-){spelt}s?(?!\w)"


def _denied(text: str) -> list[tuple[int, int]]:
    """Spans of lower-case text within which what is named is denied."""
    ends = [match.start() for match in _CLAUSE.finditer(text)] + [len(text)]
    spans, start = [], 0
    for end in ends:
        for match in _BEFORE.finditer(text, start, end):
            spans.append((match.start(), _reach(text, match.end(), end)))
        for match in _AFTER.finditer(text, start, end):
            turns = [but.end() for but in _BUT.finditer(text, start, match.start())]
            spans.append((max([start, *turns]), match.end()))
        start = end
    return spans


def _reach(text: str, at: int, end: int) -> int:
    """Where a denial that begins at `at` ends: with its clause, or with the list that an "or" closes in a later one."""
    listed = _LISTED.match(text, at) if text[end : end + 1] == "," else None
    end = listed.end() if listed else end
    but = _BUT.search(text, at, end)
    return but.start() if but else end
