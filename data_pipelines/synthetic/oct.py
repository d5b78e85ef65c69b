"""Draw OCT scans: a horizontal B-scan through the fovea, as a stack of layers with thicknesses in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.language.conditions import LAYERS
from data_pipelines.synthetic import camera as cam
from data_pipelines.synthetic.anatomy import Eye
from data_pipelines.synthetic.noise import cos_sin, grain, texture
from data_pipelines.synthetic.raster import Frame

DEPTH = 900.0  # micrometres from the top to the bottom of a scan
HALF = 12.0  # degrees on each side of the fovea

# the layers from Bruch's membrane upwards, and their reflectivities
_STACK = ("ped", "rpe", "srf", "os", "ez", "onl", "opl", "inl", "ipl", "rnfl")


_LIGHT = {
    "ped": 0.34,
    "rpe": 0.95,
    "srf": 0.03,
    "os": 0.42,
    "ez": 0.80,
    "onl": 0.20,
    "opl": 0.46,
    "inl": 0.29,
    "ipl": 0.50,
    "rnfl": 0.86,
}


_MASK = {"ped": 8, "rpe": 5, "srf": 8, "os": 4, "ez": 4, "onl": 3, "opl": 3, "inl": 2, "ipl": 2, "rnfl": 1}


@dataclass(frozen=True)
class Stack:
    """The layers along a scan: thicknesses f32 [w] in micrometres, Bruch's membrane, cysts, shadows."""

    thickness: dict[str, np.ndarray]
    floor: np.ndarray  # [w] depth of Bruch's membrane below the top
    choroid: np.ndarray  # [w]
    cysts: np.ndarray  # [n 4] x, height above Bruch's membrane, half width (degrees), half height (micrometres)
    specks: np.ndarray  # [n 3] x, height, radius: bright foci
    shadow: np.ndarray  # [w] 0..1
    window: np.ndarray  # [w] 0..1, light transmitted where the pigment epithelium is lost


def _bump(x: np.ndarray, centre: float, half: float, power: int = 2) -> np.ndarray:
    u = (x - np.float32(centre)) * np.float32(1 / half)
    u = u * u
    return 1 / (1 + (u * u if power == 4 else u))


def _dome(x: np.ndarray, marks: np.ndarray, height: float, widen: float, reach: float) -> np.ndarray:
    """Parabolic elevations over the marks that the scan line crosses, as wide as the marks."""
    out = np.zeros_like(x)
    for mx, my, rx, ry in marks[:, :4]:
        cut = 1 - abs(my) / (ry + reach)
        if cut > 0 and abs(mx) < HALF + rx:
            u = (x - np.float32(mx)) * np.float32(1 / (rx * widen))
            out = np.maximum(
                out, np.float32(height * min(1, 0.4 + cut) * min(1.0, 0.5 + rx)) * np.clip(1 - u * u, 0, None)
            )
    return out


def _even(a: np.ndarray, times: int) -> np.ndarray:
    """Smooth along the scan, keeping the ends."""
    for _ in range(times):
        a = a.copy()
        a[1:-1] = a[1:-1] * np.float32(0.5) + (a[:-2] + a[2:]) * np.float32(0.25)
    return a


def _healthy(eye: Eye, x: np.ndarray) -> dict[str, np.ndarray]:
    thin = 1 - 0.12 * max(0.0, min(1.0, (eye.axial_length - 25) / 6))
    fibre = eye.traits.get("fibre", 1.0)
    pit = _bump(x, 0, 1.9)
    total = (240 + 110 * _bump(x, 0, 6.0, 4)) * np.float32(thin)
    nasal = np.clip((x + 6) * np.float32(1 / 16), 0, 1)
    rnfl = (10 + 46 * nasal) * (1 - _bump(x, 0, 2.4, 4)) * np.float32(fibre)
    onl = 62 + 42 * _bump(x, 0, 2.2)
    inner = np.clip(total - 55 - onl, 40, None) * (1 - np.float32(0.93) * pit) * np.float32(0.6 + 0.4 * fibre)
    ones = np.ones_like(x)
    return {
        "ped": 0 * ones, "rpe": 20 * ones, "srf": 0 * ones, "os": (20 + 8 * pit), "ez": 14 * ones, "onl": onl,
        "opl": inner * np.float32(0.16), "inl": inner * np.float32(0.28), "ipl": inner * np.float32(0.56), "rnfl": rnfl,
    }  # fmt: skip


