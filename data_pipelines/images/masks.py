"""Decode masks to the class of each pixel: palettes, grey levels, colours, JPEG files, and mappings of values."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.images import jpeg
from data_pipelines.images.decode import (
    DEFAULT,
    UNREADABLE,
    ImageLike,
    ReadOptions,
    StoredImage,
    decoded,
    exif_orientation,
    load,
    open_image,
    read_bytes,
    reason,
    turned,
)
from data_pipelines.images.depth import BAND
from data_pipelines.notices import warn_once
from data_pipelines.records import DataError

BACKGROUND = "background"
WHITES = (1, 255, 65535)  # values of the structure in a mask of one structure, whose background is 0
_log = logging.getLogger(__name__)

_BLUR = 64  # most pixels of a JPEG differ by less than this from what was drawn,
_EDGES = 0.05  # and at most this share, at the edges, by more


def load_mask(mask: ImageLike, classes: Sequence[str] = (), reading: ReadOptions = DEFAULT) -> np.ndarray:
    """Load the class of each pixel as i32 [H W]: 0 is the background, k the class `classes[k - 1]`.

    Values are grey levels, which an RGB image with equal channels has as well, or the indices of a palette. For a single
    class, 255 and 65535 mean 1, colours are read as black (background) and one other, and a JPEG is cut at half its range.
    Without `classes` the values are returned as they are, except that a palette with black, but not as its first colour,
    is read by its colours. `reading.values` maps values to classes: names, numbers or "background"; without `classes`,
    names are numbered in their order. EXIF orientation turns a mask as it turns an image.

    Raises DataError naming the file if it cannot be read, for a value that is not a class, and for colours or a JPEG of
    several classes without a mapping.
    """
    if isinstance(mask, StoredImage):
        mask, reading = mask.path, mask.reading
    if isinstance(mask, np.ndarray):
        data, name = mask, ""
    else:
        data, name = read_bytes(mask)
    pixels = _pixels(data, name, reading)
    try:
        if reading.values:
            return _mapped(pixels, reading.values, tuple(classes))
        return _one_structure(pixels, classes[0]) if len(classes) == 1 else _numbers(pixels, tuple(classes))
    except _Unclear as error:
        raise DataError(f"mask {name} {error}" if name else f"mask {error}") from None


def read_mask(
    mask: Any, size: tuple[int, int], classes: Sequence[str] = (), *, image: Any = None, what: str = "mask"
) -> np.ndarray:
    """Load a mask (load_mask) that must have the size (H, W) of its `image`.

    Logs if the image is turned by its EXIF orientation and the mask is not. Raises DataError.
    """
    array = load_mask(mask, classes)
    turn = 1 if image is None else exif_orientation(image)
    same = turn == 1 or turn == exif_orientation(mask)
    called = "" if isinstance(mask, np.ndarray | bytes | Image.Image) else f"{mask} "
    if array.shape != size:
        shapes = [f"{width} x {height}" for height, width in (array.shape, size)]
        hint = "" if same else f", turned by its EXIF orientation {turn}; orientation=stored reads it as stored"
        raise DataError(f"{what} {called}is {shapes[0]} pixels, its image {shapes[1]}{hint}")
    if not same:
        warn_once(
            _log, "turned", "%s: is turned by its EXIF orientation %d, and its %s %sis not; use orientation=stored if the "
            "mask was drawn on the pixels as stored", image, turn, what, called
        )  # fmt: skip
    return array


def read_field_of_view(mask: Any, size: tuple[int, int], *, image: Any = None) -> np.ndarray:
    """Read a field of view i32 [H W] of 0 and 1 as read_mask does. The mapping of values, which is for classes, is ignored."""
    if isinstance(mask, StoredImage):
        mask = replace(mask, reading=replace(mask.reading, values=()))
    return read_mask(mask, size, ("field of view",), image=image, what="fov")


class _Unclear(Exception):
    """A mask that can be decoded, but whose values do not tell the classes."""


class _Pixels(NamedTuple):
    """Values i32 [H W] of a mask. With `colors` u8 [n 3] they are indices of colours, of a palette or of those seen."""

    values: np.ndarray
    colors: np.ndarray | None = None
    palette: bool = False
    lossy: bool = False

    def used(self) -> np.ndarray:
        """The colours that occur, u8 [n 3]."""
        return (
            np.zeros((0, 3), np.uint8)
            if self.colors is None
            else self.colors[_occurring(self.values, len(self.colors))]
        )

    def shown(self) -> np.ndarray:
        """The colour of each pixel, u8 [H W 3]; grey levels are repeated."""
        return np.stack([self.values] * 3, -1) if self.colors is None else self.colors[self.values]

    def greys(self) -> np.ndarray | None:
        """Grey levels i32 [H W]; None if a colour occurs that is not grey."""
        if self.colors is None:
            return self.values
        return self.colors[:, 0][self.values].astype(np.int32) if (np.ptp(self.used(), -1) == 0).all() else None


def _pixels(data: Any, name: str, reading: ReadOptions) -> _Pixels:
    if isinstance(data, np.ndarray):
        if data.ndim != 2 or data.dtype.kind not in "biu":
            raise DataError(f"a mask must be whole numbers [H W], not {data.dtype} {list(data.shape)}")
        return _Pixels(data.astype(np.int32))
    try:
        if isinstance(data, bytes) and data[:2] == jpeg.MAGIC:
            return _of_colors(load(data, reading=reading), lossy=True)
        picture = open_image(data, reading.max_pixels) if isinstance(data, bytes) else data
        inverted = getattr(picture, "tag_v2", {}).get(262) == 0 and picture.mode.startswith("I;16")
        picture, orientation = decoded(picture, reading.orientation)
        found = _of_picture(picture)
    except UNREADABLE as error:
        raise DataError(f"{name}: {reason(data, error)}") from error
    values = WHITES[-1] - found.values if inverted else found.values
    return found._replace(values=turned(values, orientation))


def _of_picture(picture: Image.Image) -> _Pixels:
    array, bands = np.asarray(picture), picture.getbands()
    if picture.mode == "P":
        colors = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return _Pixels(array.astype(np.int32), np.pad(colors, ((0, 256 - len(colors)), (0, 0))), palette=True)
    if len(bands) == 1:
        if array.dtype.kind == "f" and not (array == np.round(array)).all():
            raise DataError("a mask must hold whole numbers")
        return _Pixels(array.astype(np.int32))
    if "A" in bands and array[..., -1].min() < 255:
        raise DataError("a mask that is transparent in places; save it without transparency")
    return _of_colors(np.array(picture.convert("RGB")))


def _of_colors(array: np.ndarray, lossy: bool = False) -> _Pixels:
    """Grey levels if the channels of u8 [H W 3] are equal, nearly so in a JPEG; otherwise indices of its colours."""
    if max(int(np.ptp(array[top : top + BAND], -1).max()) for top in range(0, len(array), BAND)) <= (
        _BLUR if lossy else 0
    ):
        return _Pixels(array[..., 1].astype(np.int32), lossy=lossy)
    codes = array[..., 0].astype(np.int32)
    for k in (1, 2):
        codes <<= 8
        codes |= array[..., k]
    found = _occurring(codes, 1 << 24)
    place = np.zeros(1 << 24, np.int32)
    place[found] = np.arange(len(found))
    for top in range(0, len(codes), BAND):
        codes[top : top + BAND] = place[codes[top : top + BAND]]
    colors = np.stack([found >> 16, found >> 8 & 255, found & 255], -1).astype(np.uint8)
    return _Pixels(codes, colors, lossy=lossy)


def _occurring(values: np.ndarray, count: int) -> np.ndarray:
    """The numbers from 0 to `count` - 1 that occur, ascending; in bands, without a copy of all values."""
    seen = np.zeros(count, bool)
    for top in range(0, len(values), BAND):
        seen[values[top : top + BAND]] = True
    return np.flatnonzero(seen)


def _one_structure(pixels: _Pixels, name: str) -> np.ndarray:
    """0 or 1 i32 [H W]: the structure is what is not black, or white in a grey image."""
    used, values = pixels.used(), pixels.greys()
    if pixels.colors is not None and not pixels.lossy:
        black = int((~used.any(-1)).sum())
        if len(used) == 1 or len(used) - black == 1:
            return np.where(pixels.shown().any(-1), 1, 0).astype(np.int32)
    if values is None:
        raise _Unclear(_in_colors(used, (name,)))
    if pixels.lossy:
        return _cut(values).astype(np.int32)
    if any(((values == 0) | (values == white)).all() for white in WHITES):
        return (values > 0).astype(np.int32)
    raise _Unclear(_unknown(values[(values != 0) & (values != 1)], (name,)))


def _numbers(pixels: _Pixels, classes: tuple[str, ...]) -> np.ndarray:
    """Class numbers i32 [H W]."""
    used, values = pixels.used(), pixels.values
    if pixels.colors is not None and not pixels.palette:
        raise _Unclear(_in_colors(used, classes))
    if pixels.lossy:
        values = np.where(_cut(values), 255, 0).astype(np.int32)
    elif (
        pixels.colors is not None and pixels.colors[0].any() and not (used.any(-1).all() and (classes or len(used) > 1))
    ):
        values = _by_color(pixels, classes)
    if classes and (wrong := values[(values < 0) | (values > len(classes))]).size:
        raise _Unclear(_unknown(wrong, classes))
    return values


def _by_color(pixels: _Pixels, classes: tuple[str, ...]) -> np.ndarray:
    """Values of a palette in which black, the background, is not the first colour."""
    used, values = pixels.used(), pixels.greys()
    if values is not None:
        return values
    if len(used) > 2:
        raise _Unclear(_in_colors(used, classes))
    return np.where(pixels.shown().any(-1), 255, 0).astype(np.int32)


def _cut(values: np.ndarray) -> np.ndarray:
    """Whether a pixel of a JPEG that was drawn in black and white is white."""
    between = ((values >= _BLUR) & (values < 256 - _BLUR)).mean()
    if between > _EDGES or 0 < values.max() < 256 - _BLUR:
        raise _Unclear(
            "is a JPEG, which does not keep class numbers; save it as PNG, or map its values: values=LOW-HIGH:CLASS"
        )
    return values >= 128


def _mapped(pixels: _Pixels, pairs: Sequence[tuple[str, str]], classes: tuple[str, ...]) -> np.ndarray:
    """Class numbers i32 [H W] by the pairs of ReadOptions.values."""
    numbers, greys = _class_numbers(pairs, classes), pixels.greys()
    levels = greys if greys is not None else pixels.values if pixels.palette else None
    spans = [_span(value) for value, _ in pairs]
    if pixels.lossy and levels is not None:
        levels = _nearest(levels, spans)
    out = np.full(pixels.values.shape, -1, np.int32)
    for (value, _), span, number in zip(pairs, spans, numbers, strict=True):
        if span is None:
            color = np.array([int(value[k : k + 2], 16) for k in (1, 3, 5)], np.uint8)
            out[(pixels.shown() == color).all(-1)] = number
        elif levels is None:
            raise _Unclear(_in_colors(pixels.used(), classes))
        else:
            out[(levels >= span[0]) & (levels <= span[1])] = number
    if (out < 0).any():
        y, x = np.argwhere(out < 0)[0]
        seen = levels[y, x] if levels is not None else _hex(pixels.shown()[y, x])
        raise _Unclear(f"has the value {seen}, which is not in values={','.join(map(':'.join, pairs))}")
    return out


def _class_numbers(pairs: Sequence[tuple[str, str]], classes: tuple[str, ...]) -> list[int]:
    """The class number of each pair. With a single class, all other names are the background."""
    names = list(dict.fromkeys(name for _, name in pairs if name != BACKGROUND and not name.isdecimal()))
    known = classes or tuple(names)
    unknown = [name for name in names if name not in known]
    if unknown and (len(classes) != 1 or classes[0] not in names):
        raise _Unclear(f"is read with values=...:{unknown[0]}, which is not one of the classes {', '.join(known)}")
    number = {name: k + 1 for k, name in enumerate(known)}
    return [number.get(name, int(name) if name.isdecimal() else 0) for _, name in pairs]


def _span(value: str) -> tuple[int, int] | None:
    """The numbers from LOW to HIGH of "LOW-HIGH", or of a single number; None for a colour "#rrggbb"."""
    if value.startswith("#") and len(value) == 7 and all(c in "0123456789abcdef" for c in value[1:]):
        return None
    low, _, high = value.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise _Unclear(f"is read with values={value}:...; expected a number, LOW-HIGH, or a colour #rrggbb")
    return int(low), int(high or low)


def _nearest(levels: np.ndarray, spans: Sequence[tuple[int, int] | None]) -> np.ndarray:
    """The nearest of the numbers that are mapped, for a JPEG, whose values are not exact."""
    ends = np.unique([end for span in spans if span for end in span])
    if not len(ends):
        return levels
    middles = (ends[1:] + ends[:-1]) / 2
    nearest = ends[np.searchsorted(middles, levels, side="right")]
    inside = np.any([(levels >= span[0]) & (levels <= span[1]) for span in spans if span], axis=0)
    return np.where(inside, levels, nearest).astype(np.int32)


def _unknown(wrong: np.ndarray, classes: Sequence[str]) -> str:
    names = ", ".join((BACKGROUND, *classes))
    return (
        f"has the value {wrong[0]}; expected 0 to {len(classes)} for {names}, or a mapping such as "
        f"values=0:{BACKGROUND},{abs(int(wrong[0]))}:{classes[-1]}"
    )


def _in_colors(used: np.ndarray, classes: Sequence[str]) -> str:
    seen = [_hex(color) for color in used]
    example = f"values={seen[0]}:{BACKGROUND},{seen[-1]}:{classes[-1] if classes else 'CLASS'}"
    return f"has the colours {', '.join(seen[:6])}{', ...' if len(seen) > 6 else ''}; say which is which: {example}"


def _hex(color: np.ndarray) -> str:
    return "#" + bytes(color.astype(np.uint8).tolist()).hex()
