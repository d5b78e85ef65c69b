"""Columns of a big index: a few flat arrays, on disk when large, so that workers share them and pickles stay small."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipelines.records import text_hash

SPILL = 2**20  # bytes; an array above this lies in a file of its own and is mapped into memory


T = TypeVar("T")


_READING = threading.RLock()


class read_once(functools.cached_property[T]):
    """A cached property that many threads read at once and one computes (from Python 3.12 on nothing else locks)."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with _READING:
            return super().__get__(instance, owner)


class Stored:
    """An array that pickles as the name of its file once it is larger than SPILL."""

    def __init__(self, data: np.ndarray) -> None:
        if data.nbytes > SPILL and not isinstance(data, np.memmap):
            path = _fresh_file()
            data.tofile(path)
            data = np.memmap(path, data.dtype, "r", shape=data.shape)
        self.array = data

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.array, np.memmap):
            return _mapped, (str(self.array.filename), self.array.dtype.str, self.array.shape)
        return Stored, (self.array,)


def _mapped(path: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored(np.memmap(path, np.dtype(dtype), "r", shape=shape))


@functools.cache
def _folder(process: int) -> Path:
    """The temporary folder of a process; only that process removes it (a forked child has its own)."""
    folder = Path(tempfile.mkdtemp(prefix="fundax-index-"))
    atexit.register(lambda: os.getpid() == process and shutil.rmtree(folder, ignore_errors=True))
    return folder


def _fresh_file() -> str:
    handle, name = tempfile.mkstemp(dir=_folder(os.getpid()))
    os.close(handle)
    return name


class Strings:
    """Many strings as one array of UTF-8 bytes and the i64 end of each: 8 bytes a string beyond its text."""

    def __init__(self, blob: Stored, ends: Stored) -> None:
        self._stored = blob, ends
        self._bytes = blob.array.data  # slices of a mapped array are slow
        self._ends = np.asarray(ends.array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, self._stored

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Built in one pass over `texts`, of which no list is made."""
        writer = StringWriter()
        for text in texts:
            writer.append(text)
        return writer.finish()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        return self.raw(row).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def raw(self, row: int) -> bytes:
        """The UTF-8 bytes of one string."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        start = self._ends[row - 1] if row else 0
        return self._bytes[start : self._ends[row]].tobytes()

    def hashes(self, seed: int = 0) -> np.ndarray:
        """u64 [rows]: equal for equal strings, and the same on every machine."""
        return np.fromiter((text_hash(self.raw(row), seed) for row in range(len(self))), np.uint64, len(self))

    @property
    def nbytes(self) -> int:
        """Of all arrays together, in memory or on disk."""
        return self._bytes.nbytes + self._ends.nbytes


class StringWriter:
    """Strings being collected; what exceeds SPILL goes to disk as it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ends = array("q")
        self._end = 0
        self._file = ""

    def append(self, text: str) -> None:
        """One more string."""
        data = text.encode()
        self._buffer += data
        self._end += len(data)
        self._ends.append(self._end)
        if len(self._buffer) > SPILL:
            self._flush()

    def _flush(self) -> None:
        self._file = self._file or _fresh_file()
        with open(self._file, "ab") as file:
            file.write(self._buffer)
        self._buffer = bytearray()

    def finish(self) -> Strings:
        """The collected strings."""
        ends = np.frombuffer(self._ends, np.int64) if self._ends else np.zeros(0, np.int64)
        if not self._file:
            return Strings(Stored(np.frombuffer(bytes(self._buffer), np.uint8)), Stored(ends))
        self._flush()
        return Strings(Stored(np.memmap(self._file, np.uint8, "r")), Stored(ends))
