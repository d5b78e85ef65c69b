"""Expert knowledge about findings of the eye: descriptions, synonyms and prompt templates, loaded from data/eyes.json.

It covers the categories of FLAIR's data sets and the findings of angiography (FFA) and OCT. All descriptions were
written for this project.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files.json_files import read_json
from data_pipelines.records import DataError

FILE = Path(__file__).with_name("data") / "eyes.json"
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Finding:
    """One category: its name, synonyms, location, and descriptions of its appearance in English and Chinese."""

    name: str
    abbreviation: str = ""  # may be ambiguous: HR stands for two categories
    modality: str = "CFP"
    location: str = ""
    synonyms: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    zh: tuple[str, ...] = ()

    def descriptions(self, language: str = "en") -> tuple[str, ...]:
        """The descriptions in a language, possibly none in "zh". Raises DataError for an unknown language."""
        if language not in LANGUAGES:
            raise DataError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")
        return self.en if language == "en" else self.zh


@dataclass(frozen=True)
class Knowledge:
    """Findings by name, and the prompt templates of each modality."""

    findings: Mapping[str, Finding]
    templates: Mapping[str, Mapping[str, Any]]

    def __contains__(self, name: object) -> bool:
        return name in self.findings

    def __getitem__(self, name: str) -> Finding:
        if name not in self.findings:
            raise DataError(f"no knowledge of the category {name!r}; there are {len(self.findings)}, see {FILE.name}")
        return self.findings[name]

    def find(self, name: str) -> Finding | None:
        """The finding with this name, synonym or abbreviation, ignoring case; None if unknown.

        An abbreviation or synonym of two categories ("HR", "MH") is ambiguous and gives None.
        """
        return self._aliases.get(" ".join(name.split()).lower())

    @functools.cached_property
    def _aliases(self) -> dict[str, Finding]:
        seen: dict[str, set[str]] = {}
        for finding in self.findings.values():
            for alias in (finding.abbreviation, *finding.synonyms):
                if alias:
                    seen.setdefault(alias.lower(), set()).add(finding.name)
        single = {alias: self.findings[min(names)] for alias, names in seen.items() if len(names) == 1}
        return single | {name.lower(): finding for name, finding in self.findings.items()}

    def ways(self, name: str, language: str = "en") -> tuple[str, ...]:
        """The wordings of a category in captions: its name and its descriptions, if it is in the knowledge base."""
        return (name, *self.findings[name].descriptions(language)) if name in self.findings else (name,)

    def ensemble(self, name: str, modality: str = "CFP") -> tuple[str, ...]:
        """FLAIR's prompts for a class: its descriptions and its name in the first template of the modality.

        As in the original implementation, the names of grades of myopic maculopathy are omitted, because they are
        uninformative.
        """
        texts = list(self.findings[name].en) if name in self.findings else []
        if name not in texts and ("myopic maculopathy" not in name or not texts):
            texts.append(name)
        return tuple(self.prompt(text, modality) for text in texts)

    def prompt(self, text: str, modality: str = "CFP") -> str:
        """Insert a text into the first English template of a modality. Raises DataError if the modality has none."""
        return self._templates(modality)["en"][0].replace("[CLS]", text)

    def caption(self, text: str, attribute: str = "", modality: str = "CFP") -> str:
        """FLAIR's training caption, "A [ATR] fundus photograph of [CLS]", in which double spaces are collapsed once."""
        filled = self._templates(modality)["train"].replace("[ATR]", attribute).replace("[CLS]", text)
        return filled.replace("  ", " ")

    def draw(self, name: str, rng: np.random.Generator) -> str:
        """Draw a wording uniformly from the category's name and its English descriptions."""
        ways = self.ways(name)
        return ways[int(rng.integers(len(ways)))]

    def sentences(self, languages: Sequence[str] = ("en",)) -> tuple[str, ...]:
        """All descriptions, with the name of their category, for text pretraining."""
        return tuple(
            f"{finding.name}: {text}" if language == "en" else text
            for finding in self.findings.values()
            for language in languages
            for text in finding.descriptions(language)
        )

    def _templates(self, modality: str) -> Mapping[str, Any]:
        if modality not in self.templates:
            raise DataError(f"no prompt template for {modality!r}; there are those of {', '.join(self.templates)}")
        return self.templates[modality]


def load(path: str | Path = FILE) -> Knowledge:
    """Load the bundled knowledge base, or another file in the same format.

    The file is a JSON object. "templates" maps each modality to "train" and the lists "en" and "zh"; "categories" maps
    each name to abbreviation, modality, location, synonyms, en and zh, where only en is required. Raises DataError
    naming the category that is wrong.
    """
    path = Path(path)
    what = "a JSON object with templates and categories"
    stored = read_json(path, dict[str, dict[str, Any]], what)
    if missing := [key for key in ("categories", "templates") if key not in stored]:
        raise DataError(f"{path}: has no {missing[0]}; expected {what}")
    categories, templates = stored["categories"], stored["templates"]
    for name, fields in templates.items():
        _check_template(path, name, fields)
    return Knowledge({name: _finding(path, name, fields) for name, fields in categories.items()}, templates)


@functools.cache
def bundled() -> Knowledge:
    """The knowledge base of this package, read once."""
    return load()


def _finding(path: Path, name: str, fields: Any) -> Finding:
    known = {"abbreviation", "modality", "location", "synonyms", "en", "zh"}
    if not isinstance(fields, dict) or not fields.get("en") or set(fields) - known:
        raise DataError(f"{path}: category {name!r}: expected en, and no keys other than {', '.join(sorted(known))}")
    lists = {key: fields.get(key, []) for key in ("synonyms", "en", "zh")}
    if wrong := [key for key, value in lists.items() if not _is_texts(value)]:
        raise DataError(f"{path}: category {name!r}: {wrong[0]} must be a list of texts")
    words = {"abbreviation": "", "modality": "CFP", "location": ""}
    words |= {key: fields[key] for key in words if key in fields}
    if wrong := [key for key, value in words.items() if not isinstance(value, str)]:
        raise DataError(f"{path}: category {name!r}: {wrong[0]} must be a text")
    texts: dict[str, Any] = {key: tuple(value) for key, value in lists.items()}
    return Finding(name, **words, **texts)


def _check_template(path: Path, name: str, fields: Any) -> None:
    """Raise DataError for a modality whose templates are not {"train": text, "en": texts, "zh": texts}."""
    if not isinstance(fields, dict) or not isinstance(fields.get("train"), str):
        raise DataError(f"{path}: templates of {name!r}: expected train, a text, and the lists en and zh")
    for key in ("en", "zh"):
        if not _is_texts(fields.get(key)):
            raise DataError(f"{path}: templates of {name!r}: {key} must be a list of texts")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)
