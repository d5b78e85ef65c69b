"""How a class is told to a model that reads: what experts know of it, in the words of a modality."""

from __future__ import annotations

from data_pipelines.knowledge import bundled
from data_pipelines.records import DataError
from data_pipelines.views import PHRASES


def prompts_of(name: str, modality: str, wording: str = "") -> tuple[str, ...]:
    """Sentences that tell a class in a modality.

    wording: a template with {text} and perhaps {modality}, filled with the name alone; "" says what experts know of the
    class, in FLAIR's template of the modality (data_pipelines/knowledge.py), or in one like it where it has none.
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
