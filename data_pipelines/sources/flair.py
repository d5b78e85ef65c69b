"""Sources for FLAIR's data frames and MM-Retinal's tables of captions.

Their columns are those of github.com/jusiro/FLAIR, github.com/lxirich/MM-Retinal and RetCoP. The data itself is not
included.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import read_once
from data_pipelines.sources.header import Header
from data_pipelines.sources.tables import is_empty, read_named, read_rows

# categories that FLAIR excludes from pretraining, to evaluate on unseen ones
UNSEEN = ("myopia", "cataract", "macular hole", "retinitis pigmentosa", "myopic", "myope", "myop", "retinitis")

# data sets whose labels FLAIR does not expand into descriptions: free texts, or words with another meaning
AS_THEY_ARE = ("06_EYENET", "11_STARE", "08_ODIR-5K", "31_JICHI")

_log = logging.getLogger(__name__)

BANS = ("substring", "exact")

CAPTIONS = {"en": ("en_caption", "caption"), "zh": ("cn_caption",)}

# a figure of the atlas: Fig. 2.1, Figures 3-1 and 3-2, figure 4a; 图3-1. A figure-of-eight pattern is none.
_NUMBER = r"\d{1,3}(?:[-.–]\d{1,3}){0,3}[a-z]?(?![0-9A-Za-z])"
_FIGURE = re.compile(
    rf"\bfig(?:ure|ures|s)?\b\.? ?(?:{_NUMBER}(?:(?:, ?| ?and | ?& ?| ?to |, and )(?:fig(?:ure|s)?\.? ?)?{_NUMBER}){{0,5}}"
    rf"|above|below)|图 ?{_NUMBER}",
    re.I,
)
# what leads to it, and what follows it, in the same sentence
_BEFORE = re.compile(
    r"(?:(?:(?:this|it) is )?(?:of )?(?:the )?same (?:person|patient|eye|case|lesion)(?: as| of)?(?: in| of)?(?: the)?"
    r"|(?:please )?(?:also )?(?:see|seen|shown|as|refer to|referred to|cf\.?|compare|compared)(?: also)?(?: to| with)?"
    r"(?: shown| seen)?(?: in)?|\b(?:in|from|of|on)|(?:同|与|和|见|参见|详见|如|参考|同一患者|同一病人)) ?$",
    re.I,
)
_AFTER = re.compile(
    r" ?(?:\b(?:shows?|showed|demonstrates?)\b|:|所示|为?(?:同一|同)(?:患者|病人|只眼|眼)(?:的|之)?)", re.I
)
_SAME = re.compile(r"(?:为|系)?同一(?:患者|病人|只眼|眼)(?=$|[,，.。;；])")


@dataclass(frozen=True)
class Row:
    """One image of a data frame; `place` names its row in messages."""

    image: str
    attributes: tuple[str, ...]
    categories: tuple[str, ...]
    place: str


def flair_frame(
    path: str | Path,
    root: str | Path,
    *,
    ban: Sequence[str] = (),
    ban_by: str = "substring",
    modality: str = "CFP",
    sep: str = ",",
    encoding: str = "",
) -> FlairFrame:
    """A CSV with the columns image (a path below `root`), atributes and categories (Python lists of strings).

    Args:
        ban: categories whose rows are left out.
        ban_by: "substring" as in FLAIR, where "myopia" also bans "pathologic myopia"; "exact" as in KeepFIT, where it
            does not.
        sep, encoding: as in tables.read_rows.

    The file is read at the first use, which raises DataError naming the file and its columns or row.
    """
    if ban_by not in BANS:
        raise DataError(f"ban_by is {ban_by!r}; expected {' or '.join(BANS)}")
    return FlairFrame(Path(path), Path(root), tuple(ban), ban_by, modality_name(modality), sep, encoding)


@dataclass(frozen=True)
class FlairFrame:
    """See flair_frame. FLAIR's option `balance` is a pipeline.mix of several frames with equal weights."""

    path: Path
    root: Path
    ban: tuple[str, ...]
    ban_by: str
    modality: str
    sep: str = ","
    encoding: str = ""

    def __getstate__(self) -> dict[str, Any]:
        len(self)  # read the file once, not in every worker
        return self.__dict__

    @read_once
    def rows(self) -> tuple[Row, ...]:
        """The rows that are not banned."""
        kept = tuple(
            row
            for row in _read_frame(self.path, self.modality, self.sep, self.encoding)
            if not self.banned(row.categories)
        )
        if not kept:
            raise DataError(f"{self.path}: has no rows" + (" outside the banned categories" if self.ban else ""))
        return kept

    def banned(self, categories: Sequence[str]) -> bool:
        """Whether a row with these categories is left out."""
        if self.ban_by == "exact":
            return any(category in self.ban for category in categories)
        return any(word in category for category in categories for word in self.ban)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        return Record(
            patient=row.image,
            views=(View(self.root / row.image, self.modality),),
            findings=row.categories,
            targets={"attributes": row.attributes},
            where=row.place,
        )


