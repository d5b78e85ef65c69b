"""Extract findings and conditions from English and Chinese reports, with negation.

    vocabulary()("Flame haemorrhages and hard exudates, no macular oedema.") == {"flame haemorrhage", "hard exudate"}

The vocabulary consists of the words of the synthetic reports and the names in data/eyes.json.
"""

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

# A negation applies up to the end of its clause; one that follows what it negates applies back to the clause's start.
_BEFORE = re.compile(r"\b(?:no|not|without|free of|absence of|negative for|nor|neither)\b|未见|未发现|未查见|没有|无")
_AFTER = re.compile(r"\b(?:not (?:seen|present|visible|found|detected)|absent|ruled out|excluded)\b")

# Words that end the scope of a negation within a clause.
_BUT = re.compile(r"\b(?:but|with|except|apart from|although|however|yet|besides|other than)\b|但|偶见|除")

_CLAUSE = re.compile(r"[;:；：。!?！？\n]|\.(?!\d)|[,，](?!\d)")

# A negated list: it continues over commas if an "or" closes it.
_LISTED = re.compile(r"(?:[^,.;:]*,){0,5}?[^,.;:]*\bn?or\b[^,.;:]*")
# Names in data/eyes.json that mean the absence of something, or nothing specific.
_VAGUE = re.compile(
    r"^(?:no|non|normal|abnormal)\b|^(?:a disease|ungradable|noisy|scar|maculopathy|exudates)$|grade|silicon"
)
_SHORT = 3  # letters; shorter abbreviations are ambiguous


@dataclass(frozen=True)
class Vocabulary:
    """Pairs (wording, finding), and the findings to report. {cup} in a wording stands for a number.

    A wording of a finding that is not reported still matches its text: "preretinal haemorrhage" is never "haemorrhage".
    """

    phrases: tuple[tuple[str, str], ...]
    reported: frozenset[str]

    def only(self, names: Iterable[str]) -> Vocabulary:
        """The same vocabulary, reporting only these findings."""
        return Vocabulary(self.phrases, frozenset(names))

    def __call__(self, text: str) -> frozenset[str]:
        """The findings that a text states to be present at least once."""
        return frozenset(name for name, present in self.mentions(text) if present)

    def mentions(self, text: str) -> list[tuple[str, bool]]:
        """The pairs (finding, whether it is present or negated) in the order of the text.

        If wordings overlap, the first counts; if they begin at the same place, the longest counts.
        """
        plain, (pattern, owners) = text.lower(), self._compiled
        negated = _negated(plain)
        hits = [(match.start(), owners[(match.lastindex or 1) - 1]) for match in pattern.finditer(plain)]
        return [(name, not any(a <= at < b for a, b in negated)) for at, name in hits if name in self.reported]

    @functools.cached_property
    def _compiled(self) -> tuple[re.Pattern[str], list[str]]:
        words = sorted(self.phrases, key=lambda pair: -len(pair[0]))
        return re.compile("|".join(f"({_regex(word)})" for word, _ in words)), [name for _, name in words]


@dataclass(frozen=True)
class TellFindings:
    """A step that adds `findings` f32 [F]: 1 for each of `names` that the `text` states; put it before Tokenize."""

    names: tuple[str, ...]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not isinstance(example.get("text"), str):
            raise DataError("findings are read from the words of a report, and this example has no text")
        present = _only(self.names)(example["text"])
        return example | {"findings": np.asarray([name in present for name in self.names], np.float32)}


@functools.cache
def _only(names: tuple[str, ...]) -> Vocabulary:
    return vocabulary().only(names)


@functools.cache
def vocabulary() -> Vocabulary:
    """All wordings of conditions.FINDINGS and CONDITIONS (except normal), and the names in the knowledge base.

    A category of the knowledge base is the same as a finding if one of its names is already a wording of it ("hard
    exudates"). The other categories ("choroidal folds") are additional findings.
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
    return Vocabulary(tuple((word, name) for word, name in owner.items() if word), frozenset(owner.values()))


def _signs(name: str) -> list[str]:
    """All wordings of a finding: in photographs, in angiograms and scans, and in negations."""
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
    """The unambiguous names of a category; none if it means the absence of something."""
    if _VAGUE.search(finding.name):
        return []
    names = [name for name in (finding.name, *finding.synonyms) if known.find(name) in (finding, None)]
    return [word for name in names if len(word := _bare(name.removesuffix(f" on {finding.modality}"))) >= _SHORT]


def _bare(word: str) -> str:
    """Remove the article and the plural s, and convert to lower case; the regex allows them again."""
    return re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", re.sub(r"^(?:an?|the) ", "", word.lower()))


def _regex(word: str) -> str:
    """The regex of a wording, with any hyphen or space between its words and an optional plural s."""
    if not word.isascii():
        return re.escape(word).replace(re.escape("{cup}"), r"[\d.]+")
    parts = [re.escape(part).replace(re.escape("{cup}"), r"\d[\d.]*") for part in re.split(r"[\s-]+", word)]
    spelling = (
        r"[\s-]+".join(parts).replace("haem", "ha?em").replace("oedema", "o?edema").replace("ischaem", "ischa?em")
    )
    return rf"(?<!\w)(?<!\w-){spelling}s?(?!\w)"


def _negated(text: str) -> list[tuple[int, int]]:
    """The spans of a lower-case text in which findings are negated."""
    ends = [match.start() for match in _CLAUSE.finditer(text)] + [len(text)]
    spans, start = [], 0
    for end in ends:
        for match in _BEFORE.finditer(text, start, end):
            spans.append((match.start(), _scope_end(text, match.end(), end)))
        for match in _AFTER.finditer(text, start, end):
            turns = [but.end() for but in _BUT.finditer(text, start, match.start())]
            spans.append((max([start, *turns]), match.end()))
        start = end
    return spans


def _scope_end(text: str, at: int, end: int) -> int:
    """The end of a negation that begins at `at`: the end of its clause, or of a list that an "or" closes later."""
    listed = _LISTED.match(text, at) if text[end : end + 1] == "," else None
    end = listed.end() if listed else end
    but = _BUT.search(text, at, end)
    return but.start() if but else end
