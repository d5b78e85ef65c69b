"""Decode image files to u8 RGB arrays: JPEG with simplejpeg at a reduced scale, other formats with Pillow."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from data_pipelines.images import jpeg
from data_pipelines.images.depth import BAND, BIT_DEPTHS, Depth, check_depth, eight_bit_rgb
from data_pipelines.images.dicom import decode_dicom, is_dicom
from data_pipelines.notices import warn_once
from data_pipelines.records import DataError, no_such_image

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif")
EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".webp")
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # of Pillow; no others, some of which run programs

MAX_PIXELS = 100_000_000  # 10,000 x 10,000: the largest image that is decoded unless a source allows more

# what Pillow and simplejpeg raise for broken files; Warning is for users who turn warnings into errors
UNREADABLE = (
    ValueError,
    OSError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
    Warning,
)

_ORIENTATION, _BITS, _WHITE_IS_ZERO, _HIGHEST, _COMPRESSION = 0x0112, 258, 262, 281, 259  # EXIF and TIFF tags
_DEFLATE = 1040  # the most bytes that one byte of a PNG can hold

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading the images and masks of a source.

    Args:
        depth: true bits of greyscale images with more than 8 bits: 8, 10, 12, 14 or 16; or the range (low, high) that
            becomes 0..255, such as (0, 1) for floating-point images, with values outside clipped. None takes the depth
            that the file states; a file whose values leave it open is then an error.
        orientation: "exif" turns images and masks upright; "stored" leaves both as stored.
        values: for masks, pairs of a pixel value (a number, or a colour "#rrggbb") and its class (a name, a number or
            "background"); () takes the values as class numbers (masks.load_mask).
        max_pixels: number of pixels above which an image is refused.
    """

    depth: Depth = None
    orientation: str = "exif"
    values: tuple[tuple[str, str], ...] = ()
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_depth(self.depth)
        if self.orientation not in ("exif", "stored"):
            raise DataError(f"orientation={self.orientation}: expected exif or stored")

    def file(self, path: Path) -> Path | StoredImage:
        """The file at `path`, to be read with these options."""
        return path if self == DEFAULT else StoredImage(path, self)


DEFAULT = ReadOptions()


@dataclass(frozen=True)
class StoredImage:
    """A file together with the options to read it, for sources whose options are not the default."""

    path: Path
    reading: ReadOptions

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__


def read_options(depth: str = "", orientation: str = "", values: str = "", max_pixels: str = "") -> ReadOptions:
    """ReadOptions from the words of the command line: depth=12, depth=0:1, values=0:cup,128:disc (or with + between)."""
    try:
        low, colon, high = depth.partition(":")
        span = (float(low), float(high)) if colon else int(depth) if depth else None
    except ValueError:
        raise DataError(f"depth={depth}: expected a number of bits, or a range LOW:HIGH such as 0:1") from None
    if max_pixels and not max_pixels.isdecimal():
        raise DataError(f"max_pixels={max_pixels}: expected a number of pixels")
    pairs = [word.partition(":") for word in values.replace("+", ",").split(",") if word.strip()]
    if wrong := [f"{value}{colon}{name}" for value, colon, name in pairs if not value.strip() or not name.strip()]:
        raise DataError(f"values={values}: {wrong[0]!r} is not VALUE:CLASS, such as 128:disc")
    mapping = tuple((value.strip().lower(), name.strip()) for value, _, name in pairs)
    return ReadOptions(span, orientation or "exif", mapping, int(max_pixels or MAX_PIXELS))


ImageLike = np.ndarray | bytes | str | os.PathLike[str] | Image.Image


def load(image: ImageLike, at_least: int | None = None, reading: ReadOptions = DEFAULT) -> np.ndarray:
    """Load one image as u8 [H W 3] RGB, upright according to its EXIF orientation.

    With `at_least`, a JPEG may be decoded at a smaller scale (n/8) whose sides are both at least this long, which is
    several times faster. None decodes every pixel and gives what Pillow reads. `reading` is for files, bytes, arrays and
    Pillow images; a StoredImage has its own.

    Grey becomes three equal channels. Alpha is composited onto black, the background of a fundus photograph. Palettes
    and CMYK are converted, and only the first of several frames is read, which is logged. Grey of more than 8 bits is
    divided by its depth, which is an option or stated by the file (BitsPerSample, MaxSampleValue, the maximum of a PGM);
    a 16-bit image whose values would also fit in 14 bits or fewer is an error without the option. Floating-point values
    between -0.05 and 1.05 are clipped to 0..1. If the largest value lies between 64 and 268, they are clipped to 0..255.

    Raises DataError naming the file if the image cannot be read, is damaged or larger than `reading.max_pixels`.
    """
    return load_sized(image, at_least, reading)[0]


