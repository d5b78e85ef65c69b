"""Sources for RET-CLIP: both eyes of a patient and one report, from a tsv + jsonl pair, an LMDB or a CSV.

Each record is one (report, patient) pair. An eye without an image has an empty cell and no view; the original data has
no such rows. The tsv, jsonl and LMDB formats are those of github.com/sStonemason/RET-CLIP (Apache-2.0).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import pickle
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.columns import Strings, StringWriter, read_once
from data_pipelines.sources.csv_table import EMPTY, read_rows, where

_PLAIN = "only tuples, str, bytes and int"
_NO_REPORT = EMPTY | {"none"}
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
        patient, *eyes = _span(self.images, image_start, image_end).rstrip(b"\r\n").decode().split("\t")
        place = f"{self.images}, patient {patient}"
        left, right = _decode_pair(eyes, place)
        text = json.loads(_span(self.texts, text_start, text_end))["text"]
        return both_eyes(patient, left, right, text, place)

    @read_once
    def _rows(self) -> np.ndarray:
        """i64 [rows 4]: byte offsets of the start and end of the image line, then of the report line."""
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
    """`<root>/imgs` and `<root>/pairs`, as RET-CLIP's own builder writes them. Needs the extra `lmdb`.

    The values are pickles. Only tuples, str, bytes and int are accepted; anything else is refused without running it.
    """

    root: Path

    def __len__(self) -> int:
        count = _lmdb_get(self.root / "pairs", "num_samples")
        return int(count.decode())

    def __getitem__(self, index: int) -> Record:
        pairs, images = self.root / "pairs", self.root / "imgs"
        place = f"{pairs}, key {index}"
        row = _expect_tuple(safe_loads(_lmdb_get(pairs, str(index)), place), 3, "patient, text_id, text", place)
        patient, text = str(row[0]), row[2]
        place = f"{images}, key {patient}"
        eyes = safe_loads(_lmdb_get(images, str(patient)), place)
        left, right = _decode_pair(_expect_tuple(eyes, 2, "left, right in base64", place), place)
        text = text.decode() if isinstance(text, bytes) else str(text)
        return both_eyes(str(patient), left, right, text, place)


@dataclass(frozen=True)
class PatientCSV:
    """A CSV with the columns patient, left, right and text. Image paths are relative to `image_dir`.

    An empty cell in left or right is an eye without an image. Raises DataError naming the file and the row or column.
    """

    table: Path
    image_dir: Path | None = None  # the folder of the table if None
    columns: tuple[str, str, str, str] = ("patient", "left", "right", "text")
    separator: str = ","

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        patient, left, right, text = (column[index] for column in self._cells)
        folder = self.image_dir or self.table.parent
        paths = [folder / name if name else None for name in (left, right)]
        place = where(self.table, *self._places[index].tolist())
        for path in paths:
            if path is not None and not path.is_file():
                raise DataError(f"{place}: no such image file {path}")
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
        rows = read_rows(self.table, self.separator)
        header = next(rows)[2]
        if missing := [name for name in self.columns if name not in header]:
            raise DataError(f"{self.table}: no column {missing[0]!r} among {', '.join(header)}")
        columns = [(header.index(name), StringWriter()) for name in self.columns]
        places = array("I")
        for row, line, cells in rows:
            places.extend((row, line))
            for column, writer in columns:
                writer.append(cells[column].strip())
        return tuple(writer.finish() for _, writer in columns), np.array(places, np.uint32).reshape(-1, 2)


def both_eyes(patient: str, left: bytes | Path | None, right: bytes | Path | None, report: str, place: str) -> Record:
    """Build the record of one visit; None is an eye without an image.

    Raises DataError naming `place` if both images are None, or if the report is empty, "nan", "None", "NULL" or "N/A".
    """
    views = tuple(View(image, "CFP", eye) for image, eye in ((left, "left"), (right, "right")) if image)
    if not views:
        raise DataError(f"{place}: expected an image of at least one eye, both are empty")
    if report.strip().lower() in _NO_REPORT:
        raise DataError(f"{place}: the report is empty ({report!r}); expected text")
    return Record(patient, views, report, where=place)


def safe_loads(data: bytes, place: str) -> Any:
    """Unpickle tuples of str, bytes and int.

    Raises DataError naming `place` for anything else. Nothing that the pickle names is imported or called.
    """
    try:
        value = _Restricted(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{place}: expected a pickled tuple, found damaged data ({error})") from None
    return _only_plain(value, place)


class _Restricted(pickle.Unpickler):
    """A pickle reaches code only through find_class or a persistent id; both are refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise DataError(f"refused a pickle that names {module_name}.{global_name}; expected {_PLAIN}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"refused a pickle with a persistent id; expected {_PLAIN}")


def _only_plain(value: Any, place: str) -> Any:
    if type(value) is tuple:
        return tuple(_only_plain(item, place) for item in value)
    if type(value) not in (str, bytes, int):
        raise DataError(f"{place}: refused a pickled {type(value).__name__}; expected {_PLAIN}")
    return value


def _expect_tuple(value: Any, length: int, meaning: str, place: str) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != length:
        raise DataError(f"{place}: expected a tuple ({meaning}), found {type(value).__name__} {value!r:.60}")
    return value


def _lmdb_get(folder: Path, key: str) -> bytes:
    with _environment(folder, os.getpid()).begin(buffers=False) as transaction:
        value = transaction.get(key.encode())
    if value is None:
        raise DataError(f"{folder}: no key {key!r}")
    return value


@lru_cache(maxsize=16)
def _environment(folder: Path, process: int) -> Any:
    """One environment per folder and process: LMDB allows neither a second one nor one inherited by a fork."""
    try:
        import lmdb
    except ModuleNotFoundError:
        raise DataError(f"{folder}: reading LMDB needs `pip install 'fundax[lmdb]'`") from None
    if not folder.is_dir():
        raise DataError(f"no LMDB folder {folder}; expected a folder with imgs/ and pairs/")
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{folder}: not an LMDB environment ({error})") from None


def _decode_pair(eyes: Sequence[str | bytes], place: str) -> tuple[bytes | None, bytes | None]:
    left, right = eyes
    return _decode_image(left, f"{place}, left eye"), _decode_image(right, f"{place}, right eye")


def _decode_image(text: str | bytes, place: str) -> bytes | None:
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
        patient = columns[0].decode()
        if patient in lines:
            raise DataError(f"{path}, line {number}: patient {patient} occurs twice")
        lines[patient] = (start, end)
    return lines


def _patients_of(line: bytes, place: str) -> list[str]:
    try:
        row = json.loads(line)
        if not isinstance(row["text"], str):
            raise TypeError
        return [str(patient) for patient in row["image_ids"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{place}: expected {{"text_id", "text", "image_ids": [...]}}, found {line[:60]!r}') from None


def _numbered_lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    if not path.is_file():
        raise DataError(f"no file {path}")
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, start, start + len(line), line
            start += len(line)


def _span(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def open_pairs(path: str | Path, image_dir: str | Path = "") -> PairedFiles | PairedLMDB | PatientCSV:
    """Choose the source for a path: `S_imgs.tsv` next to `S_texts.jsonl`, a folder with imgs/ and pairs/, or a CSV.

    Files are opened at the first use. Raises DataError for any other path.
    """
    path = Path(path)
    if path.name.endswith("_imgs.tsv"):
        return PairedFiles(path, path.with_name(path.name.removesuffix("_imgs.tsv") + "_texts.jsonl"))
    if (path / "pairs").is_dir() and (path / "imgs").is_dir():
        return PairedLMDB(path)
    if path.suffix == ".csv":
        return PatientCSV(path, Path(image_dir) if image_dir else None)
    raise DataError(f"{path}: expected a .csv, a ..._imgs.tsv, or a folder with the LMDBs imgs and pairs")
