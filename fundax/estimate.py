"""A number with its interval, or a blank with the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """value with the interval from low to high; NaN where not defined, and then `note` says why.

    A note beside a value is a warning: an interval from few resamples, a group of few patients.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def __str__(self) -> str:
        """0.912 (0.880 to 0.941), or a dash with the reason in brackets."""
        if not self.defined:
            return f"– ({self.note})" if self.note else "–"
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def blank(note: str) -> Estimate:
    """No value, for this reason."""
    return Estimate(math.nan, note=note)
