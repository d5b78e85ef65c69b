"""Visits for an evaluation that shows them: with a picture of all views, and the attributes of the patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.records import EYES, Record
from data_pipelines.tasks.labelled import attributes
from data_pipelines.transforms.visits import SIDES, VisitViews

SIDE = 96  # pixels of a view in a picture, and its height
BLANK = 235  # grey of a view that is missing


@dataclass(frozen=True)
class ShownVisit(VisitViews):
    """VisitViews with `picture` u8 [SIDE w 3], the views of the visit in one row, and the attributes named in `about`.

    Each modality has one place for the left eye and one for the right eye. A place without a view is grey.
    """

    about: tuple[str, ...] = ()

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        """The visit, its picture and its attributes."""
        record, out = example, super().__call__(example, rng)
        shown = picture(out["views"], out["view_modality"], out["view_eye"], len(self.names))
        return out | {"picture": shown} | attributes(record, self.about)


def picture(views: Sequence[np.ndarray], modality: np.ndarray, eye: np.ndarray, modalities: int) -> np.ndarray:
    """Draw the views of a visit in a row, u8 [SIDE w 3], by modality and eye; only the first of several is shown.

    views u8 [v H W 3]; modality and eye i32 [v], where an unknown eye takes a place that is free.
    """
    gap = np.full((SIDE, 4, 3), 255, np.uint8)
    tiles: list[np.ndarray] = []
    for k in range(modalities):
        own = [n for n in range(len(views)) if modality[n] == k]
        places = {side: next((n for n in own if eye[n] == EYES.index(side)), None) for side in SIDES}
        unknown = [n for n in own if eye[n] == EYES.index("")]
        for side in SIDES:
            n = places[side] if places[side] is not None or not unknown else unknown.pop(0)
            tiles += [_small(views[n]) if n is not None else np.full((SIDE, SIDE, 3), BLANK, np.uint8), gap]
    return np.concatenate(tiles[:-1], axis=1)


def _small(view: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
