"""Sentences that put a condition into a report: of the patient, of the left eye, of the right eye; two languages.

Of the patient they say "both eyes", as the prompts of RET-CLIP's authors do: a bare name says less to a text tower
that has read reports, and a statement for each eye is matched by its sides before its condition.
"""

from __future__ import annotations

TEMPLATES = {
    "en": {
        "patient": ("Both eyes: {}.", "OU: {}.", "Bilaterally: {}."),
        "left": ("Left eye: {}.", "In the left eye, {}.", "OS: {}."),
        "right": ("Right eye: {}.", "In the right eye, {}.", "OD: {}."),
    },
    "zh": {
        "patient": ("双眼：{}。", "双眼均见：{}。"),
        "left": ("左眼：{}。", "左眼（OS）：{}。"),
        "right": ("右眼：{}。", "右眼（OD）：{}。"),
    },
}


def language_of(name: str) -> str:
    """ "zh" where a name has a Chinese character, else "en"."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in name) else "en"


def prompts(name: str, level: str, language: str = "") -> tuple[str, ...]:
    """Every wording of a condition at a level (patient, left, right); the language is the name's own by default."""
    return tuple(template.format(name) for template in TEMPLATES[language or language_of(name)][level])
