"""Camera model: field of view, illumination, haze, blur, sensor noise and JPEG. Planes are f32 [h w] in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFilter

from data_pipelines.synthetic.noise import grain
from data_pipelines.synthetic.raster import Frame

Planes = list[np.ndarray]


@dataclass(frozen=True)
class Device:
    """The parameters of a camera and an exposure."""

    tint: tuple[float, float, float]
    field: float  # radius of the field of view in half widths of the image
    flat: float  # height of the field of view divided by its width
    vignette: float
    light: tuple[float, float]  # slope of the illumination along x and y
    blur: float  # pixels at size 224
    noise: float
    quality: int  # JPEG quality


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * float(rng.random())


def device(rng: np.random.Generator, kind: str) -> Device:
    """Draw a camera of a kind: CFP, UWF, FFA or OCT."""
    spread = 0.09 if kind == "CFP" else 0.05
    tint = (uniform(rng, 1 - spread, 1 + spread), uniform(rng, 1 - spread, 1 + spread), uniform(rng, 0.75, 1.3))
    return Device(
        tint=tint,
        field=uniform(rng, 0.93, 1.0) if rng.random() < 0.7 else uniform(rng, 1.0, 1.12),
        flat=1.0 if kind == "CFP" else uniform(rng, 0.8, 0.92),
        vignette=uniform(rng, 0.12, 0.4),
        light=(uniform(rng, -0.1, 0.1), uniform(rng, -0.08, 0.08)),
        blur=uniform(rng, 0.3, 0.9),
        noise=uniform(rng, 0.015, 0.045),
        quality=int(uniform(rng, 80, 96)),
    )


def illumination(frame: Frame, camera: Device) -> np.ndarray:
    """The illumination f32 [h w]: brightest near the centre and darker towards the rim."""
    half = np.float32(2 / frame.size)
    axis = (np.arange(frame.size, dtype=np.float32) - np.float32((frame.size - 1) / 2)) * half
    u, v = axis[None], axis[:, None]
    r2 = u * u + v * v
    return 1 - np.float32(camera.vignette) * r2 + np.float32(camera.light[0]) * u + np.float32(camera.light[1]) * v


def field(frame: Frame, camera: Device) -> np.ndarray:
    """The field of view f32 [h w]: 1 inside, 0 outside, with an edge of one pixel."""
    half = np.float32(2 / frame.size)
    axis = (np.arange(frame.size, dtype=np.float32) - np.float32((frame.size - 1) / 2)) * half
    u, v = axis[None] / np.float32(camera.field), axis[:, None] / np.float32(camera.field * camera.flat)
    return np.clip((1 - np.sqrt(u * u + v * v)) * np.float32(frame.size / 2) + np.float32(0.5), 0, 1)


def veil(planes: Planes, haze: float, colour: tuple[float, ...], light: np.ndarray) -> None:
    """Add the scattered light of an opaque lens, in place."""
    keep = np.float32(1 - 0.9 * haze)
    for plane, c in zip(planes, colour, strict=True):
        plane *= keep
        plane += np.float32(0.9 * haze * c) * light


def soften(image: np.ndarray, radius: float) -> np.ndarray:
    """Box blur of u8 [h w 3] or [h w] in integer arithmetic."""
    if radius < 0.05:
        return image
    return np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(radius)))


def expose(planes: Planes, camera: Device, mask: np.ndarray, haze: float, rng: np.random.Generator) -> np.ndarray:
    """Convert planes to u8 [h w 3]: tint, blur, sensor noise, the field's `mask` f32 [h w], and JPEG compression."""
    size = len(mask)
    stacked = np.empty((size, size, 3), np.float32)
    for k, plane in enumerate(planes):
        np.multiply(plane, np.float32(255 * camera.tint[k]), out=stacked[..., k])
    image = np.clip(stacked + 0.5, 0, 255).astype(np.uint8)
    image = soften(image, (camera.blur + 5 * haze * haze) * size / 224)
    noise = (grain("white", size, size, rng) - np.float32(0.5)) * np.float32(255 * camera.noise)
    image = (image + noise[..., None]) * mask[..., None] + np.float32(4.5)
    return jpeg(np.clip(image, 0, 255).astype(np.uint8), camera.quality)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress u8 [h w 3] as JPEG, with the exact instead of the fast cosine transform."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444", fastdct=False)
    return simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)
