"""Thumbnails that an eval keeps of its most telling rows, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fundax.types import Batch

SIDE = 96  # of a kept picture
# kinds of pictures: whether the answer is right, and the sign that puts the wanted ones first
ANSWERS = {
    "right, certain": (True, -1.0),
    "right, doubtful": (True, 1.0),
    "wrong, doubtful": (False, 1.0),
    "wrong, certain": (False, -1.0),
}


class KeptPictures:
    """Of each kind the few most extreme rows: thumbnails, and the rows they are of."""

    def __init__(self, count: int, kinds: Mapping[str, tuple[bool, float]]) -> None:
        self._each, self._kinds = count // len(kinds), kinds
        self._best: dict[str, list[tuple[float, int, np.ndarray]]] = {kind: [] for kind in kinds}

    def offer(self, batch: Batch, known: np.ndarray, before: int, right: np.ndarray, measure: np.ndarray) -> None:
        """The known rows of a batch, of which the first is row `before` of all."""
        images = batch.get("picture", batch.get("image"))
        if images is None or np.asarray(images).dtype != np.uint8 or np.ndim(images) != 4 or not self._each:
            return
        chosen, right, measure = np.flatnonzero(known), right[known], measure[known]
        for kind, (want, sign) in self._kinds.items():
            order = [k for k in np.argsort(sign * measure, kind="stable") if right[k] == want][: self._each]
            pool = self._best[kind] + [(sign * float(measure[k]), before + int(k), images[chosen[k]]) for k in order]
            pool = sorted(pool, key=lambda entry: entry[:2])[: self._each]
            self._best[kind] = [(a, b, image if image.shape[0] == SIDE else _small(image)) for a, b, image in pool]

    def arrays(self) -> dict[str, np.ndarray]:
        """pictures u8 [T 96 96 3], picture_index i64 [T] (rows) and picture_kind [T]; nothing where no batch had images."""
        found = [(kind, row, image) for kind, entries in self._best.items() for _, row, image in entries]
        if not found:
            return {}
        kinds, rows, images = zip(*found, strict=True)
        return {"pictures": np.stack(images), "picture_index": np.array(rows), "picture_kind": np.array(kinds)}


def _small(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
