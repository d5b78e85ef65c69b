"""The field of view of a fundus photograph: the bright disc, without the black frame and what is printed there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.geometry import Crop, Move, move
from data_pipelines.records import MODALITIES
from data_pipelines.transforms.views import present


@dataclass(frozen=True)
class FieldOfViewCrop:
    """Crop to the field of view, the bright disc of a fundus photograph, and pad with black to a square.

    The field of view is the largest connected bright region, so a printed date or a logo does not count. The image is
    unchanged if nothing is bright, if that region fills less than half of its box (a disc fills pi/4), or if `modality`
    is known and not in `modalities`, because an OCT has no field of view.

    Args:
        threshold: grey level that the brightest channel must exceed.
        margin: margin added on each side, as a fraction of the diameter.
        square: pad to a square.
        modalities: modalities with a field of view.
    """

    threshold: int = 20
    margin: float = 0.0
    square: bool = True
    modalities: tuple[str, ...] = ("CFP", "FFA", "UWF", "ICGA", "FAF")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if "modality" in example and MODALITIES[int(example["modality"])] not in self.modalities:
            return example
        for key in present(example):
            example = move(example, key, self.moves(example[key]))
        return example

    def moves(self, image: np.ndarray) -> tuple[Move, ...]:
        """The crop of one image; () if no field of view is found."""
        box = field_of_view(image, self.threshold)
        if box is None:
            return ()
        side = max(box.height, box.width)
        extra = round(self.margin * side)
        tall, wide = (side, side) if self.square else (box.height, box.width)
        tall, wide = tall + 2 * extra, wide + 2 * extra
        return (Crop(box.top + (box.height - tall) // 2, box.left + (box.width - wide) // 2, tall, wide),)


def field_of_view(image: np.ndarray, threshold: int = 20) -> Crop | None:
    """The bounding box of the bright disc in u8 [H W 3], accurate to about 1/256 of the side; None if there is none."""
    from scipy import ndimage  # slow to import, and only needed here

    height, width = image.shape[:2]
    step = max(1, min(height, width) // 256)
    small = image[::step, ::step]
    lit = np.maximum(np.maximum(small[..., 0], small[..., 1]), small[..., 2]) > threshold
    around = np.pad(lit, 1, mode="edge")  # erosion by 3 x 3 removes sensor noise and thin print
    across = around[:, :-2] & around[:, 1:-1] & around[:, 2:]
    regions = np.empty(lit.shape, np.int32)
    if not ndimage.label(across[:-2] & across[1:-1] & across[2:], output=regions):
        return None
    areas = np.bincount(regions.ravel())[1:]
    rows, columns = ndimage.find_objects(regions)[int(areas.argmax())]
    if areas.max() < 0.5 * (rows.stop - rows.start) * (columns.stop - columns.start):
        return None
    top, left = max(rows.start - 1, 0) * step, max(columns.start - 1, 0) * step  # restore the eroded pixel
    bottom, right = min((rows.stop + 1) * step, height), min((columns.stop + 1) * step, width)
    return Crop(top, left, bottom - top, right - left)
