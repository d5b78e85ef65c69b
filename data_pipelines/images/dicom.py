"""Read the image of a DICOM file; needs pydicom (extra `dicom`)."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np

from data_pipelines.images.depth import eight_bit_rgb
from data_pipelines.notices import warn_line
from data_pipelines.records import DataError

_log = logging.getLogger(__name__)


def is_dicom(data: bytes) -> bool:
    """Whether encoded bytes are a DICOM file (PS3.10: the prefix DICM after 128 bytes)."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, name: str, depth: Any, max_pixels: int) -> np.ndarray:
    """Decode to u8 [H W 3]. The middle one of several frames is used; more than 8 bits are scaled by the stored bits or `depth`.

    name: the file's, for the log.

    Raises DataError without pydicom, for a file without an image, one larger than `max_pixels`, and a damaged one.
    """
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise DataError("a DICOM file; reading it needs pydicom: pip install -e '.[dicom]'") from error
    try:
        header = pydicom.dcmread(io.BytesIO(data))
        height, width = int(header.Rows), int(header.Columns)
        if height * width > max_pixels:
            raise DataError(
                f"{width} x {height} pixels, more than the limit of {max_pixels}; allow more with "
                f"max_pixels={height * width}"
            )
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1:
            warn_line(_log, "%s: has %d frames; the middle one is read", name, frames)
        pixels = np.asarray(pixel_array(header, index=frames // 2))
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise what pydicom and its decoders happen to raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"a DICOM file whose image cannot be read ({line[:200]})") from error
    if pixels.ndim == 3:
        return eight_bit_rgb(pixels, depth)
    grey = eight_bit_rgb(pixels, depth or (int(header.BitsStored) if pixels.dtype != np.uint8 else None))
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey
