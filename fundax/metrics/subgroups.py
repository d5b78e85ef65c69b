"""A metric by subgroup, such as sex, age or device, and the gaps between groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fundax.metrics.statistics import Estimate, blank


class Row(NamedTuple):
    """The metric of one group of one attribute, with the numbers of its rows, patients and positives."""

    attribute: str
    group: str
    rows: int
    patients: int
    positives: int
    estimate: Estimate


class Gap(NamedTuple):
    """The largest minus the smallest value over the groups of an attribute, and the names of these two groups."""

    estimate: Estimate
    best: str = ""
    worst: str = ""


def gaps(table: Sequence[Row]) -> dict[str, Gap]:
    """The gap of each attribute over its known groups; blank if fewer than two groups have a value."""
    out = {}
    for name in dict.fromkeys(row.attribute for row in table if row.attribute != "all"):
        rows = [r for r in table if r.attribute == name and r.group != "unknown" and r.estimate.defined]
        if len(rows) < 2:
            out[name] = Gap(blank("fewer than two groups have a value"))
            continue
        worst, *_, best = sorted(rows, key=lambda r: r.estimate.value)
        out[name] = Gap(Estimate(best.estimate.value - worst.estimate.value), best.group, worst.group)
    return out


def age_bands(ages: Any, edges: Sequence[float] = (40, 55, 70)) -> list[str]:
    """Convert ages in years to "under 40", "40-54", ..., "70 and over", or "" (unknown) if an age is not a number."""
    names = [f"under {edges[0]:g}", *(f"{a:g}-{b - 1:g}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    years = [*map(_number, ages)]
    return ["" if math.isnan(age) else names[int(np.searchsorted(edges, age, "right"))] for age in years]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
