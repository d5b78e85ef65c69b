"""Decode JPEG files at a reduced scale, and tell damage from harmless warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg

from data_pipelines.records import DataError

MAGIC = b"\xff\xd8"
PIXELS_PER_BYTE = 1000  # a black image of the most compact Huffman code has fewer than 400

# what libjpeg calls a warning; it stops at anything else
_WARNINGS = ("Corrupt JPEG data", "Premature end", "Inconsistent progression", "Invalid SOS parameters", "Warning:")
_WARNINGS += ("Unknown Adobe",)
_JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_AHEAD = 8  # bytes that the Huffman decoder reads in advance
_ALONE = (0x00, 0x01, 0xFF, *range(0xD0, 0xD9))  # stuffed bytes and markers without a segment
_NEEDED = (*range(0xC0, 0xD0), 0xDB, 0xDD)  # frame, Huffman and quantisation tables, restart interval


def header(data: bytes) -> tuple[int, int, bool] | None:
    """Height, width and whether the colours are printing inks (CMYK); None if the header cannot be read.

    Raises DataError if the file is far too short for its size in pixels.
    """
    try:
        found: Any = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a header cut short in the middle
        return None
    height, width, colors, _ = found
    if height * width > PIXELS_PER_BYTE * len(data):
        raise DataError(f"the image is damaged or cut short ({width} x {height} pixels in {len(data)} bytes)")
    return height, width, colors in ("CMYK", "YCCK")


def decode(data: bytes, colors: str, at_least: int) -> np.ndarray | None:
    """Decode to u8 [H W C] in "RGB" or "CMYK"; None for what simplejpeg cannot read and other decoders perhaps can.

    The scale is the smallest n/8 with both sides at least `at_least`; 0 is the full scale. Raises ValueError if data are
    damaged. libjpeg reports only its first warning, so that harmless ones are removed and the rest decoded again.
    """
    scale: Any = {"min_height": at_least, "min_width": at_least}
    try:
        return simplejpeg.decode_jpeg(data, colors, **scale)
    except ValueError as error:
        if not str(error).startswith(_WARNINGS):
            return None
    data = _essential(data)
    try:
        return simplejpeg.decode_jpeg(data, colors, **scale)
    except ValueError as error:
        left = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        body = data[: data.rfind(b"\xff\xd9")]
        zeros = len(body) - len(body.rstrip(b"\0"))
        if left and 0 <= zeros - int(left[1]) <= _AHEAD:  # some cameras fill up to a block
            return simplejpeg.decode_jpeg(data, colors, **scale, strict=False)
        raise


def has_exif(data: bytes) -> bool:
    """Whether a segment before the first scan may hold EXIF or XMP. This avoids opening most images with Pillow."""
    return any(marker == 0xE1 for marker, _ in _segments(data))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers before the first scan with their segments, and at last 0xDA with everything from there."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            yield marker, data[at:]
            return
        yield marker, data[at : at + 2 + length]
        at += 2 + length


def _essential(data: bytes) -> bytes:
    """A JPEG without stray bytes and without the segments that its pixels do not depend on."""
    parts = [MAGIC]
    for marker, segment in _segments(data):
        if marker == 0xE0 and segment[4:8] == b"JFIF":
            parts.append(_JFIF)
        elif marker in _NEEDED or marker == 0xDA or (marker == 0xEE and segment[4:9] == b"Adobe" and segment[15] < 3):
            parts.append(segment)
    return b"".join(parts)
