"""Columns of a large index as flat arrays, memory-mapped when large: workers share them and pickles stay small."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipelines.records import text_hash

SPILL = 2**20  # bytes; a larger array is written to a file of its own and memory-mapped

T = TypeVar("T")
_READING = threading.RLock()


class read_once(functools.cached_property[T]):
    """A cached property that is computed only once if several threads read it at the same time.

    functools.cached_property has no lock of its own from Python 3.12 on.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        with _READING:
            return super().__get__(instance, owner)


class Stored:
    """An array that is memory-mapped, and pickled as the name of its file, if it is larger than SPILL."""

    def __init__(self, data: np.ndarray) -> None:
        if data.nbytes > SPILL and not isinstance(data, np.memmap):
            path = _new_file()
            data.tofile(path)
            data = np.memmap(path, data.dtype, "r", shape=data.shape)
        self.array = data

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.array, np.memmap):
            return _open_mapped, (str(self.array.filename), self.array.dtype.str, self.array.shape)
        return Stored, (self.array,)


def _open_mapped(path: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored(np.memmap(path, np.dtype(dtype), "r", shape=shape))


@functools.cache
def _folder(process: int) -> Path:
    """The temporary folder of a process. Only that process removes it, not its forked children."""
    folder = Path(tempfile.mkdtemp(prefix="fundax-index-"))
    atexit.register(lambda: os.getpid() == process and shutil.rmtree(folder, ignore_errors=True))
    return folder


def _new_file() -> str:
    handle, name = tempfile.mkstemp(dir=_folder(os.getpid()))
    os.close(handle)
    return name


class Strings:
    """A column of strings: their UTF-8 bytes in one array, and the end of each string as i64."""

    def __init__(self, data: Stored, ends: Stored) -> None:
        self._stored = data, ends
        self._bytes = data.array.data  # a slice of a memoryview is faster than one of a memory-mapped array
        self._ends = np.asarray(ends.array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, self._stored

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Collect `texts` in one pass, without a list of them in memory."""
        writer = StringWriter()
        for text in texts:
            writer.append(text)
        return writer.finish()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        return self._encoded(row).decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), 4096):
            for end in self._ends[first : first + 4096].tolist():
                yield str(self._bytes[start:end], "utf-8", "surrogatepass")
                start = end

    def _encoded(self, row: int) -> bytes:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start = self._ends[row - 1] if row else 0
        return self._bytes[start : self._ends[row]].tobytes()

    def hashes(self, seed: int = 0) -> np.ndarray:
        """Hash u64 [rows] of each string and the seed, the same on every machine."""
        return np.fromiter((text_hash(self._encoded(row), seed) for row in range(len(self))), np.uint64, len(self))


class StringWriter:
    """Collects strings one by one. Bytes beyond SPILL are written to disk at once."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ends = array("q")
        self._end = 0
        self._file = ""

    def append(self, text: str) -> None:
        """Append a string."""
        data = text.encode(errors="surrogatepass")  # names of files that are not UTF-8 hold lone surrogates
        self._buffer += data
        self._end += len(data)
        self._ends.append(self._end)
        if len(self._buffer) > SPILL:
            self._flush()

    def extend(self, texts: Sequence[str]) -> None:
        """Append many strings at once."""
        encoded = texts if (joined := "".join(texts)).isascii() else [t.encode(errors="surrogatepass") for t in texts]
        self._buffer += joined.encode() if encoded is texts else b"".join(encoded)  # type: ignore[arg-type]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(texts))) + self._end
        self._ends.frombytes(ends.tobytes())
        self._end = self._ends[-1] if self._ends else 0
        if len(self._buffer) > SPILL:
            self._flush()

    def _flush(self) -> None:
        self._file = self._file or _new_file()
        with open(self._file, "ab") as file:
            file.write(self._buffer)
        self._buffer = bytearray()

    def finish(self) -> Strings:
        """Return the collected strings."""
        ends = Stored(np.array(self._ends, np.int64))
        if not self._file:
            return Strings(Stored(np.frombuffer(bytes(self._buffer), np.uint8)), ends)
        self._flush()
        return Strings(Stored(np.memmap(self._file, np.uint8, "r")), ends)


class Indexed:
    """Reads the index before it is pickled, so that the parent reads it once and not every worker."""

    def __getstate__(self) -> dict[str, Any]:
        len(self)  # type: ignore[arg-type]
        return self.__dict__


def row_index(index: int, length: int) -> int:
    """`index` as a row in 0..length - 1; negative ones count from the end. Raises IndexError."""
    row = int(index) + length if index < 0 else int(index)
    if not 0 <= row < length:
        raise IndexError(f"row {index} of {length}")
    return row
