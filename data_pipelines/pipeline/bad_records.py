"""The list of unreadable images, as JSON lines with file, row and reason. Each row is listed once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from data_pipelines.images import decode, masks
from data_pipelines.records import DataError, Record


class Bad(NamedTuple):
    """One unreadable image: its file (or the record's `where`), its data row from 1, and the reason."""

    file: str
    row: int
    reason: str

    def message(self) -> str:
        """Describe the image in one line."""
        return f"{self.file} (row {self.row}): {self.reason}"


def find(record: Record, row: int) -> Bad | None:
    """The first image or mask of a record that cannot be read; None if all can be read."""
    own = record.targets.get("mask")
    files = [mask for mask in (own if isinstance(own, tuple) else (own,)) if isinstance(mask, str | os.PathLike)]
    readings = [(decode.load, view.image) for view in record.views] + [(masks.load_mask, mask) for mask in files]
    for read, image in readings:
        try:
            read(image)
        except DataError as error:
            file = str(image) if isinstance(image, str | os.PathLike) else record.where
            return Bad(file, row, str(error).removeprefix(f"{file}: "))
    return None


def append(path: Path, rows: Iterable[Bad]) -> None:
    """Append the rows that `path` does not have yet. The file is locked, so that several processes can share it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file, _locked(file):
        file.seek(0)
        known = {(line["file"], line["row"]) for line in map(json.loads, file) if line}
        for row in rows:
            if (row.file, row.row) not in known:
                known.add((row.file, row.row))
                file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _locked(file: IO[str]) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: one process writes
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
