"""Draw fluorescein angiograms (FFA): dye is bright, blocked fluorescence and non-perfusion are dark."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import camera as cam
from data_pipelines.synthetic.anatomy import Eye
from data_pipelines.synthetic.fundus import Cover, anchored, covers
from data_pipelines.synthetic.raster import Frame, blots, ellipse


def _to(plane: np.ndarray, cover: np.ndarray, value: float, alpha: float = 1.0) -> None:
    """Blend a plane towards a brightness, in place."""
    cover = cover * np.float32(alpha)
    plane *= 1 - cover
    plane += cover * np.float32(value)


def _choroid(eye: Eye, frame: Frame) -> np.ndarray:
    cloud = anchored("cloud", eye, frame)
    fine = anchored("grain", eye, frame, 2.0)
    bands = anchored("choroid", eye, frame) * np.float32(0.16 * eye.tessellation)
    plane = np.float32(0.13) + np.float32(0.09) * cloud + np.float32(0.06) * fine + bands
    r2 = frame.squared(0, 0)
    return plane * (1 - np.float32(0.55) / (1 + r2 * r2 * np.float32(1 / 60)))


def _no_flow(eye: Eye, frame: Frame) -> np.ndarray | None:
    """The coverage of non-perfusion: around cotton-wool spots, and in the mid-periphery in severe retinopathy."""
    spots = eye.lesions.get("cotton-wool spot")
    if spots is None or eye.traits.get("closure", 0.0) <= 0:
        return None
    grown = spots.copy()
    grown[:, 2:4] *= 1.5 + 3.0 * eye.traits["closure"]
    return blots(frame, grown, 0.2, 0.8)


def _leaks(eye: Eye, cover: Cover, frame: Frame, plane: np.ndarray) -> None:
    """Leakage of dye from new vessels, macular oedema, neovascular membranes and swollen discs."""
    if len(eye.fronds):
        spots = eye.fronds[::9][:, :6].copy()
        spots[:, 2:4], spots[:, 4], spots[:, 5] = 1.5, 1.0, 0.0
        _to(plane, blots(frame, spots, 1.2, 0.5), 0.95, 0.85)
    if "macular oedema" in cover:
        petals = np.float32(0.25) + np.float32(0.75) * anchored("folds", eye, frame, 4.0)
        _to(plane, cover["macular oedema"] * petals, 0.85, 0.8)
    if "choroidal neovascularisation" in cover:
        halo = eye.lesions["choroidal neovascularisation"].copy()
        halo[:, 2:4] *= 1.5
        _to(plane, blots(frame, halo, 1.0, 0.3), 0.7, 0.7)
        _to(plane, cover["choroidal neovascularisation"], 0.97, 0.95)
    if eye.swelling > 0:
        _to(plane, ellipse(frame, *eye.disc, 4.4, 4.4, 2.0), 0.85, 0.7 * eye.swelling)


def _blocks(cover: Cover, plane: np.ndarray) -> None:
    for name in ("haemorrhage", "flame haemorrhage", "preretinal haemorrhage"):
        if name in cover:
            _to(plane, cover[name], 0.03, 0.85)


def ffa_plane(eye: Eye, cover: Cover, frame: Frame) -> np.ndarray:
    """The brightness of the arteriovenous phase, f32 [h w] in 0..1."""
    plane = _choroid(eye, frame)
    if "subretinal haemorrhage" in cover:
        _to(plane, cover["subretinal haemorrhage"], 0.03, 0.9)
    if "drusen" in cover:
        _to(plane, cover["drusen"], 0.55, 0.7)
    for name in ("atrophy", "peripapillary atrophy"):
        if name in cover:
            strength = eye.traits.get("crescent", 0.3) if name.startswith("peri") else 1.0
            _to(plane, cover[name], 0.62, 0.85 * strength)
    if "macular hole" in cover:
        _to(plane, cover["macular hole"], 0.72, 0.9)
    if "detached retina" in cover:
        folds = anchored("folds", eye, frame, 1.3)
        _to(plane, cover["detached retina"] * (np.float32(0.6) + np.float32(0.4) * folds), 0.05, 0.9)
    _to(plane, cover["disc"], 0.5 - 0.25 * eye.pallor, 0.8)
    _to(plane, cover["cup"] * cover["disc"], 0.22, 0.75)
    vessels = np.maximum(cover["vein"], cover["artery"] * np.float32(0.92))
    dark = _no_flow(eye, frame)
    if dark is not None:
        _to(plane, dark, 0.06, 0.85)
        vessels = vessels * (1 - np.float32(0.6) * dark)
    if "detached retina" in cover:
        vessels = vessels * (1 - np.float32(0.3) * cover["detached retina"])
    _to(plane, vessels, 0.88, 0.95)
    _blocks(cover, plane)
    if "microaneurysm" in cover:
        _to(plane, cover["microaneurysm"], 1.0, 0.95)
    _leaks(eye, cover, frame, plane)
    return plane


def ffa(eye: Eye, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Frame, Cover]:
    """Draw a 50-degree angiogram: u8 [size size 3] with equal channels, its frame and the coverages."""
    device = cam.device(rng, "FFA")
    grey = cam.Device(
        (1.0, 1.0, 1.0), device.field, 1.0, device.vignette, device.light, device.blur, device.noise, device.quality
    )
    frame = Frame(
        size, size * grey.field / 2 / cam.uniform(rng, 23, 27), cam.uniform(rng, 3.5, 7), cam.uniform(rng, -1.5, 1.5)
    )
    light = cam.illumination(frame, grey)
    cover = covers(eye, frame) | {"field": cam.field(frame, grey)}
    plane = ffa_plane(eye, cover, frame) * light * np.float32(cam.uniform(rng, 0.9, 1.1))
    if eye.haze > 0:
        cam.veil([plane], 0.8 * eye.haze, (0.4,), light)
    return cam.expose([plane, plane, plane], grey, cover["field"], eye.haze, rng), frame, cover
