"""Render an image of an eye in a modality, with landmarks and masks. Left eyes are mirrored right eyes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_pipelines.language.conditions import LESIONS, MASK_CLASSES
from data_pipelines.records import DataError
from data_pipelines.synthetic.anatomy import Eye
from data_pipelines.synthetic.angiogram import ffa
from data_pipelines.synthetic.fundus import cfp, uwf
from data_pipelines.synthetic.oct import oct_scan
from data_pipelines.synthetic.raster import Frame

DRAWERS = {"CFP": cfp, "UWF": uwf, "FFA": ffa, "OCT": oct_scan}


@dataclass(frozen=True)
class Picture:
    """An image u8 [size size 3], points f32 [2 2] (fovea and disc as (x, y) in pixels, NaN outside the image), and masks."""

    image: np.ndarray
    points: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)


def render(eye: Eye, modality: str, size: int, rng: np.random.Generator, masks: bool = False) -> Picture:
    """Render an eye in a modality: CFP, UWF, FFA or OCT.

    With `masks=True`, the picture has one mask bool [size size] for each of field, artery, vein, disc, cup and the
    lesions of the eye, and `index` u8 [size size] with indices of MASK_CLASSES. An OCT scan has `layers` u8 [size size]
    with indices of LAYERS, `index` (a copy of `layers`) and `fluid` bool [size size]. Raises DataError for another
    modality and for sizes below 16.
    """
    if modality not in DRAWERS:
        raise DataError(f"synthetic modality {modality!r}: expected one of {', '.join(DRAWERS)}")
    if size < 16:
        raise DataError(f"synthetic size {size}: expected at least 16 pixels")
    image, frame, cover = DRAWERS[modality](eye, size, rng)
    points = _points(eye, modality, frame)
    truth = {} if not masks else _oct_masks(cover) if modality == "OCT" else fundus_masks(cover)
    if eye.side == "left":
        image = np.ascontiguousarray(image[:, ::-1])
        points[:, 0] = size - 1 - points[:, 0]
        truth = {k: np.ascontiguousarray(m[:, ::-1]) for k, m in truth.items()}
    return Picture(image, points, truth)


def _points(eye: Eye, modality: str, frame: Frame) -> np.ndarray:
    xy = np.array([(0.0, 0.0), eye.disc])
    if modality == "OCT":
        xy[:, 1], xy[1] = 0.0, np.nan  # a scan shows the fovea, at half its height, but not the disc
    points = np.stack(frame.pixels(xy[:, 0], xy[:, 1]), axis=1).astype(np.float32)
    points[((points < 0) | (points > frame.size - 1)).any(axis=1)] = np.nan
    return points


def _oct_masks(cover: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"index": cover["layers"], **cover}


def fundus_masks(cover: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert coverages to masks. In `index`, lesions cover the cup, the cup the disc, and the disc the vessels."""
    masks: dict[str, np.ndarray] = {name: c > 0.5 for name, c in cover.items()}
    for name in {"artery", "vein", "neovascularisation"} & set(cover):
        masks[name] = cover[name] > 0.25  # a vessel thinner than a pixel never covers half a pixel
    masks["cup"] &= masks["disc"]
    for name in masks:
        masks[name] &= masks["field"]
    index = np.zeros(cover["disc"].shape, np.uint8)
    index[masks["artery"] | masks["vein"]] = MASK_CLASSES.index("vessel")
    spread = ("detached retina", "nerve fibre defect", "peripapillary atrophy", "macular oedema")
    for name in (*(k for k in spread if k in masks), "disc", "cup", *(k for k in LESIONS if k not in spread)):
        if name in masks:
            index[masks[name]] = MASK_CLASSES.index(name)
    masks["index"] = index
    return masks