def _cysts(n: int, spread: float, height: tuple[float, float], size: float, rng: np.random.Generator) -> np.ndarray:
    u = rng.random((4, n))
    return np.stack(
        [
            (u[0] * 2 - 1) * spread,
            height[0] + (height[1] - height[0]) * u[1],
            (0.3 + 0.5 * u[2]) * size,
            (22 + 34 * u[3]) * size,
        ],
        axis=1,
    )


def _lesioned(eye: Eye, x: np.ndarray, t: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Apply the lesions of the eye to the layer thicknesses `t` in place, and return the cysts."""
    marks, load = eye.lesions, min(eye.load, 1.0)
    cysts = np.zeros((0, 4))
    if "drusen" in marks:
        t["ped"] += _dome(x, marks["drusen"], 62, 1.5, 0.9)
    if "choroidal neovascularisation" in marks:
        t["ped"] += _dome(x, marks["choroidal neovascularisation"], 130 + 50 * load, 1.2, 2.0)
        t["srf"] += 75 * _bump(x, float(marks["choroidal neovascularisation"][0, 0]), 3.6, 4)
        cysts = _cysts(5, 2.5, (230, 300), 0.8, rng)
    if "macular oedema" in marks:
        swell = np.float32(120 + 110 * load) * _bump(x, float(marks["macular oedema"][0, 0]), 3.4, 4)
        t["inl"] += np.float32(0.5) * swell
        t["onl"] += np.float32(0.5) * swell
        cysts = _cysts(12 + int(6 * load), 3.4, (100, 330), 1.15, rng)
        t["srf"] += np.float32(60 if eye.traits.get("fluid", 0) > 0.5 else 0) * _bump(x, 0, 2.2, 4)
    if "detached retina" in marks:
        cx, cy, r = (float(v) for v in marks["detached retina"][0, :3])
        inside = r - np.sqrt((x - np.float32(cx)) * (x - np.float32(cx)) + np.float32(cy * cy))
        _, wave = cos_sin(x * 0.16 + eye.texture[0] / 512)
        t["srf"] += np.clip(inside * 75, 0, 330) * (1 + np.float32(0.16) * wave.astype(np.float32))
    # the outer nuclear layer becomes thinner over elevations, so that the surface stays even
    t["onl"] = np.maximum(t["onl"] - np.float32(0.75) * t["ped"], np.minimum(t["onl"], 24))
    if "cotton-wool spot" in marks:
        t["rnfl"] += _dome(x, marks["cotton-wool spot"], 55, 1.3, 1.0)
    if "macular hole" in marks:
        t["onl"] += 55 * _bump(x, 0, 2.6, 4)
        r = float(marks["macular hole"][0, 2])
        cysts = np.concatenate([_cysts(4, 0.5, (120, 240), 0.8, rng), _cysts(4, 0.5, (120, 240), 0.8, rng)])
        cysts[:4, 0] += r + 1.0
        cysts[4:, 0] -= r + 1.0
    return cysts


def _atrophy(eye: Eye, x: np.ndarray, t: dict[str, np.ndarray]) -> np.ndarray:
    """Thin the outer retina and the pigment epithelium in place where they are atrophic; return f32 [w] in 0..1."""
    if "atrophy" not in eye.lesions:
        return np.zeros_like(x)
    lost = np.clip(_even(_dome(x, eye.lesions["atrophy"], 2.6, 1.1, 0.8), len(x) // 16), 0, 1)
    for name, share in (("rpe", 0.8), ("os", 0.9), ("ez", 1.0), ("onl", 0.6)):
        t[name] *= 1 - np.float32(share) * lost
    return lost


def _shadows(eye: Eye, x: np.ndarray) -> np.ndarray:
    """Shadows f32 [w], in 0..1, of blood and of the vessels that cross the scan."""
    cut = np.zeros_like(x)
    for segments, depth in ((eye.arteries, 0.35), (eye.veins, 0.5)):
        cross = (segments[:, 1] * segments[:, 3] <= 0) & (np.abs(segments[:, 0]) < HALF + 1) & (segments[:, 4] > 0.1)
        for x0, _, x1, _, w, _ in segments[cross]:
            u = (x - np.float32((x0 + x1) / 2)) * np.float32(1 / max(0.16, w))
            cut = np.maximum(cut, np.float32(depth) * np.clip(1.3 - u * u, 0, 1))
    for name in ("haemorrhage", "flame haemorrhage", "subretinal haemorrhage", "preretinal haemorrhage"):
        if name in eye.lesions:
            cut = np.maximum(cut, np.clip(_dome(x, eye.lesions[name], 0.6, 1.0, 0.3), 0, 0.6))
    return cut


def _specks(eye: Eye, rng: np.random.Generator) -> np.ndarray:
    """Bright foci in the outer plexiform layer: exudates and small haemorrhages near the scan line."""
    near = [m[np.abs(m[:, 1]) < 1.6] for k in ("hard exudate", "haemorrhage") if (m := eye.lesions.get(k)) is not None]
    spots = np.concatenate(near) if near else np.zeros((0, 6))
    spots = spots[np.abs(spots[:, 0]) < HALF][:24]
    height = 120 + 110 * rng.random(24)[: len(spots)]
    return np.stack([spots[:, 0], height, 11 + 16 * spots[:, 2]], axis=1)


def stack(eye: Eye, x: np.ndarray, rng: np.random.Generator) -> Stack:
    """The layers of an eye along the scan, `x` f32 [w] in degrees."""
    t = _healthy(eye, x)
    cysts = _lesioned(eye, x, t, rng)
    window = _atrophy(eye, x, t)
    long = max(0.0, (eye.axial_length - 24) / 8)
    bowl = np.float32(260 * long * long + 10) * (x * np.float32(1 / HALF)) * (x * np.float32(1 / HALF))
    tilt = np.float32(cam.uniform(rng, -45, 45)) * x * np.float32(1 / HALF)
    choroid = np.full_like(x, max(45.0, 250 - 22 * (eye.axial_length - 23.5) - 0.8 * (eye.age - 50)))
    floor = np.float32(cam.uniform(rng, 590, 640) + 90 * long) - bowl + tilt
    return Stack(t, floor, choroid, cysts, _specks(eye, rng), _shadows(eye, x), window)


def _paint_layers(s: Stack, z: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """The brightness f32 [h w], and the height f32 [layers+1 w] of each boundary above Bruch's membrane."""
    edges = np.cumsum(np.stack([s.thickness[k] for k in _STACK]), axis=0)
    light = [_LIGHT[k] for k in _STACK] + [0.035]
    up = s.floor[None] - z  # height of every pixel above Bruch's membrane
    inverse = np.float32(1 / (1.4 * unit))
    image = np.full_like(up, np.float32(light[0]))
    for k, edge in enumerate(edges):
        # a layer of zero thickness changes nothing, because its two edges cancel exactly
        image += np.float32(light[k + 1] - light[k]) * np.clip((up - edge) * inverse + np.float32(0.5), 0, 1)
    return image, edges


def _below(s: Stack, up: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The choroid with dark vessels, then the sclera, which fades with depth."""
    x, y = (float(v) * 400 for v in rng.random(2))
    lumps = texture("choroid", size, x, y, 110)
    depth = -up
    choroid = np.float32(0.62) - np.float32(0.36) * lumps
    sclera = np.clip(np.float32(0.5) - (depth - s.choroid) * np.float32(1 / 600), 0.05, 0.5)
    mix = np.clip((depth - s.choroid) * np.float32(1 / 30) + np.float32(0.5), 0, 1)
    out = choroid * (1 - mix) + sclera * mix
    out *= np.clip(1 - depth * np.float32(1 / 340), 0.04, 1)
    return out * (1 + np.float32(1.3) * s.window)


def _ellipses(items: np.ndarray, x: np.ndarray, up: np.ndarray, unit: float) -> np.ndarray:
    """The coverage of small upright ellipses [n 4] = (x, height, half width, half height)."""
    out = np.zeros_like(up)
    for cx, height, rx, ry in items:
        u = (x - np.float32(cx)) * np.float32(1 / rx)
        near = np.abs(u) < 1.3
        v = (up[:, near] - np.float32(height)) * np.float32(1 / ry)
        d = np.sqrt(u[near] * u[near] + v * v)
        out[:, near] = np.maximum(out[:, near], np.clip((1 - d) * np.float32(ry / unit) + np.float32(0.5), 0, 1))
    return out


def _hole(eye: Eye, x: np.ndarray, up: np.ndarray, edges: np.ndarray, unit: float) -> np.ndarray | None:
    """The coverage of a full-thickness hole, an hourglass above the pigment epithelium."""
    if "macular hole" not in eye.lesions:
        return None
    r = np.float32(eye.lesions["macular hole"][0, 2])
    v = (up - 130) * np.float32(1 / 130)
    half = r * (np.float32(0.75) + np.float32(0.5) * v * v)
    gap = np.clip((half - np.abs(x)) * 6 + np.float32(0.5), 0, 1)
    return gap * np.clip((up - edges[1]) * np.float32(1 / (1.4 * unit)), 0, 1)


def oct_scan(eye: Eye, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Frame, dict[str, np.ndarray]]:
    """Draw a scan: u8 [size size 3], a frame (only its columns are degrees), and the masks `layers` and `fluid`."""
    device = cam.device(rng, "OCT")
    frame = Frame(size, size / (2 * HALF), cam.uniform(rng, -0.8, 0.8), 0.0)
    x = frame.grid()[0][0]
    unit = DEPTH / size
    s = stack(eye, x, rng)
    z = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(unit))[:, None]
    image, edges = _paint_layers(s, z, unit)
    up = s.floor[None] - z
    cysts = _ellipses(s.cysts, x, up, unit) * (up < edges[-1] - 8) * (up > edges[4])
    image += (np.float32(0.04) - image) * cysts
    gap = _hole(eye, x, up, edges, unit)
    if gap is not None:
        image += (np.float32(0.035) - image) * gap
    foci = np.column_stack([s.specks[:, 0], s.specks[:, 1], s.specks[:, 2] / 75, s.specks[:, 2]])
    bright = _ellipses(foci, x, up, unit)
    image += (np.float32(1.0) - image) * bright
    under = np.clip(-up * np.float32(1 / (1.4 * unit)) + np.float32(0.5), 0, 1)
    image += (_below(s, up, size, rng) - image) * under
    shade = s.shadow + np.float32(0.5) * bright.max(axis=0) * (1 - s.shadow)
    image *= 1 - shade * np.clip((edges[-2] - up) * np.float32(1 / 60), 0, 1)
    layers = _layer_map(up, edges, s, cysts, gap)
    return _acquire(image, eye, device, size, rng), frame, layers


def _acquire(image: np.ndarray, eye: Eye, device: cam.Device, size: int, rng: np.random.Generator) -> np.ndarray:
    """Add speckle and the signal loss of opaque media, and convert to 8 bits and JPEG."""
    signal = np.float32(cam.uniform(rng, 0.85, 1.0) * (1 - 0.55 * eye.haze))
    speckle = grain("speckle", size, size, rng)
    floor = grain("speckle", size, size, rng) * np.float32(0.07 + 0.1 * eye.haze)
    out = image * signal * (np.float32(0.55) + np.float32(0.95) * speckle) + floor
    grey = np.clip(out * 235 + np.float32(0.5), 0, 255).astype(np.uint8)
    grey = cam.soften(grey, 0.22 * size / 96)
    return cam.jpeg(np.repeat(grey[..., None], 3, axis=2), device.quality)


def _layer_map(
    up: np.ndarray, edges: np.ndarray, s: Stack, cysts: np.ndarray, gap: np.ndarray | None
) -> dict[str, np.ndarray]:
    codes = np.array([_MASK[k] for k in _STACK] + [0], np.uint8)
    which = (up[None] > edges[:, None]).sum(axis=0)
    layers = codes[which]
    below = up < 0
    layers[below] = LAYERS.index("choroid")
    layers[-up > s.choroid] = LAYERS.index("sclera")
    fluid = (cysts > 0.5) | ((layers == 8) & (which == _STACK.index("srf")) & ~below)
    drusen = (which == _STACK.index("ped")) & ~below
    layers[drusen] = LAYERS.index("pigment epithelium")
    layers[fluid] = LAYERS.index("fluid")
    if gap is not None:
        layers[gap > 0.5] = 0
    return {"layers": layers, "fluid": layers == LAYERS.index("fluid")}
