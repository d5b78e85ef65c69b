"""Unique names for the files that a prediction writes, for any names of images and classes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def names_for(images: Sequence[str | Path], endings: Sequence[str] = ("",)) -> list[str]:
    """A file name without suffix for each image, such that no two outputs, name + suffix, are the same.

    A number is appended where two images have one name, also where a file system would take them for one: in other
    capitals or composed otherwise (NFC and NFD).
    """
    return distinct([Path(path).stem for path in images], endings)


def distinct(stems: Sequence[str], endings: Sequence[str] = ("",)) -> list[str]:
    """Append numbers to names whose outputs, name + suffix, would be the same file."""
    count = Counter(map(_folded, stems))
    taken: set[str] = set()
    names = ["" if count[_folded(stem)] > 1 else _free(stem, endings, taken) for stem in stems]
    for number, stem in enumerate(stems):
        names[number] = names[number] or _free(stem, endings, taken, number)
    return names


def name_of_class(name: str) -> str:
    """Convert a class name to a part of a file name: other characters than letters, digits and a few signs become "_"."""
    return re.sub(r"[^\w+.()-]+", "_", name)[:100].strip(".") or "_"


def _free(stem: str, endings: Sequence[str], taken: set[str], number: int | None = None) -> str:
    """The stem, or with a number, so that no output of it is `taken`; its outputs are then."""
    while True:
        name = stem if number is None else f"{stem}_{number}"
        files = {_folded(name + ending) for ending in endings}
        if not files & taken:
            taken |= files
            return name
        number = 0 if number is None else number + 1


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
