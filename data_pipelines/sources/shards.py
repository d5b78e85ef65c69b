"""ArrayRecord shards of records with resized images, for fast reading of large data sets.

A folder holds `data-00000-of-00012.array_record`, ..., `patients.jsonl` (one name per record, so that splits need not
read images) and `info.json`. A record is the length of its header, the header as JSON, and then the encoded images and
the arrays of the targets, whose sizes are in the header. No pickle and no framework's format is involved.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files.json_files import checked, read_json
from data_pipelines.records import DataError, Record, View, eye_name, modality_name
from data_pipelines.sources.columns import Strings, read_once, row_index

FORMAT = "fundax records 1"
_PACKED = 1024  # bytes; larger arrays, such as masks, are compressed
_LENGTH = struct.Struct("<I")
# what damaged bytes, or other JSON than a record's, happen to raise
_BROKEN = (struct.error, zlib.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_BROKEN += (RecursionError, MemoryError)
MOST_SHARDS, LARGEST_TARGET = 100_000, 2**30  # files of a folder; bytes of one array


def pack(record: Record) -> bytes:
    """The bytes of a record whose images are encoded. Raises DataError for targets that cannot be stored."""
    blobs: list[bytes] = []
    views = []
    for view in record.views:
        if not isinstance(view.image, bytes):
            raise DataError(f"{record.where}: only encoded images can be packed, not {type(view.image).__name__}")
        blobs.append(view.image)
        views.append([view.modality, view.eye, len(view.image), view.report, _targets(view.targets, blobs)])
    header = {
        "patient": record.patient,
        "report": record.report,
        "findings": list(record.findings),
        "day": record.day,
        "where": record.where,
        "attributes": dict(record.attributes),
        "eye_reports": dict(record.eye_reports),
        "views": views,
        "targets": _targets(record.targets, blobs),
    }
    text = json.dumps(header, ensure_ascii=False).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def unpack(data: bytes) -> Record:
    """The inverse of `pack`. Raises DataError if the bytes are truncated or not a record."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        header = json.loads(data[_LENGTH.size : start])
        _check(header)
        blobs = _Blobs(memoryview(data)[start:])
        views = tuple(_view(blobs, *row) for row in header["views"])
        targets = {name: _from_json(value, blobs) for name, value in header["targets"].items()}
    except _BROKEN as error:
        raise DataError(f"not a record of launch.py data convert, or a damaged one ({error})") from None
    fields: dict[str, Any] = {name: header[name] for name in ("patient", "report", "day", "where")}
    fields |= {name: header.get(name, {}) for name in ("attributes", "eye_reports")}
    return Record(views=views, findings=tuple(header["findings"]), targets=targets, **fields)


