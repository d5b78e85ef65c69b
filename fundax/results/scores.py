"""Statistics of a report: metrics with confidence intervals, overall, by class and by subgroup, and tests between runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fundax.evals.kinds import FewShotResult
from fundax.metrics import weighted
from fundax.metrics.calibration import brier, calibration_error
from fundax.metrics.operating_points import OperatingPoint, apply, at_kappa_f1, at_sensitivity, at_specificity
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
from fundax.metrics.subgroups import Gap, Row, age_bands, gaps
from fundax.results.about import apart
from fundax.results.evaluation import Evaluation

LEAST = 10  # patients of a group, below which its metric is left blank


class Test(NamedTuple):
    """A paired test between two runs: first minus second, p and Holm's p."""

    what: str
    first: str
    second: str
    test: str
    difference: Estimate
    p: float
    adjusted: float = math.nan


def positives(one: Evaluation) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, rows [N] bool that count, truth bool, ranks) of every yes-or-no question that the evaluation asks."""
    if one.truth is None or one.kind not in ("classification", "multi_label"):
        return []
    out = []
    for k in [1] if one.binary else range(len(one.names)):
        truth = one.truth == k if one.kind == "classification" else one.truth[:, k]
        known = np.isfinite(truth.astype(np.float64))
        out.append((one.names[k], known, truth[known] > 0.5, one.ranks[known, k]))
    return out


def headline(one: Evaluation, resamples: int) -> dict[str, Estimate]:
    """Each metric with its interval: bootstrap over patients; DeLong for the AUC of two classes; ECE has none."""
    found = {}
    for name, metric in one.metrics().items():
        if name == "AUC" and one.truth is not None:
            truth, scores = one.truth == 1, one.ranks[:, 1]
            found[name] = auc_interval(truth, scores, patients=one.patients)
        else:
            found[name] = bootstrap_weighted(metric, one.rows, patients=one.patients, resamples=resamples)
    if one.kind == "classification":
        found["ECE"] = calibration_error(one.truth, one.scores[:, 1] if one.binary else one.scores)
    return found


def by_class(one: Evaluation) -> list[tuple[str, int, dict[str, Estimate], str]]:
    """(name, positives, AUC with DeLong's interval, AP, sensitivity, specificity, precision, F1; why a number is absent)."""
    out = []
    for k, (name, known, truth, scores) in enumerate(positives(one)):
        patients = None if one.patients is None else one.patients[known]
        area = auc_interval(truth, scores, patients=patients)
        called = scores >= 0.5 if one.kind == "multi_label" else one.scores.argmax(1) == (1 if one.binary else k)
        found = {"AUC": area} | _shares(truth, called)
        precision = weighted.average_precision(truth, scores, np.ones((1, len(truth))))[0] if area.defined else math.nan
        found["AP"] = Estimate(float(precision), note="" if area.defined else area.note)
        out.append((name, int(truth.sum()), found, "" if area.defined else area.note))
    return out


def operating(one: Evaluation, chosen_on: Evaluation | None) -> list[tuple[str, OperatingPoint, dict[str, Estimate]]]:
    """For each class: sensitivity at 90 % specificity and the reverse, and of two classes the best kappa + F1.

    Thresholds are chosen on `chosen_on` (validation), or on these rows where it is None. They are blank, with the reason,
    where `chosen_on` is of another step or preprocessing.
    """
    if chosen_on is not None and (why := apart(chosen_on.about, one.about)):
        return [(name, OperatingPoint(math.nan, "", why), {}) for name, *_ in positives(one)]
    out = []
    source = positives(chosen_on if chosen_on is not None else one)
    for (name, _, truth, scores), (_, _, truth_0, scores_0) in zip(positives(one), source, strict=True):
        for choose in (at_specificity, at_sensitivity, *((at_kappa_f1,) if one.binary else ())):
            point = choose(truth_0, scores_0) if len(truth_0) else OperatingPoint(math.nan, "", "no rows")
            found = apply(point, truth, scores) if len(truth) else {}
            out.append((name, point, found))
    return out


def probability_scores(one: Evaluation) -> dict[str, Estimate]:
    """Brier score and ECE of the probabilities; of several labels each by itself."""
    if one.kind == "classification":
        scores = one.scores[:, 1] if one.binary else one.scores
        return {"Brier score": brier(one.truth, scores), "ECE": calibration_error(one.truth, scores)}
    return {
        f"{what}, {name}": f(truth.astype(int), scores)
        for name, _, truth, scores in positives(one)
        for what, f in (("Brier score", brier), ("ECE", calibration_error))
    }


def main_metric(one: Evaluation) -> str:
    """The metric that groups and runs are compared by."""
    return next(iter(one.metrics()))


def subgroups(one: Evaluation, resamples: int) -> tuple[str, list[Row], dict[str, Estimate]]:
    """The main metric's name, its value in every group with an interval, and the gaps between groups."""
    name = main_metric(one)
    table = [_group(one, "all", "all", np.ones(one.rows, bool), name, resamples, 0)]
    found: dict[tuple[str, str], np.ndarray] = {}
    for attribute, column in one.columns.items():
        bands = np.array([*map(_group_name, age_bands(column) if attribute == "age" else column)])
        for group in sorted(set(bands), key=lambda g: (g == "unknown", not g.startswith("under"), g)):
            found[attribute, group] = bands == group
            table.append(_group(one, attribute, group, bands == group, name, resamples, LEAST))
    return (
        name,
        table,
        {attribute: _gap(one, attribute, gap, found, name, resamples) for attribute, gap in gaps(table).items()},
    )


def _gap(
    one: Evaluation, attribute: str, gap: Gap, found: Mapping[tuple[str, str], np.ndarray], name: str, resamples: int
) -> Estimate:
    """The gap between the best and the worst group, with an interval by resampling patients."""
    if not gap.estimate.defined:
        return gap.estimate
    rows = [found[attribute, group] for group in (gap.best, gap.worst)]
    metrics = [one.part(chosen).metrics()[name] for chosen in rows]

    def metric(weights: np.ndarray) -> np.ndarray:
        return metrics[0](weights[:, rows[0]]) - metrics[1](weights[:, rows[1]])

    drawn = bootstrap_weighted(metric, one.rows, patients=one.patients, resamples=resamples)
    return replace(drawn, note=f"{gap.best} minus {gap.worst}")


def comparable(first: Evaluation, second: Evaluation) -> str:
    """Why two evaluations cannot be paired row by row; an empty string if they can."""
    if first.kind != second.kind or first.names != second.names:
        return f"{first.run} and {second.run} have other classes or names"
    data = [each.about.digest for each in (first, second)]
    if all(data) and data[0] != data[1]:
        return (
            f"{first.run} and {second.run} were evaluated on other data ({first.about.text()}; {second.about.text()})"
        )
    if first.rows != second.rows:
        return f"{first.run} has {first.rows} rows, {second.run} {second.rows}"
    for what, a, b in (("truth", first.truth, second.truth), ("rows", first.index, second.index)):
        if a is not None and b is not None and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{first.run} and {second.run} were given other rows (their {what} differ)"
    return ""


def compare(group: Sequence[Evaluation], resamples: int) -> tuple[list[Test], list[str]]:
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


def _tests(first: Evaluation, second: Evaluation, resamples: int) -> list[Test]:
    names, patients = (first.run, second.run), first.patients if first.patients is not None else second.patients
    out = []
    if first.binary and first.truth is not None:
        found = auc_test(first.truth == 1, first.ranks[:, 1], second.ranks[:, 1], patients=patients)
        out.append(Test("AUC", *names, "DeLong, paired", *found))
    else:
        what = main_metric(first)
        pair = first.metrics()[what], second.metrics()[what]
        found: Comparison = weighted_difference(*pair, first.rows, patients=patients, resamples=resamples)
        unit = "rows" if patients is None else "patients"
        out.append(Test(what, *names, f"bootstrap over {unit}, paired", *found))
    if first.kind == "classification":
        right = [each.scores.argmax(1) == each.truth for each in (first, second)]
        change = Estimate(float(right[0].mean() - right[1].mean())) if first.rows else blank("no rows")
        test = "McNemar" + ("" if patients is None else ", rows taken as independent")
        out.append(Test("accuracy", *names, test, change, mcnemar(*right) if first.rows else math.nan))
    return out


def _group(
    one: Evaluation, attribute: str, group: str, chosen: np.ndarray, name: str, resamples: int, least: int
) -> Row:
    part = one.part(chosen)
    count = len(np.unique(part.patients)) if part.patients is not None else part.rows
    found = 0
    if part.truth is not None and part.kind == "classification":
        found = int((part.truth == 1).sum()) if part.binary else part.rows
    if count < least:
        return Row(attribute, group, part.rows, count, found, blank(f"{count} patients; at least {least} are required"))
    if part.kind == "classification" and part.truth is not None and len(np.unique(part.truth)) == 1:
        why = f"every row is of the class {part.names[int(part.truth[0])]}"
        return Row(attribute, group, part.rows, count, found, blank(why))
    if name == "AUC" and part.truth is not None:
        estimate = auc_interval(part.truth == 1, part.ranks[:, 1], patients=part.patients)
    else:
        estimate = bootstrap_weighted(part.metrics()[name], part.rows, patients=part.patients, resamples=resamples)
    return Row(attribute, group, part.rows, count, found, estimate)


def _group_name(value: object) -> str:
    name = str(value).strip()
    return name if name and name.lower() != "nan" and value is not None else "unknown"


def of_classes(one: Evaluation) -> dict[str, Weighted]:
    truth, scores, ranks = one.truth, one.scores, one.ranks
    assert truth is not None
    called, k = scores.argmax(1), len(one.names)
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


def of_labels(one: Evaluation) -> dict[str, Weighted]:
    questions = positives(one)
    truth = one.truth
    assert truth is not None
    wrong = np.where(np.isnan(truth), np.nan, (one.scores >= 0.5) != (truth > 0.5))
    squares = np.where(np.isnan(truth), np.nan, (one.scores - truth) ** 2)
    return {
        name: lambda w, f=f: weighted.nanmean(np.stack([f(t, s, w[:, rows]) for _, rows, t, s in questions]))
        for name, f in (("macro AUC", weighted.auc), ("macro AP", weighted.average_precision))
    } | {
        "accuracy": lambda w: 1 - _cells(wrong, w),
        "Brier score": lambda w: _cells(squares, w),
    }


def of_values(one: Evaluation) -> dict[str, Weighted]:
    truth, scores = one.truth, one.scores
    assert truth is not None
    columns = range(len(one.names))

    def over(f: Callable[..., np.ndarray]) -> Weighted:
        return lambda w: weighted.nanmean(np.stack([f(truth[:, c], scores[:, c], w) for c in columns]))

    found = {"R2": over(weighted.r2), "Pearson r": over(weighted.pearson)}
    return found | {"MAE": over(lambda t, s, w: weighted.mean(np.abs(t - s), w))}


def of_measures(one: Evaluation) -> dict[str, Weighted]:
    return {name: partial(weighted.mean, one.scores[:, k]) for k, name in enumerate(one.names)}


def targets(one: Evaluation, resamples: int) -> list[tuple[str, int, dict[str, Estimate]]]:
    """(name, rows, R2, Pearson, MAE) of each target of a regression, with intervals."""
    out = []
    for k, name in enumerate(one.names):
        assert one.truth is not None
        out.append((name, int(np.isfinite(one.truth[:, k]).sum()), headline(one.column(k), resamples)))
    return out


def over_draws(result: FewShotResult, draws: np.ndarray, resamples: int = 200) -> Estimate:
    """Macro AUC of few-shot probabilities, mean over the chosen `draws`, with an interval over the test set's patients."""
    labels, found = result.labels, result.probabilities
    if labels is None or found is None:
        return blank("the evaluation kept no probabilities")

    def metric(weights: np.ndarray) -> np.ndarray:
        areas = [weighted.nanmean(weighted.class_aucs(labels, p, weights)) for p in found[draws]]
        return weighted.nanmean(np.stack(areas))

    return bootstrap_weighted(metric, len(labels), patients=result.patient, resamples=resamples)


def _cells(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over labelled cells of [N K]."""
    known = np.isfinite(values)
    total = weights @ known.sum(1).astype(np.float64)
    part = weights @ np.where(known, values, 0).sum(1)
    return np.divide(part, total, out=np.full(len(weights), np.nan), where=total > 0)


def _shares(truth: np.ndarray, called: np.ndarray) -> dict[str, Estimate]:
    def share(hits: int, of: int, why: str) -> Estimate:
        return Estimate(hits / of) if of else blank(why)

    hits, wanted, predicted = int((truth & called).sum()), int(truth.sum()), int(called.sum())
    return {
        "sensitivity": share(hits, wanted, "no such row"),
        "specificity": share(int((~truth & ~called).sum()), len(truth) - wanted, "no other row"),
        "precision": share(hits, predicted, "never predicted"),
        "F1": share(2 * hits, wanted + predicted, "no such row") if wanted else blank("no such row"),
    }
