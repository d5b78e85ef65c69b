"""Which patches a student does not see: iBOT's masks, made on the host, where drawing again and again is cheap.

Given the same generators they are those of the peers' loaders, bit for bit (golden tests); the draws come in their order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.records import DataError

ATTEMPTS = 10  # for each rectangle
ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Ratio:
    """The part of a crop's patches to mask: one (mean, spread) of `choices` by chance, then U(mean - spread, mean + spread).

    VisionFM's and iBOT's ((0, 0), (0.3, 0.2)) leaves half of the crops whole. Raises DataError for parts outside 0..1.
    """

    choices: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.3, 0.2))

    def __post_init__(self) -> None:
        if not self.choices or any(not 0 <= m - v <= m + v <= 1 for m, v in self.choices):
            raise DataError(f"mask ratios are pairs (mean, spread) within 0..1, got {self.choices}")

    def draw(self, draw: random.Random) -> float:
        """Every choice draws a value, then one is taken: the peers' order. A single choice takes no turn of choosing."""
        values = [draw.uniform(m - v, m + v) if v > 0 else m for m, v in self.choices]
        return values[0] if len(values) == 1 else draw.choice(values)


def block_mask(rows: int, columns: int, budget: float, draw: random.Random) -> np.ndarray:
    """bool [rows columns], True where masked: rectangles until `budget` patches are reached or none fits.

    Source: BEiT's blockwise masking (arXiv:2106.08254, algorithm 1) as iBOT's loader has it; rectangles are at least
    (min(rows, columns) // 3)^2 patches where there is room, and smaller than the grid in both directions.
    """
    mask = np.zeros((rows, columns), bool)
    least = (min(rows, columns) // 3) ** 2
    while (count := int(mask.sum())) < budget:
        if not any(_add_rectangle(mask, least, budget - count, draw) for _ in range(ATTEMPTS)):
            break
    return mask


def _add_rectangle(mask: np.ndarray, least: float, room: float, draw: random.Random) -> bool:
    """One attempt: whether it masked some patches, but not more than there is room for."""
    rows, columns = mask.shape
    area = draw.uniform(least, room)
    aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if width >= columns or height >= rows:
        return False
    top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
    box = mask[top : top + height, left : left + width]
    if not 0 < box.size - box.sum() <= room:
        return False
    box[:] = True
    return True


def random_mask(rows: int, columns: int, budget: float, rng: np.random.RandomState | np.random.Generator) -> np.ndarray:
    """bool [rows columns] with exactly int(budget) patches masked, anywhere: all shuffled, the masked ones last before."""
    flat = np.arange(rows * columns) >= rows * columns - int(budget)
    rng.shuffle(flat)
    return flat.reshape(rows, columns)


def masks(shape: Sequence[int], ratio: Ratio, kind: str, rng: np.random.Generator) -> np.ndarray:
    """bool [crops rows columns] for the crops of one example; `kind` is "block" or "random". Raises DataError."""
    if kind not in ("block", "random"):
        raise DataError(f'mask is "block" or "random", not {kind!r}')
    crops, rows, columns = shape
    draw = random.Random(int(rng.integers(2**63)))
    out = np.zeros((crops, rows, columns), bool)
    for crop in out:
        budget = ratio.draw(draw) * rows * columns
        crop[:] = (
            block_mask(rows, columns, budget, draw) if kind == "block" else random_mask(rows, columns, budget, rng)
        )
    return out
