"""Decode image files to u8 RGB arrays: JPEG with simplejpeg at a reduced scale, other formats with Pillow."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipelines.records import DataError, no_such_image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".webp")

MAX_PIXELS = 178_956_970  # 13,377 x 13,377: Pillow's limit for a decompression bomb

BIT_DEPTHS = (8, 10, 12, 14, 16)  # true depths of cameras and OCT devices that write 16-bit files

# what Pillow and simplejpeg raise for broken files; Warning is for users who turn warnings into errors
UNREADABLE = (ValueError, OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, Warning)

ORIENTATION = 0x0112  # EXIF tag
_HEADER = 2**16  # bytes at the start of a JPEG that hold its EXIF block, which comes first or after a JFIF block

ImageLike = np.ndarray | bytes | Path | str


def load(image: ImageLike, at_least: int | None = None) -> np.ndarray:
    """Load one image as u8 [H W 3] RGB, upright according to its EXIF orientation.

    With `at_least`, a JPEG may be decoded at a smaller scale (n/8) whose sides are both at least this long, which is
    several times faster. None decodes every pixel and gives what Pillow reads.

    Grey becomes three equal channels. Alpha is composited onto black, the background of a fundus photograph. Palettes
    and CMYK are converted, and only the first of several frames is read. Grey of more than 8 bits is shifted down from
    the smallest of the depths 8, 10, 12, 14 and 16 bits that holds its maximum, so that it covers 0..255.

    Raises DataError naming the file if the image cannot be read.
    """
    return load_sized(image, at_least)[0]


def load_sized(image: ImageLike, at_least: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """As `load`, together with the (height, width) at full scale, which the coordinates of points and masks refer to."""
    if isinstance(image, np.ndarray):
        array = _from_array(image)
        return array, (array.shape[0], array.shape[1])
    data, name = _read(image)
    try:
        return _decode(data, at_least)
    except UNREADABLE as error:
        raise DataError(f"{name}: {_reason(data, error)}") from error


def load_mask(mask: ImageLike) -> np.ndarray:
    """Load the class of each pixel as i32 [H W]: the palette index, the stored grey value, or 0/1 for 1-bit images.

    Raises DataError for a colour image, which does not define classes.
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
        raise no_such_image(Path(image)) from error
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
    """Decode a JPEG; None if Pillow has to: for CMYK, and for data libjpeg warns about, which Pillow may still accept."""
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
    orientation = exif_orientation(data)
    size = (width, height) if orientation >= 5 else (height, width)
    return _upright(array, orientation), size


def _guard(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, more than {MAX_PIXELS}")


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation (1..8) of a JPEG; 1 if it has none or its EXIF block is damaged. Decodes no pixels."""
    if b"Exif\0\0" not in data[:_HEADER]:  # most images: opening them again would cost time
        return 1
    try:
        with Image.open(io.BytesIO(data)) as picture:
            value = picture.getexif().get(ORIENTATION, 1)
    except UNREADABLE:  # some cameras write a damaged EXIF block with sound pixels
        return 1
    return int(value) if value in range(1, 9) else 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation by a transposition, a horizontal flip and a vertical flip."""
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
    """Convert an array [H W], [H W 1], [H W 3] or [H W 4] of any number type to u8 [H W 3]."""
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
