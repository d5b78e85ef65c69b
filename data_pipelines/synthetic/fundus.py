"""Draw colour fundus photographs (CFP) and ultra-wide-field images (UWF) of an eye."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import camera as cam
from data_pipelines.synthetic.anatomy import Eye
from data_pipelines.synthetic.noise import TILE_PER_DEGREE, texture
from data_pipelines.synthetic.raster import Frame, blots, ellipse, lines

Cover = dict[str, np.ndarray]


# kind: (softness of the edge, raggedness of the outline)
_EDGES = {
    "microaneurysm": (0.3, 0.0),
    "haemorrhage": (0.3, 0.9),
    "flame haemorrhage": (0.5, 0.7),
    "hard exudate": (0.25, 0.6),
    "cotton-wool spot": (0.9, 0.6),
    "drusen": (0.4, 0.3),
    "atrophy": (0.12, 0.7),
    "preretinal haemorrhage": (0.08, 0.25),
    "subretinal haemorrhage": (0.2, 0.7),
    "choroidal neovascularisation": (0.35, 0.5),
    "macular oedema": (0.8, 0.4),
    "macular hole": (0.12, 0.0),
    "detached retina": (0.05, 0.15),
    "nerve fibre defect": (0.8, 0.0),
    "peripapillary atrophy": (0.1, 0.25),
}


_WIDER = np.array([1, 1, 1, 1, 1.35, 1.35])


def covers(eye: Eye, frame: Frame) -> Cover:
    """Coverages f32 [h w] by name: artery, vein, disc, cup, neovascularisation and the lesions of the eye."""
    x, y = eye.disc
    rx, ry = eye.disc_radius
    swell = 1 + 0.25 * eye.swelling
    vessels = [eye.arteries, eye.veins, eye.fronds] if len(eye.fronds) else [eye.arteries, eye.veins]
    if frame.per_degree * 70 < frame.size:  # in a wide image, draw thinner vessels wider so that they stay visible
        vessels = [v * _WIDER for v in vessels]
    drawn = lines(frame, vessels)
    out = {
        "artery": drawn[0],
        "vein": drawn[1],
        "disc": ellipse(frame, x, y, rx * swell, ry * swell, 0.3 + 1.5 * eye.swelling),
        "cup": ellipse(frame, x + 0.1, y, rx * eye.cup * 0.95, ry * eye.cup, 0.5),
    }
    if len(eye.fronds):
        out["neovascularisation"] = drawn[2]
    for name, marks in eye.lesions.items():
        if name == "detached retina":
            out[name] = _bulla(marks[0], frame)
        else:
            soft, rough = _EDGES[name]
            out[name] = blots(frame, marks, soft, rough)
    if "preretinal haemorrhage" in out:
        out["preretinal haemorrhage"] = out["preretinal haemorrhage"] * _level(
            eye.lesions["preretinal haemorrhage"][0], frame
        )
    return out


def _level(mark: np.ndarray, frame: Frame) -> np.ndarray:
    """Mask f32 [h 1], 1 below the horizontal fluid level of a boat-shaped haemorrhage."""
    _, y = frame.grid()
    return np.clip((y - np.float32(mark[1] - 0.2 * mark[3])) * np.float32(frame.per_degree) + np.float32(0.5), 0, 1)


def _bulla(mark: np.ndarray, frame: Frame) -> np.ndarray:
    """The coverage of a detachment, a large circle with a wavy rim."""
    x, y, r = (float(v) for v in mark[:3])
    span = min(512.0, frame.size / frame.per_degree * TILE_PER_DEGREE * 0.6)
    wave = texture("folds", frame.size, 11 * x + 300, 7 * y + 300, span) - 0.5
    d = np.sqrt(frame.squared(x, y))
    return np.clip((np.float32(r) - d + 3 * wave) * np.float32(min(1.2, frame.per_degree)), 0, 1)


def anchored(kind: str, eye: Eye, frame: Frame, zoom: float = 1.0) -> np.ndarray:
    """Noise f32 [h w] that is fixed to the retina: the same in every image of the eye."""
    degrees = frame.size / frame.per_degree
    scale = min(TILE_PER_DEGREE * zoom, 512 / degrees)
    x = eye.texture[0] + (frame.x - degrees / 2) * scale
    y = eye.texture[1] + (frame.y - degrees / 2) * scale
    return texture(kind, frame.size, x, y, degrees * scale)


def _paint(
    planes: cam.Planes, cover: np.ndarray, colour: tuple[float, float, float], light: np.ndarray, alpha: float = 1.0
) -> None:
    cover = cover * np.float32(alpha)
    lit = cover * light
    keep = 1 - cover
    for plane, c in zip(planes, colour, strict=True):
        plane *= keep
        plane += np.float32(c) * lit


def _bed(eye: Eye, frame: Frame, light: np.ndarray) -> cam.Planes:
    """Choroid and pigment epithelium, with the darker macula and the sheen of a young retina."""
    cloud = anchored("cloud", eye, frame) - np.float32(0.5)
    fine = anchored("grain", eye, frame, 2.0) - np.float32(0.5)
    choroid = anchored("choroid", eye, frame) - np.float32(0.5)
    p, t = eye.pigment, eye.tessellation
    r2 = frame.squared(0, 0)
    macula = 1 / (1 + r2 * np.float32(1 / 20) + r2 * r2 * np.float32(1 / 600))
    foveola = 1 / (1 + r2 * r2 * np.float32(1 / 5))
    stripes = choroid * np.float32(t) * (1 - np.float32(0.7) * macula)
    base = (0.84 - 0.22 * p, 0.40 - 0.17 * p, 0.15 - 0.05 * p)
    pale = (0.02, 0.10, 0.10)
    shade = ((0.10, 0.06, 0.26, 0.15), (0.17, 0.08, 0.66, 0.34), (0.20, 0.08, 0.55, 0.3))
    planes = []
    for c, lift, (slow, quick, band, dark) in zip(base, pale, shade, strict=True):
        plane = 1 + np.float32(slow) * cloud + np.float32(quick) * fine + np.float32(band) * stripes
        plane -= np.float32(dark * (0.75 + 0.3 * p)) * macula + np.float32(0.5 * dark) * foveola
        planes.append(plane * light * np.float32(c + lift * 0.5 * t))
    _sheen(eye, planes, r2, light)
    return planes


def _sheen(eye: Eye, planes: cam.Planes, r2: np.ndarray, light: np.ndarray) -> None:
    """Add the bright ring around the fovea and the foveal reflex of young eyes, in place."""
    young = max(0.0, min(1.0, (55 - eye.age) / 30))
    if young == 0:
        return
    ring = (r2 - 14) * np.float32(1 / 8)
    ring = np.float32(0.13 * young) / (1 + ring * ring)
    glint = np.float32(0.35 * young) / (1 + r2 * r2 * np.float32(60))
    for plane, gain in zip(planes, (0.7, 1.0, 0.9), strict=True):
        plane += (ring + glint) * light * np.float32(0.6 * gain)


def _disc(eye: Eye, cover: Cover, planes: cam.Planes, frame: Frame, light: np.ndarray) -> None:
    glow = np.float32(0.16) / (1 + frame.squared(*eye.disc, 4.2, 4.2))
    planes[0] += glow * light
    planes[1] += np.float32(0.7) * glow * light
    pale = eye.pallor
    rim = (0.97, 0.60 + 0.22 * pale - 0.08 * eye.swelling, 0.33 + 0.30 * pale)
    cup = (1.0, 0.88 + 0.06 * pale, 0.66 + 0.14 * pale)
    _paint(planes, cover["disc"], rim, light, 0.93)
    _paint(planes, cover["cup"] * cover["disc"], cup, light, 0.9 - 0.5 * eye.swelling)


def _under_vessels(eye: Eye, cover: Cover, planes: cam.Planes, frame: Frame, light: np.ndarray) -> None:
    blot = {k: v for k, v in cover.items() if k not in ("artery", "vein", "disc", "cup", "field")}
    if "nerve fibre defect" in blot:
        _paint(planes, blot["nerve fibre defect"], (0.50, 0.20, 0.09), light, 0.42)
    if "peripapillary atrophy" in blot:
        _paint(
            planes,
            blot["peripapillary atrophy"],
            (0.93, 0.78, 0.60),
            light,
            0.25 + 0.6 * eye.traits.get("crescent", 0.3),
        )
    if "atrophy" in blot:
        pale = (0.95, 0.86, 0.66) if eye.condition == "pathologic myopia" else (0.95, 0.66, 0.38)
        rim = blot["atrophy"] * (1 - blot["atrophy"])
        _paint(planes, blot["atrophy"], pale, light, 0.8)
        _paint(planes, rim * 2, (0.25, 0.13, 0.09), light, 0.7 if eye.condition == "pathologic myopia" else 0.2)
    if "macular oedema" in blot:
        _paint(planes, blot["macular oedema"], (0.86, 0.56, 0.30), light, 0.35)
    if "subretinal haemorrhage" in blot:
        _paint(planes, blot["subretinal haemorrhage"], (0.36, 0.06, 0.05), light, 0.88)
    if "choroidal neovascularisation" in blot:
        _paint(planes, blot["choroidal neovascularisation"], (0.80, 0.70, 0.42), light, 0.9)
    if "drusen" in blot:
        _paint(planes, blot["drusen"], (0.98, 0.82, 0.42), light, 0.8)
    if "macular hole" in blot:
        _hole(eye, blot["macular hole"], planes, frame, light)
    if "detached retina" in blot:
        _lifted(eye, blot["detached retina"], planes, frame, light)


def _hole(eye: Eye, cover: np.ndarray, planes: cam.Planes, frame: Frame, light: np.ndarray) -> None:
    r = float(eye.lesions["macular hole"][0, 2])
    _paint(planes, ellipse(frame, 0, 0, 2.1 * r, 2.1 * r, 0.4), (0.80, 0.56, 0.36), light, 0.5)
    _paint(planes, cover, (0.55, 0.07, 0.04), light, 0.95)


def _lifted(eye: Eye, cover: np.ndarray, planes: cam.Planes, frame: Frame, light: np.ndarray) -> None:
    """The detached retina: grey, opaque and folded."""
    folds = anchored("folds", eye, frame, 1.3)
    ripple = anchored("choroid", eye, frame, 0.5)
    grey = np.float32(0.42) + np.float32(0.36) * folds + np.float32(0.26) * ripple
    edge = cover * (1 - cover)
    _paint(planes, cover, (0.86, 0.76, 0.66), light * grey, 0.86)
    _paint(planes, edge * 3, (0.90, 0.80, 0.66), light, 0.4)


def _over_vessels(cover: Cover, planes: cam.Planes, light: np.ndarray) -> None:
    if "cotton-wool spot" in cover:
        _paint(planes, cover["cotton-wool spot"], (1.0, 0.93, 0.80), light, 0.85)
    if "hard exudate" in cover:
        _paint(planes, cover["hard exudate"], (1.0, 0.90, 0.42), light, 0.92)
    for name, alpha in (("flame haemorrhage", 0.88), ("haemorrhage", 0.9), ("microaneurysm", 0.9)):
        if name in cover:
            _paint(planes, cover[name], (0.48, 0.05, 0.04), light, alpha)
    if "neovascularisation" in cover:
        _paint(planes, cover["neovascularisation"], (0.66, 0.06, 0.05), light, 0.95)
    if "preretinal haemorrhage" in cover:
        _paint(planes, cover["preretinal haemorrhage"], (0.40, 0.03, 0.03), light, 0.96)


def _vessels(eye: Eye, cover: Cover, planes: cam.Planes, light: np.ndarray) -> None:
    dim = 1 - np.float32(0.35) * cover.get("detached retina", np.float32(0))
    _paint(planes, cover["vein"], (0.46, 0.09, 0.07), light * dim, 0.85)
    copper = eye.traits.get("copper", 0.0)  # vessel walls thickened by high blood pressure reflect light
    _paint(
        planes, cover["artery"], (0.70 + 0.16 * copper, 0.15 + 0.25 * copper, 0.08 + 0.1 * copper), light * dim, 0.76
    )


def fundus_planes(eye: Eye, cover: Cover, frame: Frame, light: np.ndarray) -> cam.Planes:
    """The red, green and blue light returned from the fundus, f32 [h w] in 0..1."""
    planes = _bed(eye, frame, light)
    _under_vessels(eye, cover, planes, frame, light)
    _disc(eye, cover, planes, frame, light)
    _vessels(eye, cover, planes, light)
    _over_vessels(cover, planes, light)
    return planes


def _lens(eye: Eye, planes: cam.Planes, light: np.ndarray) -> None:
    """Apply the absorption of blue light by an old lens and the scattering by an opaque lens, in place."""
    old = max(0.0, min(1.0, (eye.age - 35) / 50))
    planes[2] *= np.float32(1 - 0.45 * old)
    planes[0] *= np.float32(1 - 0.04 * old)
    if eye.haze > 0:
        cam.veil(planes, eye.haze, (0.70, 0.55 - 0.03 * old, 0.30 - 0.06 * old), light)


def cfp(eye: Eye, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Frame, Cover]:
    """Draw a photograph of 45-50 degrees: u8 [size size 3], its frame and the coverages."""
    device = cam.device(rng, "CFP")
    half = cam.uniform(rng, 22.5, 25.5)
    frame = Frame(size, size * device.field / 2 / half, cam.uniform(rng, 3.5, 7.5), cam.uniform(rng, -1.5, 1.5))
    light = cam.illumination(frame, device)
    cover = covers(eye, frame) | {"field": cam.field(frame, device)}
    planes = fundus_planes(eye, cover, frame, light)
    _lens(eye, planes, light)
    return cam.expose(planes, device, cover["field"], eye.haze, rng), frame, cover


def uwf(eye: Eye, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Frame, Cover]:
    """Draw a 120-degree image of a red and a green laser, with an oval field and lids above and below."""
    device = cam.device(rng, "UWF")
    frame = Frame(size, size / 2 / cam.uniform(rng, 54, 62), cam.uniform(rng, 1, 7), cam.uniform(rng, -3, 3))
    light = cam.illumination(frame, device)
    cover = covers(eye, frame) | {"field": cam.field(frame, device)}
    red, green, _ = fundus_planes(eye, cover, frame, light)
    # the two lasers: a dim red channel, a strong green one, hardly any blue
    tilt = cam.uniform(rng, 0.9, 1.1)
    planes = [red * np.float32(0.88), green * np.float32(1.02 * tilt), green * green * np.float32(0.6)]
    if eye.haze > 0:
        cam.veil(planes, eye.haze, (0.50, 0.52, 0.2), light)
    _lids(planes, frame, rng)
    return cam.expose(planes, device, cover["field"], eye.haze, rng), frame, cover


def _lids(planes: cam.Planes, frame: Frame, rng: np.random.Generator) -> None:
    """Draw the dark arcs of the lids in place. The lower lid has lashes."""
    axis = (np.arange(frame.size, dtype=np.float32) + np.float32(0.5)) * np.float32(1 / frame.size)
    u = axis[None] - np.float32(0.5)
    top, bottom = cam.uniform(rng, 0.02, 0.12), cam.uniform(rng, 0.02, 0.14)
    lashes = (cam.grain("white", 1, frame.size, rng) - np.float32(0.5)) * np.float32(0.035)
    upper = (axis[:, None] - np.float32(top) - u * u * np.float32(0.35)) * 9
    lower = (np.float32(1 - bottom) - u * u * np.float32(0.35) + lashes - axis[:, None]) * 9
    shade = np.clip(upper, np.float32(0.12), 1) * np.clip(lower, np.float32(0.12), 1)
    for plane in planes:
        plane *= shade
