"""Calibration of a served model: how often predictions with a similar probability were right in the run's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fundax.evals.kinds import ClassificationResult
from fundax.metrics.calibration import reliability
from fundax.results.read import read_result, result_files
from fundax.types import UserError

BINS = 10
FEWEST = 10  # images in a bin, below which a share of them says little


@dataclass(frozen=True, eq=False)
class Calibration:
    """Probabilities f64 [N K] and outcomes f64 [N K] (NaN where unknown) of an evaluation; its name and its classes."""

    name: str
    classes: tuple[str, ...]
    probabilities: np.ndarray
    outcomes: np.ndarray

    def fits(self, classes: Sequence[str]) -> bool:
        """Whether the evaluation has these classes, in any order; with other classes, the probabilities would differ."""
        return set(classes) == set(self.classes)

    def of(self, name: str, probability: float) -> dict[str, Any] | None:
        """{low, high, images, share}: how many images had a probability of the class in the same range, and the share of
        them that had the class. None with fewer than FEWEST of them.
        """
        k = self.classes.index(name)
        known = np.isfinite(self.outcomes[:, k])
        curve = reliability(self.outcomes[known, k], self.probabilities[known, k], bins=BINS, equal_counts=True)
        edges = curve["edges"]
        place = int(np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, len(edges) - 2))
        count = int(curve["count"][place])
        if count < FEWEST:
            return None
        share = float(curve["observed"][place])
        return {"low": float(edges[place]), "high": float(edges[place + 1]), "images": count, "share": share}


def calibrations(run: str | Path) -> list[Calibration]:
    """The calibrations of all evaluations of a run that have probabilities; [] without any."""
    found = []
    for file in result_files(run) if Path(run).is_dir() else ():
        try:
            result = read_result(file)
        except UserError:  # a file of another version; the page does without it
            continue
        if isinstance(result, ClassificationResult) and len(result.classes) == result.probabilities.shape[1]:
            classes, labels = tuple(map(str, result.classes)), np.asarray(result.labels)
            several = labels.ndim == 2
            outcomes = labels if several else (labels[:, None] == np.arange(len(classes)))
            found.append(
                Calibration(file.stem, classes, np.asarray(result.probabilities, np.float64), outcomes.astype(float))
            )
    return found
