"""The same metric by sex, age, device, modality or eye with the gaps between groups; images joined to eyes, patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from fundax.metrics.statistics import Estimate, blank
from fundax.types import UserError


class Row(NamedTuple):
    """One group of one attribute: its rows, patients and positives, and the metric there."""

    attribute: str
    group: str
    rows: int
    patients: int
    positives: int
    estimate: Estimate


def subgroup_table(
    metric: Callable[..., Estimate],
    labels: Any,
    scores: Any,
    attributes: Mapping[str, Any],
    *,
    patients: Any = None,
    least: int = 10,
) -> list[Row]:
    """Rows of every group of every attribute, the whole set first.

    metric(labels, scores, patients) gives an Estimate: `statistics.auc_interval` or a bootstrap of something.
    attributes: name -> [N]; None, NaN and "" are the group "unknown". A group of fewer than `least` patients, or one
    the metric is not defined on, is blank with the reason.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    table = [_row(metric, "all", "all", labels, scores, patients, np.ones(len(labels), bool), 0)]
    for name, column in attributes.items():
        if len(column) != len(labels):
            raise UserError(f"attribute {name!r} has {len(column)} rows, the labels {len(labels)}")
        groups = np.array([_group(value) for value in column], dtype=object)
        for group in sorted(set(groups), key=lambda g: (g == "unknown", g)):
            chosen = np.array([g == group for g in groups], bool)
            table.append(_row(metric, name, group, labels, scores, patients, chosen, least))
    return table


def gaps(table: Sequence[Row]) -> dict[str, Estimate]:
    """Per attribute the largest value minus the smallest, over known groups; blank where fewer than two have one."""
    out = {}
    for name in dict.fromkeys(row.attribute for row in table if row.attribute != "all"):
        rows = [r for r in table if r.attribute == name and r.group != "unknown" and r.estimate.defined]
        if len(rows) < 2:
            out[name] = blank(f"{len(rows)} group has a value; a gap needs two")
            continue
        best, worst = max(rows, key=lambda r: r.estimate.value), min(rows, key=lambda r: r.estimate.value)
        out[name] = Estimate(best.estimate.value - worst.estimate.value, note=f"{best.group} over {worst.group}")
    return out


def age_bands(ages: Any, edges: Sequence[float] = (40, 55, 70)) -> list[str]:
    """ "under 40", "40-54", ..., "70 and over" for ages in years; "" (unknown) for NaN."""
    names = [f"under {edges[0]:g}", *(f"{a:g}-{b - 1:g}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    return ["" if math.isnan(age) else names[int(np.searchsorted(edges, age, "right"))] for age in map(float, ages)]


def aggregate(
    keys: Sequence[Any],
    scores: Any,
    labels: Any = None,
    *,
    how: Literal["mean", "max"] = "mean",
    label: Literal["max", "same"] = "max",
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows joined by key (images to eyes, eyes to patients): unique keys, scores [n ...], labels [n].

    keys: one column [N], or several ("patient", "eye") zipped to tuples by the caller. how: mean of the scores, or
    their maximum (one bad eye makes the patient). label: the worst of the rows, or the one they all share.
    Raises UserError for label="same" where they differ, naming the key.
    """
    names = [k if isinstance(k, str) else str(k) for k in keys]
    scores = np.asarray(scores, np.float64)
    unique, member = np.unique(names, return_inverse=True)
    if len(scores) != len(member):
        raise UserError(f"{len(member)} keys and {len(scores)} scores; expected as many")
    joined = np.full((len(unique), *scores.shape[1:]), -np.inf if how == "max" else 0.0)
    if how == "max":
        np.maximum.at(joined, member, scores)
    else:
        np.add.at(joined, member, scores)
        joined /= np.bincount(member, minlength=len(unique)).reshape(-1, *(1,) * (scores.ndim - 1))
    return unique, joined, None if labels is None else _labels(unique, member, np.asarray(labels), label)


def _labels(unique: np.ndarray, member: np.ndarray, labels: np.ndarray, label: str) -> np.ndarray:
    worst = np.full(len(unique), np.iinfo(np.int64).min)
    np.maximum.at(worst, member, labels.astype(np.int64))
    if label == "same" and (differ := worst[member] != labels).any():
        raise UserError(f"{unique[member[differ.argmax()]]}: its rows have different labels; expected one")
    return worst


def _row(
    metric: Callable[..., Estimate],
    attribute: str,
    group: str,
    labels: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    chosen: np.ndarray,
    least: int,
) -> Row:
    count = len(np.unique(patients[chosen]))
    if count < least:
        estimate = blank(f"{count} patients; at least {least} are wanted")
    else:
        estimate = metric(labels[chosen], scores[chosen], patients[chosen])
    return Row(attribute, group, int(chosen.sum()), count, int(np.sum(labels[chosen] > 0)), estimate)


def _group(value: Any) -> str:
    missing = value is None or (isinstance(value, float | np.floating) and math.isnan(value))
    return "unknown" if missing or not str(value).strip() else str(value)
