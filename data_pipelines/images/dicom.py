"""DICOM files: headers and pixels, read by pydicom (an extra)."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError

_log = logging.getLogger(__name__)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as file:
        return begins_as_dicom(file.read(132))


def begins_as_dicom(data: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file."""
    return data[128:132] == b"DICM"


def read_header(path: Path) -> Any:
    """The tags of a file, without its pixels. Raises DataError naming the file."""
    pydicom = _pydicom(f"{path}: ")
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom raises almost anything for damaged files
        raise DataError(f"{path}: is not a DICOM file that can be read ({' '.join(str(error).split())[:200]})") from error


def read_pixels(data: bytes, name: str, max_pixels: int) -> tuple[np.ndarray, int | None]:
    """(pixels [H W] or u8 [H W 3], the bits of grey values above 8, or None) of a file; of several frames the middle one.

    `name` is the file's, for the log. Raises DataError saying what is wrong with it.
    """
    pydicom = _pydicom()
    try:
        file = pydicom.dcmread(io.BytesIO(data))
        frames, height, width = int(file.get("NumberOfFrames") or 1), int(file.Rows), int(file.Columns)
        if height * width > max_pixels:
            raise DataError(f"{width} x {height} pixels, more than the limit of {max_pixels}")
        if frames > 1:
            warn_line(_log, "%s: has %d frames; the middle one is read", name, frames)
        from pydicom.pixels import pixel_array

        pixels = np.asarray(pixel_array(file, index=frames // 2 if frames > 1 else None))
        bits, kind = int(file.BitsStored), str(file.PhotometricInterpretation)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"its pixels cannot be read ({' '.join(str(error).split())[:200]})") from error
    if kind == "MONOCHROME1":
        pixels = (1 << bits) - 1 - pixels
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        raise DataError(f"colours of {bits} bits are not supported")
    if pixels.dtype.kind == "i":
        pixels = pixels.clip(0).astype(np.uint16)
    return pixels if bits > 8 else pixels.astype(np.uint8), bits if bits > 8 else None


def _pydicom(place: str = "") -> Any:
    try:
        import pydicom
    except ModuleNotFoundError:
        raise DataError(f"{place}reading DICOM needs `pip install -e '.[dicom]'`") from None
    return pydicom