def load_sized(
    image: ImageLike, at_least: int | None = None, reading: ReadOptions = DEFAULT
) -> tuple[np.ndarray, tuple[int, int]]:
    """Load an image as `load` does, with its full (height, width), which coordinates of points and masks refer to."""
    if isinstance(image, StoredImage):
        image, reading = image.path, image.reading
    if isinstance(image, np.ndarray):
        array = eight_bit_rgb(image, reading.depth)
        return array, (array.shape[0], array.shape[1])
    data, name = read_bytes(image)
    try:
        if isinstance(data, Image.Image):
            array = _from_pillow(data, reading)
            return array, (array.shape[0], array.shape[1])
        return _decode(data, name, at_least, reading)
    except UNREADABLE as error:
        raise DataError(f"{name}: {reason(data, error)}") from error


def read_bytes(image: Image.Image | bytes | str | os.PathLike[str]) -> tuple[Image.Image | bytes, str]:
    """Return the encoded bytes of an image and its name for messages. A Pillow image without a file is returned unchanged."""
    if isinstance(image, bytes):
        return image, f"an image of {len(image)} bytes"
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "a Pillow image")
        file = getattr(image, "fp", None)
        if not (isinstance(image, ImageFile) and image.tile and file is not None):  # already decoded
            return image, name
        file.seek(0)
        return file.read(), name
    if not isinstance(image, str | os.PathLike):
        raise DataError(
            f"an image or mask must be a file, bytes, an array or a Pillow image, not {type(image).__name__}"
        )
    try:
        kind = os.stat(image).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            return Path(image).read_bytes(), str(image)
    except FileNotFoundError as error:
        raise no_such_image(Path(image)) from error
    except OSError as error:
        raise DataError(f"{image}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # such as a NUL in the path
        raise DataError(f"{str(image)!r}: {error}") from error
    raise DataError(f"{image}: cannot be opened (a pipe or device, not a file)")


def reason(data: Image.Image | bytes, error: Exception) -> str:
    """The reason in words why an image cannot be read, for one of the errors UNREADABLE."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(data, bytes) and len(data) < 16:
        return f"not an image, it has only {len(data)} bytes"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format (JPEG, PNG, TIFF, BMP, GIF, PPM, WebP)"
    return f"the image is damaged or cut short ({error})"


def _decode(data: bytes, name: str, at_least: int | None, reading: ReadOptions) -> tuple[np.ndarray, tuple[int, int]]:
    if data[:2] == jpeg.MAGIC and (header := jpeg.header(data)):
        height, width, inks = header
        _guard(height, width, reading.max_pixels)
        array = jpeg.decode(data, "CMYK" if inks else "RGB", at_least or 0)
        if array is not None and not inks:  # Pillow converts inks
            orientation = exif_orientation(data) if reading.orientation == "exif" else 1
            return turned(array, orientation), (width, height) if orientation >= 5 else (height, width)
    if is_dicom(data):
        array = decode_dicom(data, name, reading.depth, reading.max_pixels)
        return array, (array.shape[0], array.shape[1])
    with open_image(data, reading.max_pixels) as picture:
        if picture.format in ("TIFF", "GIF", "WEBP", "PNG") and getattr(picture, "is_animated", False):
            warn_once(_log, "frames", "%s: has several frames or pages; only the first is read", name)
        width, height = whole = picture.size
        if at_least:
            picture.draft(None, (at_least, at_least))
        reduced = picture.size != whole
        array = _from_pillow(picture, reading)
    if not reduced:
        return array, (array.shape[0], array.shape[1])
    aside = reading.orientation == "exif" and exif_orientation(data) >= 5
    return array, (width, height) if aside else (height, width)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image of FORMATS with Pillow, without decoding it. Its own limit of pixels is replaced by `max_pixels`.

    Raises DataError for an image with more pixels, or with more than its bytes can hold, and what Pillow raises.
    """
    if "WEBP" not in Image.OPEN:
        Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept and accept(data[:16]) is True:
            picture = factory(io.BytesIO(data), "")
            _guard(picture.height, picture.width, max_pixels)
            if name == "PNG":
                _check_png(data)
            elif name == "TIFF":
                _check_tiff(data, picture)
            elif name == "BMP" and picture.mode == "1" and data[28] == 8:
                raise DataError("a BMP of 8 bits and two colours, which Pillow reads as one of 1 bit; save it as PNG")
            return picture
    raise UnidentifiedImageError


def _guard(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise DataError(
            f"{width} x {height} pixels, more than the limit of {most}; allow more with max_pixels={height * width}"
        )


def _check_png(data: bytes) -> None:
    """Raise ValueError if the pixels cannot be in the file, or if a checksum is wrong, which Pillow does not look at."""
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    if height * (width * bits * {2: 3, 4: 2, 6: 4}.get(kind, 1) // 8) > _DEFLATE * len(data):
        raise ValueError(f"{width} x {height} pixels in {len(data)} bytes")
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        checksum = int.from_bytes(data[end : end + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT" and zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
            raise ValueError("a checksum of its pixels is wrong")
        at = end + 4


def _check_tiff(data: bytes, picture: Any) -> None:
    """Raise ValueError if a checksum of a deflated strip or tile is wrong, which libtiff does not look at."""
    tags = picture.tag_v2
    if tags.get(_COMPRESSION) not in (8, 32946):
        return
    for places, lengths in ((273, 279), (324, 325)):
        for at, length in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False):
            try:
                zlib.decompress(memoryview(data)[at : at + length])
            except zlib.error as error:
                raise ValueError(error) from None


def exif_orientation(image: ImageLike) -> int:
    """The EXIF orientation (1..8) by which a file is turned; 1 if it has none, or a damaged one. Decodes no pixels."""
    if isinstance(image, np.ndarray | Image.Image) or (
        isinstance(image, StoredImage) and image.reading.orientation == "stored"
    ):
        return 1
    data = read_bytes(image)[0]
    if not isinstance(data, bytes):
        return 1
    if data[:2] == jpeg.MAGIC and not jpeg.has_exif(data):
        return 1
    try:
        with open_image(data, sys.maxsize) as picture:
            return _orientation(picture)
    except UNREADABLE:
        return 1


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except (*UNREADABLE, TypeError, KeyError):  # some cameras write a damaged EXIF block with sound pixels
        return 1
    return int(value) if value in range(1, 9) else 1


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
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


def decoded(picture: Image.Image, orientation: str) -> tuple[Image.Image, int]:
    """Decode a picture; also returns the EXIF orientation that `turned` has to undo for the given `orientation`.

    Pillow turns TIFF files by itself; for "stored" that is taken back.
    """
    before = _orientation(picture)
    picture.load()
    after = _orientation(picture)
    if orientation == "exif":
        return picture, after
    return picture, {6: 8, 8: 6}.get(before, before) if after == 1 else 1


def _rgb_on_black(picture: Image.Image) -> np.ndarray:
    """The pixels u8 [H W 3] of any mode, in bands: conversions of the whole picture would take several times its memory."""
    array = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, BAND):
        band = picture.crop((0, top, picture.width, min(top + BAND, picture.height)))
        if band.has_transparency_data:
            black = Image.new("RGBA", band.size, (0, 0, 0, 255))
            band = Image.alpha_composite(black, band.convert("RGBA"))
        array[top : top + BAND] = np.asarray(band.convert("RGB"))
    return array


def _from_pillow(picture: Image.Image, reading: ReadOptions) -> np.ndarray:
    tags = getattr(picture, "tag_v2", {})
    bits, highest = tags.get(_BITS, ()), tags.get(_HIGHEST, (0,))
    deep = min(bits, default=0) == 16 or (picture.format == "PNG" and ";16" in str(getattr(picture, "tile", "")))
    inverted = tags.get(_WHITE_IS_ZERO) == 0
    picture, orientation = decoded(picture, reading.orientation)
    if picture.mode.startswith("I") or picture.mode == "F":
        highest = highest[0] if isinstance(highest, tuple) else highest
        stated = next((d for d in BIT_DEPTHS if 2**d - 1 == highest or ((d,) == bits and d < 16)), None)
        stated = 16 if picture.format == "PPM" and picture.mode != "F" else stated
        array = eight_bit_rgb(np.asarray(picture), reading.depth or stated)
        return turned(255 - array if inverted else array, orientation)
    if picture.mode == "LAB":
        raise DataError("the colour space LAB is not supported; save the image as RGB")
    array = _rgb_on_black(picture)
    if deep and array.max() < 2 ** (BIT_DEPTHS[-2] - 8) and reading.depth != 16:
        raise DataError(
            "colour of 16 bits that is nearly black; if it is, say so with depth=16, else save it with 8 bits"
        )
    return turned(array, orientation)
