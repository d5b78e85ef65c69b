"""Sources for RET-CLIP: both eyes of a patient and one report, from a tsv + jsonl pair, an LMDB or a CSV.

Each record is one (report, patient) pair. An eye without an image has an empty cell and no view; the original data has
no such rows. The tsv, jsonl and LMDB formats are those of github.com/sStonemason/RET-CLIP (Apache-2.0).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files.pickles import plain_tuple
from data_pipelines.notices import warn_line
from data_pipelines.records import DataError, Record, View, no_such_image
from data_pipelines.sources.columns import Strings, StringWriter, read_once
from data_pipelines.sources.header import Header
from data_pipelines.sources.lmdb_file import Environment, open_environment
from data_pipelines.sources.tables import SUFFIXES, is_empty, plain, read_rows, where

_log = logging.getLogger(__name__)

PATIENT_COLUMNS = ("patient", "left", "right", "text")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class PairedFiles:
    """`S_imgs.tsv` (patient, left and right image in base64) and `S_texts.jsonl` ({text_id, text, image_ids}).

    The first use reads both files once and indexes them by byte offset; images stay on disk. Raises DataError naming
    file and line for a wrong number of columns, a repeated patient, and a report of an unknown patient.
    """

    images: Path
    texts: Path

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        image_start, image_end, text_start, text_end = self._rows[index]
        name, *eyes = _span(self.images, image_start, image_end).rstrip(b"\r\n").split(b"\t")
        patient = _utf8(name, str(self.images))
        place = f"{self.images}, patient {patient}"
        left, right = _decode_pair(eyes, place)
        text = json.loads(_span(self.texts, text_start, text_end))["text"]
        return both_eyes(patient, left, right, text, place)

    @read_once
    def _rows(self) -> np.ndarray:
        """Byte offsets i64 [rows 4] of the start and end of the image line, then of the report line."""
        lines, rows = _image_lines(self.images), array("q")
        for number, start, end, line in _numbered_lines(self.texts):
            place = f"{self.texts}, line {number}"
            for patient in _patients_of(line, place):
                if patient not in lines:
                    raise DataError(f"{place}: patient {patient} is not in {self.images}")
                rows.extend((*lines[patient], start, end))
        return np.array(rows, np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class PairedLMDB:
    """`<root>/imgs` and `<root>/pairs`, as RET-CLIP's own builder writes them.

    The values are pickles. Only tuples, str, bytes and int are accepted; anything else is refused without running it.
    """

    root: Path

    def __len__(self) -> int:
        count = _lmdb_get(self.root / "pairs", "num_samples")
        most = _environment(self.root / "pairs").entries
        if not count.isdigit() or len(count) > 18 or int(count) > most:
            raise DataError(f"{self.root / 'pairs'}: num_samples is {count[:40]!r}, expected a number up to {most}")
        return int(count)

    def __getitem__(self, index: int) -> Record:
        pairs, images = self.root / "pairs", self.root / "imgs"
        place = f"{pairs}, key {index}"
        row = _expect_tuple(plain_tuple(_lmdb_get(pairs, str(index)), place), 3, "patient, text_id, text", place)
        patient, text = str(row[0]), row[2]
        place = f"{images}, key {patient}"
        eyes = plain_tuple(_lmdb_get(images, patient), place)
        left, right = _decode_pair(_expect_tuple(eyes, 2, "left, right in base64", place), place)
        text = _utf8(text, f"{pairs}, key {index}", "report") if isinstance(text, bytes) else str(text)
        return both_eyes(patient, left, right, text, place)


@dataclass(frozen=True)
class PatientCSV:
    """A table with the columns patient, left, right and text. Image paths are relative to `image_dir`.

    An empty cell in left or right is an eye without an image. A row without a patient, an image or a text is an error, or
    with empty="drop" left out and counted in the log. `columns` maps our names to the table's columns or to templates.
    Raises DataError naming the file and the row or column.
    """

    table: Path
    image_dir: Path | None = None  # the folder of the table if None
    columns: tuple[tuple[str, str], ...] = ()
    sep: str = ","
    encoding: str = ""
    empty: str = "error"

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        patient, left, right, text = (column[index] for column in self._cells)
        folder = self.image_dir or self.table.parent
        paths = [folder / name if name else None for name in (left, right)]
        place = where(self.table, *self._places[index].tolist())
        for path in paths:
            if path is not None and not path.is_file():
                raise DataError(f"{place}: {no_such_image(path)}")
        return both_eyes(patient, paths[0], paths[1], text, place)

    @property
    def _cells(self) -> tuple[Strings, ...]:
        return self._index[0]

    @property
    def _places(self) -> np.ndarray:
        return self._index[1]

    @read_once
    def _index(self) -> tuple[tuple[Strings, ...], np.ndarray]:
        """The four columns, and the row and line of each record u32 [rows 2]."""
        if self.empty not in ("error", "drop"):
            raise DataError(f"empty must be error or drop, not {self.empty!r}")
        rows = read_rows(self.table, self.sep, self.encoding)
        header, asked = Header(self.table, tuple(next(rows)[2])), dict(self.columns)
        theirs = {name: asked.get(name) or name for name in PATIENT_COLUMNS}
        getters = [header.getter(ours, column) for ours, column in theirs.items()]
        header.describe({ours: (column,) for ours, column in theirs.items()}, ("modality CFP",))
        writers, places, dropped = [StringWriter() for _ in getters], array("I"), 0
        for row, line, cells in rows:
            values = [get(cells) for get in getters]
            if problem := _missing(*values):
                if self.empty == "error":
                    hint = "fill it in, or leave such rows out with empty=drop"
                    raise DataError(f"{where(self.table, row, line)}: {problem}; {hint}")
                dropped += 1
                continue
            places.extend((row, line))
            for writer, value, name in zip(writers, values, PATIENT_COLUMNS, strict=True):
                path = "" if is_empty(value) else value.replace("\\", "/")
                writer.append(path if name in ("left", "right") else value)
        if dropped:
            total = dropped + len(places) // 2
            warn_line(_log, "%s: left out %d of %d rows with empty fields", self.table, dropped, total)
        if not places:
            raise DataError(f"{self.table}: has no rows" + (f" left, {dropped} have empty fields" if dropped else ""))
        return tuple(writer.finish() for writer in writers), np.array(places, np.uint32).reshape(-1, 2)


def _missing(patient: str, left: str, right: str, text: str) -> str:
    """The missing entries of a row in a table of patients; "" if it is complete."""
    if is_empty(left) and is_empty(right):
        return "expected an image of at least one eye, both are empty"
    return next((f"the {of} is empty ({v!r})" for of, v in (("patient", patient), ("report", text)) if is_empty(v)), "")


def both_eyes(patient: str, left: bytes | Path | None, right: bytes | Path | None, report: str, place: str) -> Record:
    """Build the record of one visit; None is an eye without an image.

    Raises DataError naming `place` if both images are None, or if the report is empty or a word for it, such as "NULL".
    """
    views = tuple(View(image, "CFP", eye) for image, eye in ((left, "left"), (right, "right")) if image)
    if not views:
        raise DataError(f"{place}: expected an image of at least one eye, both are empty")
    if is_empty(plain(report)):
        raise DataError(f"{place}: the report is empty ({report!r}); expected text")
    return Record(patient, views, report, where=place)


def _expect_tuple(value: Any, length: int, meaning: str, place: str) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != length:
        raise DataError(f"{place}: expected a tuple ({meaning}), found {type(value).__name__} {value!r:.60}")
    return value


def _lmdb_get(folder: Path, key: str) -> bytes:
    value = _environment(folder).get(key.encode())
    if value is None:
        raise DataError(f"{folder}: no key {key!r}")
    return value


@cache
def _environment(folder: Path) -> Environment:
    return open_environment(folder)


def _decode_pair(eyes: Sequence[Any], place: str) -> tuple[bytes | None, bytes | None]:
    left, right = eyes
    return _decode_image(left, f"{place}, left eye"), _decode_image(right, f"{place}, right eye")


def _decode_image(text: Any, place: str) -> bytes | None:
    if not isinstance(text, str | bytes):
        raise DataError(f"{place}: expected an image in URL-safe base64, found {type(text).__name__}")
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    try:
        return base64.b64decode(raw.strip().translate(_URL_SAFE), validate=True) or None
    except binascii.Error as error:
        raise DataError(f"{place}: expected an image in URL-safe base64 ({error})") from None


def _image_lines(path: Path) -> dict[str, tuple[int, int]]:
    lines: dict[str, tuple[int, int]] = {}
    for number, start, end, line in _numbered_lines(path):
        columns = line.rstrip(b"\r\n").split(b"\t")
        if len(columns) != 3:
            raise DataError(
                f"{path}, line {number}: expected 3 tab-separated columns (patient, left, right; "
                f"leave a column empty for an eye without an image), found {len(columns)}"
            )
        patient = _utf8(columns[0], f"{path}, line {number}")
        if patient in lines:
            raise DataError(f"{path}, line {number}: patient {patient} occurs twice")
        lines[patient] = (start, end)
    return lines


def _patients_of(line: bytes, place: str) -> list[str]:
    try:
        row = json.loads(line)
        text, patients = row["text"], [str(patient) for patient in row["image_ids"]]
        if not isinstance(text, str) or isinstance(row["image_ids"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f'{place}: expected {{"text_id", "text", "image_ids": [...]}}, found {line[:60]!r}') from None
    if is_empty(plain(text)):
        raise DataError(f"{place}: the report is empty ({text!r}); expected text")
    return patients


def _utf8(data: bytes, place: str, what: str = "patient") -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: the {what} {data[:40]!r} is not UTF-8 ({error.reason})") from None


def _numbered_lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    if not path.is_file():
        raise DataError(f"no file {path}")
    with path.open("rb") as file:
        start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(start)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, start, start + len(line), line
            start += len(line)


def _span(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def open_pairs(word: str | Path, image_dir: str | Path = "") -> PairedFiles | PairedLMDB | PatientCSV:
    """The source for a path: `S_imgs.tsv` with `S_texts.jsonl` next to it, a folder with imgs/ and pairs/, or a table of patients.

    Options of a table follow commas: patient=, left=, right= and text= are its columns, images= the folder of the images,
    and sep=, encoding= and empty=drop are as in csv_source. Files are opened at the first use. Raises DataError for any
    other path or option.
    """
    head, *rest = [str(word)] if Path(word).exists() else str(word).split(",")
    path, options = Path(head), {name: value for name, _, value in (part.partition("=") for part in rest)}
    known = (*PATIENT_COLUMNS, "images", "sep", "encoding", "empty")
    table = path.suffix.lower() in SUFFIXES and not path.name.endswith("_imgs.tsv")
    if wrong := [name for name in options if not table or name not in known]:
        raise DataError(f"{word}: unknown option {wrong[0]!r}; a table of patients has {', '.join(known)}")
    if path.name.endswith("_imgs.tsv"):
        return PairedFiles(path, path.with_name(path.name.removesuffix("_imgs.tsv") + "_texts.jsonl"))
    if (path / "pairs").is_dir() and (path / "imgs").is_dir():
        return PairedLMDB(path)
    if not table:
        raise DataError(
            f"{path}: expected a table ({', '.join(SUFFIXES)}), a ..._imgs.tsv, or a folder with the LMDBs imgs and pairs"
        )
    folder = options.pop("images", "") or image_dir
    columns = tuple((name, options[name]) for name in PATIENT_COLUMNS if options.get(name))
    return PatientCSV(
        path,
        Path(folder) if folder else None,
        columns,
        options.get("sep", ","),
        options.get("encoding", ""),
        options.get("empty", "error"),
    )
