"""The lesions of each condition: their places, sizes, and numbers at a disease load.

The largest number of lesions is always drawn and then truncated, so that a later visit, with a higher load and the same
random stream, keeps the lesions of the earlier one and adds new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.noise import cos_sin

Marks = dict[str, np.ndarray]
Rng = np.random.Generator


@dataclass(frozen=True)
class Site:
    """The properties of an eye that the placement of lesions depends on."""

    load: float
    disc: tuple[float, float]
    veins: np.ndarray
    rate: float = 0.5  # 0..1, lesion load within the grade (HbA1c)
    variant: float = 0.5  # 0..1, the form of the condition; a vein occlusion below 0.4 is central


def marks(
    x: np.ndarray, y: np.ndarray, rx: np.ndarray, ry: np.ndarray | None = None, turn: np.ndarray | None = None
) -> np.ndarray:
    """Marks [n 6] from their columns: round without `ry`, upright without `turn` (an angle in turns)."""
    c, s = cos_sin(np.zeros(len(x)) if turn is None else turn)
    return np.stack([x, y, rx, rx if ry is None else ry, c, s], axis=1)


def _field(
    n: int, rng: Rng, reach: float = 20.0, centre: tuple[float, float] = (3.0, 0.0), hole: float = 1.2
) -> tuple[np.ndarray, np.ndarray]:
    """Random points over the posterior pole, at least `hole` away from the fovea."""
    radius, turn = rng.random((2, n))
    c, s = cos_sin(turn)
    r = reach * np.sqrt(radius) * np.where(radius < 0.8, 1.0, 2.0)  # some lie further out, for wide fields
    x, y = centre[0] + c * r, centre[1] + s * r
    near = x * x + y * y < hole * hole
    return np.where(near, x + 2 * hole, x), y


def _dots(n: int, most: int, size: tuple[float, float], rng: Rng, **where: object) -> np.ndarray:
    """The first `n` of `most` random round marks, with radii in the range `size`."""
    x, y = _field(most, rng, **where)  # type: ignore[arg-type]
    u, shape, turn = rng.random((3, most))
    r = size[0] + (size[1] - size[0]) * u * u
    return marks(x, y, r, r * (0.7 + 0.5 * shape), turn)[: max(0, min(n, most))]


def _cluster(
    n: int, centre: tuple[float, float], ring: tuple[float, float], size: tuple[float, float], rng: Rng
) -> np.ndarray:
    """Random marks in a ring around a centre."""
    turn, r, u = rng.random((3, n))
    c, s = cos_sin(turn)
    r = ring[0] + (ring[1] - ring[0]) * r
    return marks(centre[0] + c * r, centre[1] + s * r, size[0] + (size[1] - size[0]) * u * u)


def _mark(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0) -> np.ndarray:
    return marks(np.array([x]), np.array([y]), np.array([rx]), np.array([rx if ry is None else ry]), np.array([turn]))


def _flames(
    n: int, most: int, site: Site, rng: Rng, keep: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """Flame haemorrhages: streaks along the veins, parallel to the nerve fibres."""
    v = site.veins
    pool = v[(v[:, 4] > 0.16) & (np.abs(v[:, 0] - 4) < 22) & (np.abs(v[:, 1]) < 20)]
    if keep is not None:
        chosen = pool[keep(pool[:, 0], pool[:, 1])]
        pool = chosen if len(chosen) else pool
    pick, u, away, side = rng.random((4, most))
    seg = pool[np.floor(pick * len(pool)).astype(np.int64)]
    dx, dy = seg[:, 2] - seg[:, 0], seg[:, 3] - seg[:, 1]
    norm = np.sqrt(dx * dx + dy * dy + 1e-9)
    c, s = dx / norm, dy / norm
    off = (away - 0.5) * 5.0
    r = 0.7 + 1.3 * u
    out = np.stack([seg[:, 0] - s * off, seg[:, 1] + c * off, r, r * (0.28 + 0.25 * side), c, s], axis=1)
    return out[: max(0, min(n, most))]


def _retinopathy(site: Site, rng: Rng) -> Marks:
    load, rate = site.load, site.rate
    more = 0.6 + 0.8 * rate
    out = {"microaneurysm": _dots(int((8 + 11 * (load - 1)) * more), 70, (0.2, 0.36), rng, reach=17.0)}
    out["haemorrhage"] = _dots(int((load >= 2) * (5 + 14 * (load - 2)) * more), 60, (0.35, 1.0), rng, reach=19.0)
    spots = int((load >= 2) * (2 + 1.6 * (load - 2)) * more)
    out["cotton-wool spot"] = _dots(spots, 9, (0.8, 1.5), rng, reach=14.0, centre=(6.0, 0.0), hole=5.0)
    out["flame haemorrhage"] = _flames(int((load >= 3) * (6 + 9 * (load - 3)) * more), 26, site, rng)
    centres, count = rng.random((4, 2)), int((load >= 2) * (1 + 1.2 * (load - 2) * more))
    groups = [
        _cluster(12, (-9 + 15 * float(c[0]), -8 + 16 * float(c[1])), (0.3, 2.2), (0.15, 0.5), rng) for c in centres
    ]
    if count:
        out["hard exudate"] = np.concatenate(groups[:count])
    if load >= 4:
        boat = rng.random(5)
        grown = 0.7 + 0.5 * (load - 4)
        x, y = float(-4 + 14 * boat[0]), float((7 + 3 * boat[1]) * (1 if boat[2] < 0.7 else -1))
        out["preretinal haemorrhage"] = _mark(
            x, y, (3.0 + 2.0 * float(boat[3])) * grown, (1.5 + float(boat[4])) * grown
        )
    return out


def _macular_oedema(site: Site, rng: Rng) -> Marks:
    load, more = site.load, 0.7 + 0.6 * site.rate
    jitter = (rng.random(2) - 0.5) * 1.4
    centre = (float(jitter[0]), float(jitter[1]))
    return {
        "microaneurysm": _dots(int(14 * more), 30, (0.2, 0.34), rng, reach=13.0),
        "haemorrhage": _dots(int(5 * more), 12, (0.3, 0.8), rng, reach=15.0),
        "hard exudate": _cluster(70, centre, (2.4, 4.6 + load), (0.16, 0.55), rng)[: int((26 + 40 * load) * more)],
        "macular oedema": _mark(*centre, 2.4 + 1.4 * load),
    }


def _dry_amd(site: Site, rng: Rng) -> Marks:
    load = min(site.load, 1.0)
    out = {"drusen": _cluster(90, (0.0, 0.0), (0.2, 6.5), (0.2, 0.62), rng)[: int(26 + 60 * load)]}
    place = rng.random((3, 4))
    patches = np.concatenate(
        [
            _mark(
                2.6 * (float(p[0]) - 0.5),
                2.6 * (float(p[1]) - 0.5),
                1.1 + 1.5 * float(p[2]) * load,
                0.9 + 1.2 * float(p[3]) * load,
            )
            for p in place
        ]
    )
    if load > 0.6:
        out["atrophy"] = patches[: 1 + int((load - 0.6) * 6)]
    return out


def _wet_amd(site: Site, rng: Rng) -> Marks:
    u = rng.random(6)
    grown = 0.75 + 0.4 * site.load
    x, y = float(1.6 * (u[0] - 0.5)), float(1.6 * (u[1] - 0.5))
    turn = float(u[2])
    c, s = (float(v) for v in cos_sin(turn))
    return {
        "drusen": _cluster(26, (0.0, 0.0), (2.0, 7.0), (0.22, 0.6), rng),
        "choroidal neovascularisation": _mark(x, y, 2.1 * grown, 1.6 * grown, turn),
        "subretinal haemorrhage": _mark(
            x + 1.6 * c, y + 1.6 * s, (2.8 + float(u[3])) * grown, (2.2 + float(u[4])) * grown, turn
        ),
        "hard exudate": _cluster(16, (x - 2.2 * c, y - 2.2 * s), (1.4, 3.2), (0.15, 0.45), rng),
    }


def _glaucoma(site: Site, rng: Rng) -> Marks:
    u = rng.random(4)
    up = -1 if u[0] < 0.4 else 1
    dx, dy = site.disc
    # a wedge-shaped nerve fibre defect that arches from the disc to the raphe, as a chain of broad marks
    t = np.arange(14) / 13
    x = dx - 1.5 - t * 17
    y = dy + up * (2.4 + 9.0 * t * (1.55 - t))
    out = {"nerve fibre defect": marks(x, y, np.full(14, 1.1), 0.55 + 0.9 * t, np.full(14, 0.0))}
    out["peripapillary atrophy"] = _mark(dx - 0.5, dy, 3.1 + 0.5 * float(u[1]), 3.4 + 0.4 * float(u[1]))
    if u[2] < 0.25:
        out["flame haemorrhage"] = _mark(dx - 2.2, dy + up * 2.0, 0.9, 0.3, 0.1 * up)
    return out


def _vein_occlusion(site: Site, rng: Rng) -> Marks:
    u = rng.random(3)
    central = site.variant < 0.4
    up = -1 if u[1] < 0.6 else 1
    grown = 0.7 + 0.5 * site.load
    most = 110 if central else 70

    def sector(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (y * up > 1.0) & (x < site.disc[0] + 1)

    where = None if central else sector
    dots = _dots(60, 60, (0.3, 1.0), rng, reach=17.0)
    if not central:
        dots[:, 1] = np.abs(dots[:, 1]) * up
    spots = _dots(5, 5, (0.9, 1.5), rng, reach=11.0, centre=(6.0, 0.0), hole=5.0)
    if not central:
        spots[:, 1] = np.abs(spots[:, 1]) * up + up
    return {
        "flame haemorrhage": _flames(int(most * grown * 0.8), most, site, rng, where),
        "haemorrhage": dots[: int((40 if central else 24) * grown)],
        "cotton-wool spot": spots[: int(2 + 3 * site.load)],
        "macular oedema": _mark(0.0, 0.6 * up, 2.2 + 1.2 * site.load),
    }


def _detachment(site: Site, rng: Rng) -> Marks:
    u = rng.random(4)
    up = -1.0 if u[0] < 0.65 else 1.0
    radius = 45.0
    reach = 3.0 + 8.0 * float(u[1]) - 7.0 * min(site.load, 1.0)  # distance of the edge from the fovea
    c, s = (float(v) for v in cos_sin(0.5 + up * (0.06 + 0.14 * float(u[2]))))  # temporal, up or down
    return {"detached retina": _mark(3 + c * (radius + reach), s * (radius + reach), radius, radius)}


def _myopia(site: Site, rng: Rng) -> Marks:
    u = rng.random((5, 4))
    dx, dy = site.disc
    grown = 0.7 + 0.5 * site.load
    crescent = _mark(
        dx - (1.2 + 0.8 * site.load), dy + float(u[0, 0] - 0.5), 3.6 + 1.4 * site.load, 3.6 + 1.0 * site.load
    )
    patches = [
        _mark(
            float(-6 + 15 * p[0]),
            float(-6 + 12 * p[1]),
            (0.9 + 1.8 * float(p[2])) * grown,
            (0.8 + 1.2 * float(p[3])) * grown,
            float(p[0]),
        )
        for p in u
    ]
    return {"peripapillary atrophy": crescent, "atrophy": np.concatenate(patches)[: 2 + int(3 * site.load)]}


def _hole(site: Site, rng: Rng) -> Marks:
    r = 1.0 + 0.7 * min(site.load, 1.0) + 0.15 * float(rng.random())
    return {"macular hole": _mark(0.0, 0.0, r, r)}


def _none(site: Site, rng: Rng) -> Marks:
    return {}


def _comorbid(site: Site, rng: Rng) -> Marks:
    """A few hard drusen away from the fovea, as in many healthy old eyes."""
    return {"drusen": _cluster(6, (-1.0, 1.0), (3.0, 8.0), (0.14, 0.24), rng)}


_BY_CONDITION = {
    "diabetic macular oedema": _macular_oedema,
    "dry age-related macular degeneration": _dry_amd,
    "neovascular age-related macular degeneration": _wet_amd,
    "glaucoma": _glaucoma,
    "retinal vein occlusion": _vein_occlusion,
    "retinal detachment": _detachment,
    "pathologic myopia": _myopia,
    "macular hole": _hole,
    "old drusen": _comorbid,
}


def lesions_of(condition: str, site: Site, rng: Rng) -> Marks:
    """The marks [n 6] of a condition by lesion name, without empty ones."""
    make = _retinopathy if condition.endswith("diabetic retinopathy") else _BY_CONDITION.get(condition, _none)
    return {name: m for name, m in make(site, rng).items() if len(m)}


def fronds(load: float, disc: tuple[float, float], rng: Rng) -> np.ndarray:
    """The new vessels of proliferative retinopathy: tangles of fine vessels, as segments [n 6]."""
    u = rng.random((3, 4))
    knots = [np.asarray(disc)] + [np.array([-4 + 18 * p[0], (7 + 5 * p[1]) * (1 if p[2] < 0.5 else -1)]) for p in u]
    paths = []
    for knot in knots[: 2 + int((load - 4) * 3)]:
        turn, bend = rng.random(11), (rng.random((11, 9)) - 0.5) * 0.34
        x, y = np.repeat(knot[None, 0], 11), np.repeat(knot[None, 1], 11)
        for k in range(9):
            turn = turn + bend[:, k]
            c, s = cos_sin(turn)
            paths.append(np.stack([x, y, x + 0.42 * c, y + 0.42 * s, np.full(11, 0.17), np.full(11, 0.14)], axis=1))
            x, y = x + 0.42 * c, y + 0.42 * s
    return np.concatenate(paths)