def mm_retinal(
    path: str | Path,
    image_dir: str | Path,
    *,
    language: str = "en",
    modality: str = "CFP",
    suffix: str = "",
    sep: str = ",",
    encoding: str = "",
) -> MMRetinal:
    """Images with expert captions: a CSV with Image_ID, cn_caption and en_caption, or image and caption, or FLAIR's columns.

    In FLAIR's columns, as in the FFA table, the categories are the caption. References to other figures are cut from
    captions; rows without a caption are left out, and counted in the log. The column fundus_status (normal or abnormal)
    becomes the target "status": 0 or 1, or -1 if the column or the cell is missing.

    Args:
        suffix: appended to Image_ID, for tables that leave out ".jpg".
        sep, encoding: as in tables.read_rows.

    The file is read at the first use, which raises DataError naming the file and the missing column.
    """
    if language not in CAPTIONS:
        raise DataError(f"language {language!r} is not one of {', '.join(CAPTIONS)}")
    return MMRetinal(Path(path), Path(image_dir), language, modality_name(modality), suffix, sep, encoding)


@dataclass(frozen=True)
class MMRetinal:
    """See mm_retinal."""

    path: Path
    image_dir: Path
    language: str
    modality: str
    suffix: str
    sep: str = ","
    encoding: str = ""

    def __getstate__(self) -> dict[str, Any]:
        len(self)
        return self.__dict__

    @read_once
    def rows(self) -> tuple[tuple[str, str, str, int], ...]:
        """(image, caption, place, status) of every row that has a caption after cleaning."""
        header, table = _read_table(self.path, self.sep, self.encoding)
        status = {place: _status(place, values.get("fundus_status", "")) for place, values in table}
        if "categories" in header:
            captions = [
                (row.image, ", ".join(row.categories), row.place)
                for row in _read_frame(self.path, self.modality, self.sep, self.encoding)
            ]
        else:
            image = _one_of(self.path, header, ("Image_ID", "image"))
            caption = _one_of(self.path, header, CAPTIONS[self.language])
            read = {"image": (image,), "caption": (caption,), "fundus_status": ("fundus_status",)}
            read = {ours: theirs for ours, theirs in read.items() if theirs[0] in header}
            Header(self.path, tuple(header)).describe(read, (f"modality {self.modality}",))
            captions = [(_image(place, cells[image]) + self.suffix, cells[caption], place) for place, cells in table]
        cleaned = [(name, "" if is_empty(text) else clean_caption(text), place) for name, text, place in captions]
        kept = tuple((name, text, place, status[place]) for name, text, place in cleaned if text)
        if not kept:
            raise DataError(f"{self.path}: has no rows with a caption")
        if len(kept) < len(captions):
            empty = sum(is_empty(text) for _, text, _ in captions)
            line = "%s: left out %d of %d rows (%d without a caption, %d that only refer to a figure)"
            left = len(captions) - len(kept)
            warn_line(_log, line, self.path, left, len(captions), empty, left - empty)
        return kept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        image, caption, place, status = self.rows[index]
        view = View(self.image_dir / image, self.modality)
        return Record(image, (view,), report=caption, targets={"status": np.int32(status)}, where=place)


