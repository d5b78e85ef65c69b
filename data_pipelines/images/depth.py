"""Scale the values of an image to 8 bits by a given or detected bit depth, never by the image's own maximum."""

from __future__ import annotations

import numpy as np

from data_pipelines.records import DataError

BIT_DEPTHS = (8, 10, 12, 14, 16)  # true depths of cameras and OCT devices that write 16-bit files
OVERSHOOT = 0.05  # a bicubic resize leaves a range by up to this share of it; such values are clipped

BAND = 256  # rows that are converted at a time

Depth = int | tuple[float, float] | None  # bits; or the values that become 0 and 255; or not given


def check_depth(depth: Depth) -> None:
    """Raise DataError for a depth that is not one of BIT_DEPTHS or a range."""
    ordered = isinstance(depth, tuple) and len(depth) == 2 and depth[0] < depth[1]
    if depth is not None and depth not in BIT_DEPTHS and not ordered:
        word = ":".join(f"{end:g}" for end in depth) if isinstance(depth, tuple) else depth
        depths = ", ".join(map(str, BIT_DEPTHS))
        raise DataError(f"depth={word}: expected one of {depths}, or a range LOW:HIGH such as 0:1")


def eight_bit_rgb(array: np.ndarray, depth: Depth) -> np.ndarray:
    """Convert an array [H W], [H W 1], [H W 3] or [H W 4] of any number type to u8 [H W 3]."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(f"an image must be [H W], [H W 1], [H W 3] or [H W 4], not {list(array.shape)}")
    array = _eight_bits(array, depth)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint16)
        array = ((array[:, :, :3] * alpha + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _eight_bits(array: np.ndarray, depth: Depth) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise DataError(f"an image must hold finite numbers, not {array.dtype}")
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"an image must hold finite numbers, {count} are NaN or infinite; replace them, for example by 0"
        )
    low, high = float(array.min()), float(array.max())
    if isinstance(depth, tuple):
        return _scaled(array, *depth)
    if array.dtype.kind == "f":
        return _scaled(array, 0, 2**depth - 1 if depth else _float_range(low, high))
    if low < 0 or high >= 2 ** BIT_DEPTHS[-1]:
        raise DataError(f"an image must lie in 0..65535, not {low:g}..{high:g}; give its range with depth=LOW:HIGH")
    depth = depth or (8 if array.itemsize > 2 and high < 256 else _depth(high))
    if high >= 2**depth:
        raise DataError(f"its largest value is {high:g}, which is more than the {depth} bits of its depth")
    return (array.astype(np.uint16) >> (depth - 8)).astype(np.uint8)


def _depth(high: float) -> int:
    """The depth of a 16-bit image of no stated depth. Raises DataError if it may have fewer bits."""
    if 0 < high < 2 ** BIT_DEPTHS[-2]:
        depths = " or ".join(f"depth={d}" for d in BIT_DEPTHS if high < 2**d)
        raise DataError(
            f"16-bit grey with the largest value {high:g}, and the file does not say how many bits are used; say it "
            f"with {depths}, or save the image with 8 bits"
        )
    return BIT_DEPTHS[-1]


def _float_range(low: float, high: float) -> float:
    """The value of white, 1 or 255, in a floating-point image. Raises DataError if it can be neither."""
    for white, dark in ((1, 0), (255, 64)):
        if dark <= high <= (1 + OVERSHOOT) * white and low >= -OVERSHOOT * white:
            return white
    raise DataError(
        f"floating-point values must lie in 0..1 or 0..255, not {low:g}..{high:g}; give their range with depth=LOW:HIGH"
    )


def _scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    out = np.empty(array.shape, np.uint8)
    for top in range(0, len(array), BAND):
        share = (array[top : top + BAND].astype(np.float64) - low) / (high - low)
        out[top : top + BAND] = np.round(share.clip(0, 1) * 255)
    return out
