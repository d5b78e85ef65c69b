"""RET-CLIP's data: both eyes of a patient and one report, from its tsv + jsonl pair, its LMDB, or a CSV.

One row is one (report, patient) pair. An eye without an image is an empty cell (the peer has no such rows)
and leaves no view. Layouts: the LMDB builder and reader of github.com/sStonemason/RET-CLIP (Apache-2.0)."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import os
import pickle
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, Record, View

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # reports are longer than csv's 128 KiB now and then


_PLAIN = "only tuples, str, bytes and int"


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Strings:
    """A column of strings in one buffer: no Python object per row."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode()


@dataclass(frozen=True)
class PairedFiles:
    """`S_imgs.tsv` (patient, left, right: base64 images) with `S_texts.jsonl` ({text_id, text, image_ids}).

    The first use reads both files once to index them by byte offset; images stay on disk.
    Raises DataError naming file and line: not three columns, a patient twice, a report of an unknown patient.
    """

    images: Path
    texts: Path

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        image_start, image_end, text_start, text_end = self._rows[index]
        patient, *eyes = _span(self.images, image_start, image_end).rstrip(b"\r\n").decode().split("\t")
        where = f"{self.images}, patient {patient}"
        left, right = _decode_pair(eyes, where)
        text = json.loads(_span(self.texts, text_start, text_end))["text"]
        return both_eyes(patient, left, right, text, where)

    @cached_property
    def _rows(self) -> np.ndarray:
        """i64 [rows 4]: where the line of the images and the line of the report begin and end."""
        lines, rows = _image_lines(self.images), array("q")
        for number, start, end, line in _numbered_lines(self.texts):
            where = f"{self.texts}, line {number}"
            for patient in _patients_of(line, where):
                if patient not in lines:
                    raise DataError(f"{where}: patient {patient} is not in {self.images}")
                rows.extend((*lines[patient], start, end))
        return np.array(rows, np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class PeerLMDB:
    """`<root>/imgs` and `<root>/pairs` as the peer's builder writes them (extra `lmdb`).

    Values are pickles: only tuples, str, bytes and int are admitted, anything else is refused unread.
    """

    root: Path

    def __len__(self) -> int:
        count = _lmdb_get(self.root / "pairs", "num_samples")
        return int(count.decode())

    def __getitem__(self, index: int) -> Record:
        pairs, images = self.root / "pairs", self.root / "imgs"
        where = f"{pairs}, key {index}"
        row = _expect_tuple(safe_loads(_lmdb_get(pairs, str(index)), where), 3, "patient, text_id, text", where)
        patient, text = str(row[0]), row[2]
        where = f"{images}, key {patient}"
        eyes = safe_loads(_lmdb_get(images, str(patient)), where)
        left, right = _decode_pair(_expect_tuple(eyes, 2, "left, right in base64", where), where)
        text = text.decode() if isinstance(text, bytes) else str(text)
        return both_eyes(str(patient), left, right, text, where)


@dataclass(frozen=True)
class PatientCSV:
    """A table with the columns patient, left, right and text; paths are relative to `image_dir`.

    An empty cell under left or right is an eye without an image.
    Raises DataError naming the file and the row or column.
    """

    table: Path
    image_dir: Path | None = None  # the folder of the table when None
    columns: tuple[str, str, str, str] = ("patient", "left", "right", "text")
    separator: str = ","

    def __len__(self) -> int:
        return len(self._cells[0])

    def __getitem__(self, index: int) -> Record:
        patient, left, right, text = (column[index] for column in self._cells)
        folder = self.image_dir or self.table.parent
        paths = [folder / name if name else None for name in (left, right)]
        where = f"{self.table} row {index + 1}"
        for path in paths:
            if path is not None and not path.is_file():
                raise DataError(f"{where}: no file {path}")
        return both_eyes(patient, paths[0], paths[1], text, where)

    @cached_property
    def _cells(self) -> tuple[Strings, ...]:
        cells = tuple(Strings() for _ in self.columns)
        if not self.table.is_file():
            raise DataError(f"no file {self.table}")
        with self.table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=self.separator)
            if missing := [c for c in self.columns if c not in (reader.fieldnames or ())]:
                raise DataError(f"{self.table}: no column {missing[0]!r} among {reader.fieldnames}")
            for row in reader:
                for column, name in zip(cells, self.columns, strict=True):
                    column.append((row[name] or "").strip())
        return cells