def clean_caption(caption: str) -> str:
    """Cut references to other figures of the atlas, keep the rest of their sentences, and collapse white space.

    "Hard exudates (see figure 3) and oedema." becomes "Hard exudates and oedema."; nothing but a reference becomes "".
    """
    text, kept, start = " ".join(caption.split()), [], 0
    for figure in _FIGURE.finditer(text):
        before = _BEFORE.search(text, max(start, figure.start() - 60), figure.start())
        after = _AFTER.match(text, figure.end())
        kept.append(text[start : before.start() if before else figure.start()])
        start = after.end() if after else figure.end()
    if not kept:
        return _SAME.sub("", text) if _letters(_SAME.sub("", text)) else ""
    text = _SAME.sub("", "".join([*kept, text[start:]]))
    text = re.sub(r"[(（][\s,;，；.]{0,9}[)）]", "", text)
    text = re.sub(r" {1,9}(?=[,.;:，。；)）])|(?<=[(（]) |(?<=[(（])[,;:，；] ?", "", " ".join(text.split()))
    text = re.sub(r"([,;:，；])(?: ?[,;:，；]){1,9}", r"\1", text)
    text = re.sub(r"[,;:，；] ?(?=[.。)）]|$)", "", text)
    sentences = [part.strip(" ,;，；") for part in re.split(r"(?<=[.。;；])(?: |(?=[^\d ]))", text)]
    return " ".join(part for part in sentences if _letters(part))


def _letters(text: str) -> bool:
    return any(letter.isalpha() for letter in text)


def _read_frame(path: Path, modality: str, sep: str, encoding: str) -> list[Row]:
    header, rows = _read_table(path, sep, encoding)
    image, categories = (_one_of(path, header, (name,)) for name in ("image", "categories"))
    attributes = next((name for name in ("atributes", "attributes") if name in header), None)
    read = {name: (name,) for name in (image, categories, attributes) if name}
    Header(path, tuple(header)).describe(read, (f"modality {modality}",))
    return [
        Row(
            _image(place, cells[image]),
            _names(place, cells[attributes]) if attributes else (),
            _names(place, cells[categories]),
            place,
        )
        for place, cells in rows
    ]


def _read_table(path: Path, sep: str, encoding: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The column names, and for each row its place in the file, as messages name it, and its cells by column."""
    rows = list(read_named(path, sep=sep, encoding=encoding))
    return list(rows[0][1]) if rows else next(read_rows(path, sep, encoding))[2], rows


def _image(place: str, name: str) -> str:
    if is_empty(name):
        raise DataError(f"{place}: image is empty ({name!r})")
    return name.replace("\\", "/")


def _one_of(path: Path, header: Sequence[str], names: Sequence[str]) -> str:
    column = next((name for name in names if name in header), None)
    if column is None:
        raise DataError(f"{path}: expected a column {' or '.join(names)}; it has {', '.join(header) or 'none'}")
    return column


def _names(place: str, text: str) -> tuple[str, ...]:
    """Parse a Python list of strings as a literal, without evaluating any code."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{place}: {text[:60]!r} is not a list of texts") from error
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{place}: {text[:60]!r} is not a list of texts")
    return tuple(value)


def _status(place: str, word: str) -> int:
    known = {"": -1, "normal": 0, "abnormal": 1}
    if (plain := "" if is_empty(word) else word.lower()) not in known:
        raise DataError(f"{place}: fundus_status is {word!r}; expected normal, abnormal or nothing")
    return known[plain]
