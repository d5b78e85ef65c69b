"""Zero-shot prompts: texts for a class in a modality, and report sentences for a condition of a patient or an eye.

The sentences for a patient say "both eyes", as RET-CLIP's prompts do. A text encoder trained on reports classifies worse
with the bare name of a condition. With a sentence for each eye, it matches the side rather than the condition.
"""

from __future__ import annotations

from data_pipelines.language.knowledge import bundled
from data_pipelines.records import PHRASES, DataError


def prompts_of(name: str, modality: str, wording: str = "") -> tuple[str, ...]:
    """The prompts of a class in a modality.

    Args:
        name: name of the class.
        modality: a name in MODALITIES.
        wording: a template with {text} and optionally {modality}, filled with the name. "" uses the descriptions of the
            knowledge base in FLAIR's template of the modality, or in a similar one if there is none.

    Raises DataError for a wording with other fields.
    """
    phrase = PHRASES[modality][0]
    if wording:
        try:
            prompt = wording.format(text=name, modality=phrase)
        except (KeyError, IndexError, ValueError):
            raise DataError(f"wording {wording!r}: the only fields are {{text}} and {{modality}}") from None
        if name not in prompt:
            raise DataError(f"wording {wording!r} has no {{text}}: all classes would have the same prompt")
        return (prompt,)
    known = bundled()
    finding = known.find(name)
    name = finding.name if finding else name
    if modality in known.templates:
        return known.ensemble(name, modality)
    article = "An" if phrase[0] in "aeiou" else "A"
    return tuple(f"{article} {phrase} of {way}" for way in known.ways(name))


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
    """The language of a name: "zh" if it contains a Chinese character, else "en"."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in name) else "en"


def prompts(name: str, level: str, language: str = "") -> tuple[str, ...]:
    """All sentences for a condition; `level` is "patient", "left" or "right". By default, in the language of the name."""
    return tuple(template.format(name) for template in TEMPLATES[language or language_of(name)][level])
