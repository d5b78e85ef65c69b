"""FLAIR's data frames and MM-Retinal's tables as sources, and the step that turns categories into captions.

Layouts as in github.com/jusiro/FLAIR, github.com/lxirich/MM-Retinal and RetCoP; only loaders are here, no data."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import read_once

# what FLAIR keeps out of pretraining, to test on categories never seen
UNSEEN = ("myopia", "cataract", "macular hole", "retinitis pigmentosa", "myopic", "myope", "myop", "retinitis")


# folders whose labels FLAIR leaves as they are: free texts, or words of another meaning
AS_THEY_ARE = ("06_EYENET", "11_STARE", "08_ODIR-5K", "31_JICHI")


BANS = ("substring", "exact")


CAPTIONS = {"en": ("en_caption", "caption"), "zh": ("cn_caption",)}


_OTHER_FIGURE = re.compile(
    r"[^.;]*\b(?:same (?:person|patient|eye) as|see) fig(?:ure|\.)?[^.;]*(?:\.\d[^.;]*)*[.;]?", re.I
)


@dataclass(frozen=True)
class Row:
    """One image of a data frame."""

    image: str
    attributes: tuple[str, ...]
    categories: tuple[str, ...]
    line: int


def flair_frame(
    path: str | Path,
    root: str | Path,
    *,
    ban: Sequence[str] = (),
    ban_by: str = "substring",
    modality: str = "CFP",
) -> FlairFrame:
    """A CSV of `image` (below `root`), `atributes` and `categories`, the latter two as lists written in Python.

    ban: rows with a banned category are left out. By "substring", as FLAIR does: "pathologic myopia" falls under
        "myopia"; or "exact", as KeepFIT does, which lets it through.
    Building opens nothing. Raises DataError at the first use naming the file, its columns or its line.
    """
    if ban_by not in BANS:
        raise DataError(f"ban_by is {ban_by!r}; expected {' or '.join(BANS)}")
    return FlairFrame(Path(path), Path(root), tuple(ban), ban_by, modality_name(modality))


@dataclass(frozen=True)
class FlairFrame:
    """See flair_frame. Several data sets sampled alike, FLAIR's `balance`, are a pipeline.mix of equal weights."""

    path: Path
    root: Path
    ban: tuple[str, ...]
    ban_by: str
    modality: str

    def __getstate__(self) -> dict[str, Any]:
        len(self)  # read once, not by every worker
        return self.__dict__

    @read_once
    def rows(self) -> tuple[Row, ...]:
        """The rows that are not banned."""
        kept = tuple(row for row in _read_frame(self.path) if not self.banned(row.categories))
        if not kept:
            raise DataError(f"{self.path}: has no rows" + (" outside the banned categories" if self.ban else ""))
        return kept

    def banned(self, categories: Sequence[str]) -> bool:
        """Whether these categories keep a row out."""
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
            where=f"{self.path} line {row.line}",
        )


def mm_retinal(
    path: str | Path, image_dir: str | Path, *, language: str = "en", modality: str = "CFP", suffix: str = ""
) -> MMRetinal:
    """Images with expert captions: `Image_ID, cn_caption, en_caption`, or `image, caption`, or FLAIR's columns.

    In the last form, that of the FFA table, a category is the caption. suffix: put behind Image_ID, as ".jpg" is where the
    table leaves it out. Sentences that point at other figures are cut out. A column `fundus_status` (normal or abnormal)
    is the record's target "status", 0 or 1; it is -1 where the table has none or leaves a row empty.
    Raises DataError at the first use naming the file and what it lacks.
    """
    if language not in CAPTIONS:
        raise DataError(f"language {language!r} is not one of {', '.join(CAPTIONS)}")
    return MMRetinal(Path(path), Path(image_dir), language, modality_name(modality), suffix)


@dataclass(frozen=True)
class MMRetinal:
    """See mm_retinal."""

    path: Path
    image_dir: Path
    language: str
    modality: str
    suffix: str

    def __getstate__(self) -> dict[str, Any]:
        len(self)
        return self.__dict__

    @read_once
    def rows(self) -> tuple[tuple[str, str, int, int], ...]:
        """Image, caption, line and status; rows without a caption left after cleaning are dropped."""
        header, lines = _read_csv(self.path)
        told = {line: _status(self.path, line, values.get("fundus_status", "")) for line, values in lines}
        if "categories" in header:
            frame = _read_frame(self.path)
            found = [(row.image, ", ".join(row.categories), row.line) for row in frame]
        else:
            image = _one_of(self.path, header, ("Image_ID", "image"))
            caption = _one_of(self.path, header, CAPTIONS[self.language])
            found = [(values[image] + self.suffix, values[caption], line) for line, values in lines]
        kept = tuple((image, clean, line, told[line]) for image, text, line in found if (clean := cleaned(text)))
        if not kept:
            raise DataError(f"{self.path}: has no rows with a caption")
        return kept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        image, caption, line, told = self.rows[index]
        view, where = View(self.image_dir / image, self.modality), f"{self.path} line {line}"
        return Record(image, (view,), report=caption, targets={"status": np.int32(told)}, where=where)


def cleaned(caption: str) -> str:
    """A caption without sentences about other figures, white space collapsed; the atlases number their pictures."""
    return " ".join(_OTHER_FIGURE.sub(" ", caption).split())


def _read_frame(path: Path) -> list[Row]:
    header, lines = _read_csv(path)
    image, categories = (_one_of(path, header, (name,)) for name in ("image", "categories"))
    attributes = next((name for name in ("atributes", "attributes") if name in header), None)
    rows = []
    for line, values in lines:
        said = values[attributes] if attributes else "[]"
        rows.append(Row(values[image], _names(path, line, said), _names(path, line, values[categories]), line))
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and every row with its line in the file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8: {error}") from error
    for line, row in lines:
        if None in row or None in row.values():
            raise DataError(f"{path} line {line}: expected {len(header)} fields, {', '.join(header)}")
    return header, lines


def _one_of(path: Path, header: Sequence[str], names: Sequence[str]) -> str:
    found = next((name for name in names if name in header), None)
    if found is None:
        raise DataError(f"{path}: expected a column {' or '.join(names)}; it has {', '.join(header) or 'none'}")
    return found


def _names(path: Path, line: int, written: str) -> tuple[str, ...]:
    """A list of texts written in Python, read as a literal: nothing in a table is ever run."""
    try:
        value = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} line {line}: {written[:60]!r} is not a list of texts") from error
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{path} line {line}: {written[:60]!r} is not a list of texts")
    return tuple(value)


def _status(path: Path, line: int, word: str | None) -> int:
    known = {"": -1, "normal": 0, "abnormal": 1}
    if (plain := (word or "").strip().lower()) not in known:
        raise DataError(f"{path} line {line}: fundus_status is {word!r}; expected normal, abnormal or nothing")
    return known[plain]