def _check(header: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError for a header that is not of the form that `pack` writes."""
    texts = [header[name] for name in ("patient", "report", "where")] + [*header["findings"]]
    texts += [text for name in ("attributes", "eye_reports") for text in header.get(name, {}).values()]
    if not all(isinstance(text, str) for text in texts) or type(header["day"]) is not int:
        raise TypeError("its header has other types than a record's")


def _targets(targets: Mapping[str, Any], blobs: list[bytes]) -> dict[str, Any]:
    return {name: _to_json(name, value, blobs) for name, value in targets.items()}


def _view(
    blobs: _Blobs, modality: str, eye: str, length: int, report: str = "", targets: Mapping[str, Any] | None = None
) -> View:
    """A view; earlier shards have neither a report nor targets of a view."""
    if not isinstance(report, str):
        raise TypeError("the report of a view is not a text")
    image = bytes(blobs.next(int(length)))
    found = {name: _from_json(one, blobs) for name, one in (targets or {}).items()}
    return View(image, modality_name(modality), eye_name(eye), report, found)


class _Blobs:
    """The bytes after a header, read in the order in which they were written."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def next(self, length: int) -> memoryview:
        part = self._data[self._at : self._at + length]
        if length < 0 or len(part) != length:
            raise ValueError(f"{length - len(part)} bytes are missing")
        self._at += length
        return part


def _to_json(name: str, value: Any, blobs: list[bytes]) -> Any:
    """A target as JSON; the bytes of arrays are appended to `blobs`."""
    if isinstance(value, Mapping):
        return {"dict": {str(key): _to_json(name, inner, blobs) for key, inner in value.items()}}
    if isinstance(value, tuple | list):
        return {"tuple": [_to_json(name, inner, blobs) for inner in value]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        raw = np.ascontiguousarray(value).tobytes()
        packed = len(raw) > _PACKED
        blobs.append(zlib.compress(raw, 1) if packed else raw)
        shape = list(value.shape) if isinstance(value, np.ndarray) else None  # None: a scalar
        return {"array": [value.dtype.str, shape, len(blobs[-1]), packed]}
    if isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise DataError(f"target {name!r} is {type(value).__name__}; expected numbers, text or arrays of numbers")


def _from_json(value: Mapping[str, Any], blobs: _Blobs) -> Any:
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: _from_json(inner, blobs) for key, inner in content.items()}
    if kind == "tuple":
        return tuple(_from_json(inner, blobs) for inner in content)
    if kind == "plain":
        return content
    dtype, shape, length, packed = content
    kind, count = np.dtype(str(dtype)), math.prod(shape or ())
    if kind.kind not in "biuf" or not 0 <= count * kind.itemsize <= LARGEST_TARGET:
        raise ValueError(f"a target of {count} values of {dtype}")
    raw: bytes | memoryview = blobs.next(length)
    if packed:
        raw = zlib.decompressobj().decompress(raw, count * kind.itemsize + 1)
    flat = np.frombuffer(raw, kind)
    return flat[0] if shape is None else flat.reshape(shape).copy()


def shard_name(shard: int, shards: int) -> str:
    """The file name of a shard; shards are numbered from 0."""
    return f"data-{shard:05d}-of-{shards:05d}.array_record"


@dataclass(frozen=True)
class Shards:
    """See array_records. The pickle holds only the name of the folder."""

    folder: Path

    @read_once
    def info(self) -> dict[str, Any]:
        """The content of info.json: records, shards, classes, size, images."""
        path = self.folder / "info.json"
        if not path.is_file():
            raise DataError(f"{self.folder}: no info.json; expected a folder that launch.py data convert wrote")
        info = read_json(path, dict[str, Any], "a JSON object")
        if info.get("format") != FORMAT:
            raise DataError(f"{path}: format is not {FORMAT!r}; convert the data again")
        numbers = [info.get(name) for name in ("records", "shards")]
        checked(numbers, list[int], f"{path}: records and shards")
        checked(info.get("classes"), list[str], f"{path}: classes")
        if not (1 <= numbers[1] <= MOST_SHARDS and 0 <= numbers[0] < 2**40):
            raise DataError(f"{path}: {numbers[0]} records in {numbers[1]} shards cannot be")
        return info

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index; () without labels."""
        return tuple(self.info["classes"])

    def __len__(self) -> int:
        return int(self.info["records"])

    def __getitem__(self, index: int) -> Record:
        row = row_index(index, len(self))
        place = f"{self.folder} row {row + 1}"
        try:
            record = unpack(self._bytes(row))
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        return Record(**{**vars(record), "where": f"{place} ({record.where})" if record.where else place})

    def _bytes(self, row: int) -> bytes:
        reader = self._reader
        try:
            return reader[row]
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"its file is damaged ({_line(error)})") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @read_once
    def _reader(self) -> Any:
        from array_record.python import array_record_data_source

        shards = int(self.info["shards"])
        paths = [self.folder / shard_name(k, shards) for k in range(shards)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{self.folder}: {missing[0]} is missing ({len(missing)} of {shards} files are)")
        try:
            reader = array_record_data_source.ArrayRecordDataSource([str(path) for path in paths])
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{self.folder}: a file is cut short or damaged ({_line(error)})") from None
        if len(reader) != len(self):
            raise DataError(f"{self.folder}: the files hold {len(reader)} records, info.json says {len(self)}")
        return reader

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [rows] of each patient, or of each report, which reads every record; for split_by."""
        if key not in ("patient", "report"):
            raise DataError(f"{self.folder}: cannot be split by {key}, only by patient or report")
        names = self._patients() if key == "patient" else (self[row].report for row in range(len(self)))
        hashes = Strings.of(names).hashes(seed)
        if len(hashes) != len(self):
            raise DataError(f"{self.folder}/patients.jsonl has {len(hashes)} names, info.json {len(self)} records")
        return hashes

    def _patients(self) -> Iterator[str]:
        path = self.folder / "patients.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected the patients of the records")
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    yield checked(json.loads(line), str, f"{path} line {number}")
        except (OSError, ValueError, RecursionError) as error:
            raise (
                error if isinstance(error, DataError) else DataError(f"{path}: not a list of patients ({error})")
            ) from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def array_records(folder: str | Path) -> Shards:
    """A source for a folder written by `launch.py data convert`. The first use raises DataError for other folders."""
    return Shards(Path(folder))


def write_shard(path: Path, records: Iterator[Record] | Sequence[Record]) -> list[str]:
    """Write one file and return the patients of its records."""
    import array_record.python.array_record_module as array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # images are compressed
    patients = []
    for record in records:
        writer.write(pack(record))
        patients.append(record.patient)
    writer.close()
    return patients
