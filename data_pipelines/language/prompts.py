"""How a class is told to a model that reads: what experts know of it, in the words of a modality.

Sentences that put a condition into a report: of the patient, of the left eye, of the right eye; two languages.

Of the patient they say "both eyes", as the prompts of RET-CLIP's authors do: a bare name says less to a text tower
that has read reports, and a statement for each eye is matched by its sides before its condition."""

from __future__ import annotations

from data_pipelines.language.knowledge import bundled
from data_pipelines.records import PHRASES, DataError


def prompts_of(name: str, modality: str, wording: str = "") -> tuple[str, ...]:
    """Sentences that tell a class in a modality.

    wording: a template with {text} and perhaps {modality}, filled with the name alone; "" says what experts know of the
    class, in FLAIR's template of the modality (data_pipelines/language/knowledge.py), or in one like it where it has none.
    Raises DataError for a wording with another field.
    """
    phrase = PHRASES[modality][0]
    if wording:
        try:
            said = wording.format(text=name, modality=phrase)
        except (KeyError, IndexError, ValueError):
            raise DataError(f"wording {wording!r}: only {{text}} and {{modality}} can be filled in") from None
        if name not in said:
            raise DataError(f"wording {wording!r} has no {{text}}: every class would be told alike")
        return (said,)
    known = bundled()
    found = known.find(name)
    name = found.name if found else name
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
    """ "zh" where a name has a Chinese character, else "en"."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in name) else "en"


def prompts(name: str, level: str, language: str = "") -> tuple[str, ...]:
    """Every wording of a condition at a level (patient, left, right); the language is the name's own by default."""
    return tuple(template.format(name) for template in TEMPLATES[language or language_of(name)][level])
