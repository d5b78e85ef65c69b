"""Read the entries of an LMDB environment by their keys.

liblmdb maps the file into memory and trusts it: a process that reads a file that is cut short or damaged dies of SIGBUS or
SIGSEGV without a word. Here every page is read from the file, and every number in it is checked before it is used.
"""

from __future__ import annotations

import bisect
import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.records import DataError

# The first two pages of a file have a magic number and a version, then flags, depth, number of entries and root page of the
# main database, and last the number of the last page and of the transaction.
_META = struct.Struct("<16x II 68x HH 24x QQQQ")
_HEADER = struct.Struct("<Q H H H H")  # page number, padding, flags, and where the free space begins and ends
_NODE = struct.Struct("<H H H H")  # two halves of a size or a page number, flags, length of the key
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04  # flags of a page
_ELSEWHERE = 0x01  # flag of an entry whose value is on pages of its own; other flags are those of nested databases
_EMPTY = 2**64 - 1  # root of a database without entries
_LEVELS = 32  # liblmdb's own limit


@dataclass(frozen=True)
class Environment:
    """The main database of an LMDB environment: a file that is read at given places, so that processes may share it."""

    folder: Path
    file: int
    page_size: int
    pages: int
    root: int
    depth: int
    entries: int

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None. Raises DataError for a damaged file."""
        try:
            return self._get(key)
        except (struct.error, IndexError, OSError) as error:
            raise self._damaged(str(error)) from None

    def _get(self, key: bytes) -> bytes | None:
        if self.root == _EMPTY:
            return None
        number = self.root
        for _ in range(min(self.depth, _LEVELS)):
            page = self._page(number)
            flags, nodes = self._nodes(page, number)
            if flags & _LEAF:
                at = bisect.bisect_left(nodes, key, key=functools.partial(_key, page))
                found = nodes[at] if at < len(nodes) and _key(page, nodes[at]) == key else None
                return None if found is None else self._value(page, found)
            if not flags & _BRANCH or not nodes:
                raise self._damaged(f"page {number} is of an unknown kind")
            # the first key of a branch stands for all smaller ones
            at = bisect.bisect_right(nodes, key, lo=1, key=functools.partial(_key, page)) - 1
            low, high, top, _ = _NODE.unpack_from(page, nodes[at])
            number = low | high << 16 | top << 32
        raise self._damaged(f"its tree has more than {self.depth} levels")

    def _page(self, number: int, count: int = 1) -> bytes:
        if not 0 < number < self.pages or count > self.pages - number:
            raise self._damaged(f"page {number} is not one of its {self.pages} pages")
        data = os.pread(self.file, count * self.page_size, number * self.page_size)
        if len(data) != count * self.page_size:
            raise self._damaged("the file is cut short")
        return data

    def _nodes(self, page: bytes, number: int) -> tuple[int, tuple[int, ...]]:
        """The flags of a page, and the places of its entries."""
        own, _, flags, lower, _ = _HEADER.unpack_from(page)
        if own != number or not _HEADER.size <= lower <= len(page):
            raise self._damaged(f"page {number} does not hold what it should")
        return flags, struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, _HEADER.size)

    def _value(self, page: bytes, node: int) -> bytes:
        low, high, flags, key = _NODE.unpack_from(page, node)
        size, start = low | high << 16, node + _NODE.size + key
        if not flags & _ELSEWHERE:
            if flags or start + size > len(page):
                raise self._damaged("an entry is not a value of its page")
            return page[start : start + size]
        (number,) = struct.unpack_from("<Q", page, start)
        if size > self.pages * self.page_size:
            raise self._damaged(f"a value of {size} bytes is larger than the file")
        found = self._page(number, -(-(size + _HEADER.size) // self.page_size))
        own, _, kind, *_ = _HEADER.unpack_from(found)
        if own != number or not kind & _OVERFLOW:
            raise self._damaged(f"page {number} does not hold a value")
        return found[_HEADER.size : _HEADER.size + size]

    def _damaged(self, why: str) -> DataError:
        return DataError(f"{self.folder}: the LMDB file is damaged or cut short ({why})")


def open_environment(folder: Path) -> Environment:
    """Open `folder`/data.mdb. Raises DataError if there is none, or if its size or form is not that of an LMDB file."""
    path = folder / "data.mdb"
    if not path.is_file():
        raise DataError(f"no LMDB file {path}; expected a folder with imgs/ and pairs/")
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _newest(folder, file)
    except DataError:
        os.close(file)
        raise
    return found


def _newest(folder: Path, file: int) -> Environment:
    """The state that the later of the two last transactions left."""
    size, found = os.fstat(file).st_size, []
    for at in (0, _page_size(file)):
        data = os.pread(file, _META.size, at)
        if len(data) == _META.size:
            magic, version, flags, depth, entries, root, last, transaction = _META.unpack(data)
            if magic == _MAGIC and version == _VERSION:
                found.append((transaction, flags, depth, entries, root, last))
    if not found:
        raise DataError(f"{folder}: not an LMDB environment; expected data.mdb as liblmdb 0.9 writes it")
    _, flags, depth, entries, root, last = max(found)
    page = _page_size(file)
    if flags:
        raise DataError(f"{folder}: an LMDB environment with nested or otherwise sorted keys; expected plain ones")
    if (last + 1) * page > size:
        raise DataError(f"{folder}: the LMDB file is damaged or cut short ({size} bytes of {(last + 1) * page})")
    return Environment(folder, file, page, last + 1, root, depth, entries)


def _page_size(file: int) -> int:
    """The size of a page, which the first page states; 4096 where it states none."""
    data = os.pread(file, _META.size, 0)
    stated = int.from_bytes(data[40:44], "little")
    return stated if stated in {2**k for k in range(9, 17)} else 4096


def _key(page: bytes, node: int) -> bytes:
    start = node + _NODE.size
    (length,) = struct.unpack_from("<H", page, node + 6)
    if start + length > len(page):
        raise IndexError("a key leaves its page")
    return page[start : start + length]
