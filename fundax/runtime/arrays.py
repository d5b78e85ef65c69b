"""Read untrusted .npz files, with limits on the unpacked size of archives."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fundax.types import UserError

UNPACKED, RATIO = 2**28, 100  # an archive may unpack to this many bytes, or to this many times its own size


def read_arrays(path: str | Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or those of `names`. Raises UserError for a file that cannot be read.

    Pickled objects are refused, as are archives that unpack to far more than their size.
    """
    path = Path(path)
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                check_archive(archive, path.stat().st_size)
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                found = {name: stored[name] for name in (stored.files if names is None else names)}
    except Exception as error:  # damaged bytes raise what zipfile, zlib, tokenize and numpy happen to raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{path}: cannot be read, it is damaged or not an .npz file of plain arrays ({line})"
        ) from error
    for name, value in found.items():
        if not isinstance(value, np.ndarray):  # np.load returns members other than .npy files as bytes
            raise UserError(f"{path}: '{name}' is not an array of numbers; expected an .npz file of plain arrays")
    return found


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raise UserError for an archive of `size` bytes that unpacks to more than UNPACKED and RATIO times as many."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(UNPACKED, RATIO * size):
        raise UserError(f"its {size:,} bytes unpack to {unpacked:,}")
