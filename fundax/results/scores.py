"""Numbers of a report: every metric of one evaluation with its interval, by class and by group, and runs compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fundax.metrics import weighted
from fundax.metrics.calibration import brier, calibration_error
from fundax.metrics.operating_points import OperatingPoint, apply, at_sensitivity, at_specificity
from fundax.metrics.statistics import (
    Comparison,
    Estimate,
    Weighted,
    auc_interval,
    auc_test,
    blank,
    bootstrap_weighted,
    holm,
    mcnemar,
    weighted_difference,
)
from fundax.metrics.subgroups import Row, age_bands, gaps
from fundax.results.read import Judged

LEAST = 10  # patients of a group, below which its metric is left blank


SMALLER = ("MAE", "Brier score", "ECE")  # better when smaller, with names that begin with one of LESS


LESS = ("error", "hd95", "distance", "mae")


class Test(NamedTuple):
    """A paired test between two runs: first minus second, p and Holm's p."""

    what: str
    first: str
    second: str
    test: str
    difference: Estimate
    p: float
    adjusted: float = math.nan


def binary(judged: Judged) -> bool:
    """Two classes, of which the second is what is looked for."""
    return judged.kind == "classes" and len(judged.names) == 2


def positives(judged: Judged) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, rows [N] bool that count, truth bool, ranks) of every yes-or-no question that the evaluation asks."""
    if judged.truth is None or judged.kind not in ("classes", "labels"):
        return []
    out = []
    for k in [1] if binary(judged) else range(len(judged.names)):
        truth = judged.truth == k if judged.kind == "classes" else judged.truth[:, k]
        known = np.isfinite(truth.astype(np.float64))
        out.append((judged.names[k], known, truth[known] > 0.5, judged.ranks[known, k]))
    return out


def metrics(judged: Judged) -> dict[str, Weighted]:
    """Name to a function of row weights f64 [R N] that gives the metric f64 [R]."""
    return _METRICS[judged.kind](judged)


def headline(judged: Judged, resamples: int) -> dict[str, Estimate]:
    """Each metric with its interval: bootstrap over patients; DeLong for the AUC of two classes; ECE has none."""
    found = {}
    for name, metric in metrics(judged).items():
        if name == "AUC" and judged.truth is not None:
            truth, scores = judged.truth == 1, judged.ranks[:, 1]
            found[name] = auc_interval(truth, scores, patients=judged.patients)
        else:
            found[name] = bootstrap_weighted(metric, judged.rows, patients=judged.patients, resamples=resamples)
    if judged.kind == "classes":
        found["ECE"] = calibration_error(judged.truth, judged.scores[:, 1] if binary(judged) else judged.scores)
    return found


def by_class(judged: Judged) -> list[tuple[str, int, dict[str, Estimate], str]]:
    """(name, positives, AUC with DeLong's interval, AP, sensitivity, specificity, precision, F1; why a number is absent)."""
    out = []
    for k, (name, known, truth, scores) in enumerate(positives(judged)):
        patients = None if judged.patients is None else judged.patients[known]
        area = auc_interval(truth, scores, patients=patients)
        called = scores >= 0.5 if judged.kind == "labels" else judged.scores.argmax(1) == (1 if binary(judged) else k)
        found = {"AUC": area} | _shares(truth, called)
        one = np.ones((1, len(truth)))
        precision = weighted.average_precision(truth, scores, one)[0] if area.defined else math.nan
        found["AP"] = Estimate(float(precision), note="" if area.defined else area.note)
        out.append((name, int(truth.sum()), found, "" if area.defined else area.note))
    return out


def operating(judged: Judged, chosen_on: Judged | None) -> list[tuple[str, OperatingPoint, dict[str, Estimate]]]:
    """For each class: sensitivity at 90 % specificity, and the reverse; thresholds from `chosen_on` (validation) or here."""
    out = []
    source = positives(chosen_on if chosen_on is not None else judged)
    for (name, _, truth, scores), (_, _, truth_0, scores_0) in zip(positives(judged), source, strict=True):
        for choose in (at_specificity, at_sensitivity):
            point = choose(truth_0, scores_0) if len(truth_0) else OperatingPoint(math.nan, "", "no rows")
            found = apply(point, truth, scores) if len(truth) else {}
            out.append((name, point, found))
    return out


def probability_scores(judged: Judged) -> dict[str, Estimate]:
    """Brier score and ECE of the probabilities; of several labels each by itself."""
    if judged.kind == "classes":
        scores = judged.scores[:, 1] if binary(judged) else judged.scores
        return {"Brier score": brier(judged.truth, scores), "ECE": calibration_error(judged.truth, scores)}
    return {
        f"{what}, {name}": f(truth.astype(int), scores)
        for name, _, truth, scores in positives(judged)
        for what, f in (("Brier score", brier), ("ECE", calibration_error))
    }


def main_metric(judged: Judged) -> str:
    """The metric that groups and runs are compared by."""
    return next(iter(metrics(judged)))


def subgroups(judged: Judged, resamples: int) -> tuple[str, list[Row], dict[str, Estimate]]:
    """The main metric's name, its value in every group with an interval, and the gaps between groups."""
    name = main_metric(judged)
    table = [_group(judged, "all", "all", np.ones(judged.rows, bool), name, resamples, 0)]
    for attribute, column in judged.columns.items():
        years = attribute == "age" and column.dtype.kind in "fiu"
        bands = [*map(_told, age_bands(column) if years else column)]
        for group in sorted(set(bands), key=lambda g: (g == "unknown", not g.startswith("under"), g)):
            chosen = np.array([g == group for g in bands])
            table.append(_group(judged, attribute, group, chosen, name, resamples, LEAST))
    return name, table, gaps(table)


def comparable(first: Judged, second: Judged) -> str:
    """Why two evaluations cannot be paired row by row, or an empty string."""
    if first.kind != second.kind or first.names != second.names:
        return f"{first.run} and {second.run} have other classes or names"
    if first.rows != second.rows:
        return f"{first.run} has {first.rows} rows, {second.run} {second.rows}"
    for what, a, b in (("truth", first.truth, second.truth), ("rows", first.index, second.index)):
        if a is not None and b is not None and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{first.run} and {second.run} were given other rows (their {what} differ)"
    return ""


def compare(group: Sequence[Judged], resamples: int) -> tuple[list[Test], list[str]]:
    """Paired tests of every two runs on the same rows, with Holm's correction over all; and why a pair is left out."""
    tests, reasons = [], []
    for first, second in itertools.combinations(group, 2):
        if first.run == second.run:
            continue
        if why := comparable(first, second):
            reasons.append(why)
            continue
        tests += _tests(first, second, resamples)
    adjusted = holm([test.p for test in tests])
    return [test._replace(adjusted=float(p)) for test, p in zip(tests, adjusted, strict=True)], reasons


def _tests(first: Judged, second: Judged, resamples: int) -> list[Test]:
    names, patients = (first.run, second.run), first.patients if first.patients is not None else second.patients
    out = []
    if binary(first) and first.truth is not None:
        found = auc_test(first.truth == 1, first.ranks[:, 1], second.ranks[:, 1], patients=patients)
        out.append(Test("AUC", *names, "DeLong, paired", *found))
    else:
        what = main_metric(first)
        pair = metrics(first)[what], metrics(second)[what]
        found: Comparison = weighted_difference(*pair, first.rows, patients=patients, resamples=resamples)
        unit = "rows" if patients is None else "patients"
        out.append(Test(what, *names, f"bootstrap over {unit}, paired", *found))
    if first.kind == "classes":
        right = [one.scores.argmax(1) == one.truth for one in (first, second)]
        change = Estimate(float(right[0].mean() - right[1].mean())) if first.rows else blank("no rows")
        said = "McNemar" + ("" if patients is None else ", rows taken as independent")
        out.append(Test("accuracy", *names, said, change, mcnemar(*right) if first.rows else math.nan))
    return out


def _group(
    judged: Judged, attribute: str, group: str, chosen: np.ndarray, name: str, resamples: int, least: int
) -> Row:
    part = judged.part(chosen)
    count = len(np.unique(part.patients)) if part.patients is not None else part.rows
    found = 0
    if part.truth is not None and part.kind == "classes":
        found = int((part.truth == 1).sum()) if binary(part) else part.rows
    if count < least:
        return Row(attribute, group, part.rows, count, found, blank(f"{count} patients; at least {least} are wanted"))
    if name == "AUC" and part.truth is not None:
        estimate = auc_interval(part.truth == 1, part.ranks[:, 1], patients=part.patients)
    else:
        estimate = bootstrap_weighted(metrics(part)[name], part.rows, patients=part.patients, resamples=resamples)
    return Row(attribute, group, part.rows, count, found, estimate)


def _told(value: object) -> str:
    said = str(value).strip()
    return said if said and said.lower() != "nan" and value is not None else "unknown"


def _of_classes(judged: Judged) -> dict[str, Weighted]:
    truth, scores, ranks = judged.truth, judged.scores, judged.ranks
    assert truth is not None
    called, k = scores.argmax(1), len(judged.names)
    squares = ((scores - np.eye(k)[truth]) ** 2).sum(1) / (2 if k == 2 else 1)
    both = {
        "accuracy": partial(weighted.mean, (called == truth).astype(float)),
        "balanced accuracy": lambda w: weighted.nanmean(weighted.recalls(truth, called, k, w)),
        "Brier score": partial(weighted.mean, squares),
    }
    if k == 2:
        found: dict[str, Weighted] = {
            "AUC": partial(weighted.auc, truth == 1, ranks[:, 1]),
            "AP": partial(weighted.average_precision, truth == 1, ranks[:, 1]),
        }
        return found | both
    return {
        "macro AUC": lambda w: weighted.nanmean(weighted.class_aucs(truth, ranks, w)),
        "macro AP": lambda w: weighted.nanmean(
            np.stack([weighted.average_precision(truth == c, ranks[:, c], w) for c in range(k)])
        ),
    } | both


def _of_labels(judged: Judged) -> dict[str, Weighted]:
    questions = positives(judged)
    truth = judged.truth
    assert truth is not None
    wrong = np.where(np.isnan(truth), np.nan, (judged.scores >= 0.5) != (truth > 0.5))
    squares = np.where(np.isnan(truth), np.nan, (judged.scores - truth) ** 2)
    return {
        name: lambda w, f=f: weighted.nanmean(np.stack([f(t, s, w[:, rows]) for _, rows, t, s in questions]))
        for name, f in (("macro AUC", weighted.auc), ("macro AP", weighted.average_precision))
    } | {
        "accuracy": lambda w: 1 - _cells(wrong, w),
        "Brier score": lambda w: _cells(squares, w),
    }


def _of_values(judged: Judged) -> dict[str, Weighted]:
    truth, scores = judged.truth, judged.scores
    assert truth is not None
    columns = range(len(judged.names))

    def over(f: Callable[..., np.ndarray]) -> Weighted:
        return lambda w: weighted.nanmean(np.stack([f(truth[:, c], scores[:, c], w) for c in columns]))

    found = {"R2": over(weighted.r2), "Pearson r": over(weighted.pearson)}
    return found | {"MAE": over(lambda t, s, w: weighted.mean(np.abs(t - s), w))}


def _of_measures(judged: Judged) -> dict[str, Weighted]:
    return {name: partial(weighted.mean, judged.scores[:, k]) for k, name in enumerate(judged.names)}


_METRICS: Mapping[str, Callable[[Judged], dict[str, Weighted]]] = {
    "classes": _of_classes,
    "labels": _of_labels,
    "values": _of_values,
    "measures": _of_measures,
}


def targets(judged: Judged, resamples: int) -> list[tuple[str, int, dict[str, Estimate]]]:
    """(name, rows, R2, Pearson, MAE) of each target of a regression, with intervals."""
    out = []
    for k, name in enumerate(judged.names):
        assert judged.truth is not None
        one = replace(judged, names=(name,), scores=judged.scores[:, [k]], truth=judged.truth[:, [k]])
        known = int(np.isfinite(judged.truth[:, k]).sum())
        out.append((name, known, headline(one, resamples)))
    return out


def over_draws(arrays: Mapping[str, np.ndarray], name: str, resamples: int = 200) -> Estimate:
    """Macro AUC of few-shot probabilities [draws N K], mean over draws, with an interval over the test set's patients."""
    labels, found = arrays.get("labels"), arrays.get(name)
    if labels is None or found is None or found.ndim != 3 or found.shape[1] != len(labels):
        return blank("the evaluation kept no probabilities")

    def metric(weights: np.ndarray) -> np.ndarray:
        return weighted.nanmean(np.stack([weighted.nanmean(weighted.class_aucs(labels, p, weights)) for p in found]))

    return bootstrap_weighted(metric, len(labels), patients=arrays.get("patient"), resamples=resamples)


def _cells(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over labelled cells of [N K]."""
    known = np.isfinite(values)
    total = weights @ known.sum(1).astype(np.float64)
    part = weights @ np.where(known, values, 0).sum(1)
    return np.divide(part, total, out=np.full(len(weights), np.nan), where=total > 0)


def _shares(truth: np.ndarray, called: np.ndarray) -> dict[str, Estimate]:
    def share(hits: int, of: int, why: str) -> Estimate:
        return Estimate(hits / of) if of else blank(why)

    hits, wanted, said = int((truth & called).sum()), int(truth.sum()), int(called.sum())
    return {
        "sensitivity": share(hits, wanted, "no such row"),
        "specificity": share(int((~truth & ~called).sum()), len(truth) - wanted, "no other row"),
        "precision": share(hits, said, "never predicted"),
        "F1": share(2 * hits, wanted + said, "no such row") if wanted else blank("no such row"),
    }
