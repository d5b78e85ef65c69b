"""Any image file to RGB bytes: JPEG by simplejpeg at a reduced scale, everything else by Pillow."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipelines.records import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".webp")


MAX_PIXELS = 178_956_970  # what Pillow calls a decompression bomb: 13,377 x 13,377


BIT_DEPTHS = (8, 10, 12, 14, 16)  # of the cameras and OCT devices that write 16-bit files


# what Pillow and simplejpeg raise for broken files; warnings are among them where a user made them errors
UNREADABLE = (ValueError, OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, Warning)


ImageLike = np.ndarray | bytes | Path | str


def load(image: ImageLike, at_least: int | None = None) -> np.ndarray:
    """One image as u8 [H W 3] RGB, upright by its EXIF orientation.

    `at_least`: a JPEG may be decoded at a smaller scale (n/8) as long as both sides stay at least this long:
    several times faster. None decodes every pixel, and equals what Pillow reads.
    Grey becomes three equal channels, alpha is laid over black (the background of a fundus photograph),
    palettes and CMYK are resolved, of several frames the first is taken. Grey of more than 8 bits is divided by
    the smallest of the bit depths 8, 10, 12, 14, 16 that holds its maximum, so that its range becomes 0..255.
    Raises DataError, naming the file, where there is no readable image.
    """
    return load_sized(image, at_least)[0]


def load_sized(image: ImageLike, at_least: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """As `load`, with the (height, width) the image has at its full scale: where points and masks live."""
    if isinstance(image, np.ndarray):
        array = _from_array(image)
        return array, (array.shape[0], array.shape[1])
    data, name = _read(image)
    try:
        return _decode(data, at_least)
    except UNREADABLE as error:
        raise DataError(f"{name}: {_reason(data, error)}") from error


def load_mask(mask: ImageLike) -> np.ndarray:
    """Classes of pixels as i32 [H W]: palette indices, grey values as stored, or 0/1 of a 1-bit image.

    Raises DataError for a colour image, whose classes nobody can know.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "biu":
            raise DataError(f"a mask must be whole numbers [H W], not {mask.dtype} {list(mask.shape)}")
        return mask.astype(np.int32)
    data, name = _read(mask)
    try:
        picture = _open(data)
        picture.load()
    except UNREADABLE as error:
        raise DataError(f"{name}: {_reason(data, error)}") from error
    if len(picture.getbands()) != 1 or picture.mode == "F":
        raise DataError(f"{name}: a mask has one channel of class numbers, this image is {picture.mode}")
    return np.asarray(picture).astype(np.int32)


def _read(image: bytes | Path | str) -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, f"an image of {len(image)} bytes"
    try:
        return Path(image).read_bytes(), str(image)
    except FileNotFoundError as error:
        raise DataError(f"{image}: no such image file") from error
    except OSError as error:
        raise DataError(f"{image}: cannot be opened ({error.strerror})") from error


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    if len(data) < 16:
        return f"not an image, it has only {len(data)} bytes"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format (JPEG, PNG, TIFF, BMP, GIF, PPM, WebP)"
    return f"the image is damaged or cut short ({error})"


def _decode(data: bytes, at_least: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    if data[:2] == b"\xff\xd8":
        decoded = _decode_jpeg(data, at_least)
        if decoded is not None:
            return decoded
    array = _to_rgb(_open(data))
    return array, (array.shape[0], array.shape[1])


def _decode_jpeg(data: bytes, at_least: int | None) -> tuple[np.ndarray, tuple[int, int]] | None:
    """None where Pillow shall try: four inks, or what libjpeg warns of and Pillow's check of the end tells apart."""
    side = at_least or 0
    try:
        header: Any = simplejpeg.decode_jpeg_header(data)
        height, width, colors, _ = header
        _guard(height, width)
        if colors in ("CMYK", "YCCK"):
            return None
        array = simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side)
    except ValueError:
        return None
    turn = exif_orientation(data)
    size = (width, height) if turn >= 5 else (height, width)
    return _upright(array, turn), size


def _guard(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, more than {MAX_PIXELS}")


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation (1..8) of a JPEG's bytes; 1 where it has none. Reads the headers only.

    Source: EXIF 2.32 section 4.5 (APP1) and TIFF 6.0 section 2 (IFD), tag 274.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _tiff_orientation(data[at + 10 : at + 2 + length])
        if marker == 0xDA:  # the pixels begin
            return 1
        at += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, first + 2 + 12 * entry)
            if tag == 274 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short: cameras write such blocks, and the pixels are sound
        return 1
    return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: bits of (orientation - 1) say turned by 180, mirrored, transposed."""
    if orientation == 1:
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def _open(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    _guard(picture.height, picture.width)
    return picture


def _to_rgb(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_array(np.asarray(picture))
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _from_array(array: np.ndarray) -> np.ndarray:
    """u8 RGB of an array [H W], [H W 1], [H W 3] or [H W 4] of any number type."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(f"an image must be [H W], [H W 1], [H W 3] or [H W 4], not {list(array.shape)}")
    array = _eight_bits(array)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint16)
        array = ((array[:, :, :3] * alpha + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise DataError(f"an image must hold finite numbers, not {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high >= 2 ** BIT_DEPTHS[-1]:
        raise DataError(f"an image must lie in 0..65535, not {low:g}..{high:g}")
    if array.dtype.kind == "f" and high <= 1:
        return np.round(array * 255).astype(np.uint8)
    depth = next(d for d in BIT_DEPTHS if high < 2**d)
    return (array.astype(np.uint16) >> (depth - 8)).astype(np.uint8)