def both_eyes(patient: str, left: bytes | Path | None, right: bytes | Path | None, report: str, where: str) -> Record:
    """The record of one row; None is an eye without an image.

    Raises DataError naming `where` when both are None, or when the report is empty (or NaN, as pandas writes it).
    """
    views = tuple(View(image, "CFP", eye) for image, eye in ((left, "left"), (right, "right")) if image)
    if not views:
        raise DataError(f"{where}: expected an image of at least one eye, both are empty")
    if report.strip().lower() in ("", "nan"):
        raise DataError(f"{where}: the report is empty ({report!r}); expected text")
    return Record(patient, views, report, where=where)


def safe_loads(data: bytes, where: str) -> Any:
    """Unpickles tuples of str, bytes and int.

    Raises DataError naming `where` for anything else; nothing the pickle names is imported or called.
    """
    try:
        value = _Restricted(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{where}: expected a pickled tuple, found damaged data ({error})") from None
    return _only_plain(value, where)


class _Restricted(pickle.Unpickler):
    """Every way from a pickle to code goes through find_class (or a persistent id): both refuse."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise DataError(f"refused a pickle that names {module_name}.{global_name}; expected {_PLAIN}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"refused a pickle with a persistent id; expected {_PLAIN}")


def _only_plain(value: Any, where: str) -> Any:
    if type(value) is tuple:
        return tuple(_only_plain(item, where) for item in value)
    if type(value) not in (str, bytes, int):
        raise DataError(f"{where}: refused a pickled {type(value).__name__}; expected {_PLAIN}")
    return value


def _expect_tuple(value: Any, length: int, meaning: str, where: str) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != length:
        raise DataError(f"{where}: expected a tuple ({meaning}), found {type(value).__name__} {value!r:.60}")
    return value


def _lmdb_get(folder: Path, key: str) -> bytes:
    with _environment(folder, os.getpid()).begin(buffers=False) as transaction:
        value = transaction.get(key.encode())
    if value is None:
        raise DataError(f"{folder}: no key {key!r}")
    return value


@lru_cache(maxsize=16)
def _environment(folder: Path, process: int) -> Any:
    """One environment per folder and process: LMDB forbids a second one, and one carried over a fork."""
    try:
        import lmdb
    except ModuleNotFoundError:
        raise DataError(f"{folder}: reading LMDB needs `pip install 'fundax[lmdb]'`") from None
    if not folder.is_dir():
        raise DataError(f"no LMDB folder {folder}; expected `imgs` and `pairs` side by side")
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DataError(f"{folder}: not an LMDB environment ({error})") from None


def _decode_pair(eyes: Sequence[str | bytes], where: str) -> tuple[bytes | None, bytes | None]:
    left, right = eyes
    return _decode_image(left, f"{where}, left eye"), _decode_image(right, f"{where}, right eye")


def _decode_image(text: str | bytes, where: str) -> bytes | None:
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    try:
        return base64.b64decode(raw.strip().translate(_URL_SAFE), validate=True) or None
    except binascii.Error as error:
        raise DataError(f"{where}: expected an image in URL-safe base64 ({error})") from None


def _image_lines(path: Path) -> dict[str, tuple[int, int]]:
    lines: dict[str, tuple[int, int]] = {}
    for number, start, end, line in _numbered_lines(path):
        columns = line.rstrip(b"\r\n").split(b"\t")
        if len(columns) != 3:
            raise DataError(
                f"{path}, line {number}: expected 3 tab-separated columns (patient, left, right; an eye "
                f"without an image is an empty one), found {len(columns)}"
            )
        patient = columns[0].decode()
        if patient in lines:
            raise DataError(f"{path}, line {number}: patient {patient} is there twice")
        lines[patient] = (start, end)
    return lines


def _patients_of(line: bytes, where: str) -> list[str]:
    try:
        row = json.loads(line)
        if not isinstance(row["text"], str):
            raise TypeError
        return [str(patient) for patient in row["image_ids"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{where}: expected {{"text_id", "text", "image_ids": [...]}}, found {line[:60]!r}') from None


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


def open_pairs(path: str | Path, image_dir: str | Path = "") -> PairedFiles | PeerLMDB | PatientCSV:
    """The source a path means: `S_imgs.tsv` with `S_texts.jsonl` beside it, a folder with imgs/ and pairs/, or a CSV.

    Opens nothing yet. Raises DataError for a path that is none of these.
    """
    path = Path(path)
    if path.name.endswith("_imgs.tsv"):
        return PairedFiles(path, path.with_name(path.name.removesuffix("_imgs.tsv") + "_texts.jsonl"))
    if (path / "pairs").is_dir() and (path / "imgs").is_dir():
        return PeerLMDB(path)
    if path.suffix == ".csv":
        return PatientCSV(path, Path(image_dir) if image_dir else None)
    raise DataError(f"{path}: expected a .csv, a ..._imgs.tsv, or a folder with the LMDBs imgs and pairs")
