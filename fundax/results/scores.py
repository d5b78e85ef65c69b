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

LEAST = 10  # minimum number of patients for the metric of a subgroup


class Test(NamedTuple):
    """A paired test between two runs: the difference of a metric (first minus second), p, and p adjusted by Holm."""

    what: str
    first: str
    second: str
    test: str
    difference: Estimate
    p: float
    adjusted: float = math.nan


def positives(evaluation: Evaluation) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, known rows bool [N], truth bool [n], ranks f64 [n]) of each class against the rest, or of each label.

    Binary evaluations have a single entry, for the second class.
    """
    if evaluation.truth is None or evaluation.kind not in ("classification", "multi_label"):
        return []
    out = []
    for k in [1] if evaluation.binary else range(len(evaluation.names)):
        truth = evaluation.truth == k if evaluation.kind == "classification" else evaluation.truth[:, k]
        known = np.isfinite(truth.astype(np.float64))
        out.append((evaluation.names[k], known, truth[known] > 0.5, evaluation.ranks[known, k]))
    return out


def headline(evaluation: Evaluation, resamples: int) -> dict[str, Estimate]:
    """The metrics with intervals, by DeLong for the AUC of two classes and by a bootstrap over patients for the others.

    ECE has no interval.
    """
    out = {}
    for name, metric in evaluation.metrics().items():
        if name == "AUC" and evaluation.truth is not None:
            truth, scores = evaluation.truth == 1, evaluation.ranks[:, 1]
            out[name] = auc_interval(truth, scores, patients=evaluation.patients)
        else:
            out[name] = bootstrap_weighted(metric, evaluation.rows, patients=evaluation.patients, resamples=resamples)
    if evaluation.kind == "classification":
        out["ECE"] = calibration_error(
            evaluation.truth, evaluation.scores[:, 1] if evaluation.binary else evaluation.scores
        )
    return out


def by_class(evaluation: Evaluation) -> list[tuple[str, int, dict[str, Estimate], str]]:
    """(name, number of positives, metrics, reason why the AUC is undefined) of each class.

    The metrics are AUC with DeLong's interval, AP, sensitivity, specificity, precision and F1.
    """
    out = []
    for k, (name, known, truth, scores) in enumerate(positives(evaluation)):
        patients = None if evaluation.patients is None else evaluation.patients[known]
        area = auc_interval(truth, scores, patients=patients)
        called = (
            scores >= 0.5
            if evaluation.kind == "multi_label"
            else evaluation.scores.argmax(1) == (1 if evaluation.binary else k)
        )
        metrics = {"AUC": area} | _shares(truth, called)
        precision = weighted.average_precision(truth, scores, np.ones((1, len(truth))))[0] if area.defined else math.nan
        metrics["AP"] = Estimate(float(precision), note="" if area.defined else area.note)
        out.append((name, int(truth.sum()), metrics, "" if area.defined else area.note))
    return out


def operating(
    evaluation: Evaluation, chosen_on: Evaluation | None
) -> list[tuple[str, OperatingPoint, dict[str, Estimate]]]:
    """Operating points of each class: 90 % specificity, 90 % sensitivity and, with two classes, the best kappa + F1.

    Thresholds are chosen on `chosen_on` (validation data), or on the same rows if it is None. They are blank, with the
    reason, if `chosen_on` has another step or preprocessing.
    """
    if chosen_on is not None and (why := apart(chosen_on.about, evaluation.about)):
        return [(name, OperatingPoint(math.nan, "", why), {}) for name, *_ in positives(evaluation)]
    out = []
    source = positives(chosen_on if chosen_on is not None else evaluation)
    for (name, _, truth, scores), (_, _, truth_0, scores_0) in zip(positives(evaluation), source, strict=True):
        for choose in (at_specificity, at_sensitivity, *((at_kappa_f1,) if evaluation.binary else ())):
            point = choose(truth_0, scores_0) if len(truth_0) else OperatingPoint(math.nan, "", "no rows")
            out.append((name, point, apply(point, truth, scores) if len(truth) else {}))
    return out


def probability_scores(evaluation: Evaluation) -> dict[str, Estimate]:
    """Brier score and ECE of the probabilities, or of each label."""
    if evaluation.kind == "classification":
        scores = evaluation.scores[:, 1] if evaluation.binary else evaluation.scores
        return {"Brier score": brier(evaluation.truth, scores), "ECE": calibration_error(evaluation.truth, scores)}
    return {
        f"{metric}, {name}": f(truth.astype(int), scores)
        for name, _, truth, scores in positives(evaluation)
        for metric, f in (("Brier score", brier), ("ECE", calibration_error))
    }


def main_metric(evaluation: Evaluation) -> str:
    """The metric by which subgroups and runs are compared."""
    return next(iter(evaluation.metrics()))


def subgroups(evaluation: Evaluation, resamples: int) -> tuple[str, list[Row], dict[str, Estimate]]:
    """The name of the main metric, its value in each subgroup with an interval, and the gaps between subgroups."""
    name = main_metric(evaluation)
    table = [_group(evaluation, "all", "all", np.ones(evaluation.rows, bool), name, resamples, 0)]
    masks: dict[tuple[str, str], np.ndarray] = {}
    for attribute, column in evaluation.columns.items():
        bands = np.array([*map(_group_name, age_bands(column) if attribute == "age" else column)])
        for group in sorted(set(bands), key=lambda g: (g == "unknown", not g.startswith("under"), g)):
            masks[attribute, group] = bands == group
            table.append(_group(evaluation, attribute, group, bands == group, name, resamples, LEAST))
    return (
        name,
        table,
        {attribute: _gap(evaluation, attribute, gap, masks, name, resamples) for attribute, gap in gaps(table).items()},
    )


def _gap(
    evaluation: Evaluation,
    attribute: str,
    gap: Gap,
    masks: Mapping[tuple[str, str], np.ndarray],
    name: str,
    resamples: int,
) -> Estimate:
    """The gap between the best and the worst group, with a bootstrap interval over patients."""
    if not gap.estimate.defined:
        return gap.estimate
    rows = [masks[attribute, group] for group in (gap.best, gap.worst)]
    metrics = [evaluation.part(chosen).metrics()[name] for chosen in rows]

    def metric(weights: np.ndarray) -> np.ndarray:
        return metrics[0](weights[:, rows[0]]) - metrics[1](weights[:, rows[1]])

    drawn = bootstrap_weighted(metric, evaluation.rows, patients=evaluation.patients, resamples=resamples)
    return replace(drawn, note=f"{gap.best} minus {gap.worst}")


def comparable(first: Evaluation, second: Evaluation) -> str:
    """The reason why two evaluations cannot be paired row by row; "" if they can."""
    if first.kind != second.kind or first.names != second.names:
        return f"{first.run} and {second.run} have different classes or names"
    data = [each.about.digest for each in (first, second)]
    if all(data) and data[0] != data[1]:
        return (
            f"{first.run} and {second.run} were evaluated on different data ({first.about.text()}; "
            f"{second.about.text()})"
        )
    if first.rows != second.rows:
        return f"{first.run} has {first.rows} rows, {second.run} {second.rows}"
    for name, a, b in (("truth", first.truth, second.truth), ("rows", first.index, second.index)):
        if a is not None and b is not None and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{first.run} and {second.run} have different rows (their {name} differ)"
    return ""


def compare(group: Sequence[Evaluation], resamples: int) -> tuple[list[Test], list[str]]:
    """Paired tests of all pairs of runs on the same rows with Holm's correction, and the reasons why pairs are omitted."""
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
        comparison = auc_test(first.truth == 1, first.ranks[:, 1], second.ranks[:, 1], patients=patients)
        out.append(Test("AUC", *names, "DeLong, paired", *comparison))
    else:
        metric = main_metric(first)
        pair = first.metrics()[metric], second.metrics()[metric]
        comparison: Comparison = weighted_difference(*pair, first.rows, patients=patients, resamples=resamples)
        unit = "rows" if patients is None else "patients"
        out.append(Test(metric, *names, f"bootstrap over {unit}, paired", *comparison))
    if first.kind == "classification":
        right = [each.scores.argmax(1) == each.truth for each in (first, second)]
        change = Estimate(float(right[0].mean() - right[1].mean())) if first.rows else blank("no rows")
        test = "McNemar" + ("" if patients is None else ", rows treated as independent")
        out.append(Test("accuracy", *names, test, change, mcnemar(*right) if first.rows else math.nan))
    return out


def _group(
    evaluation: Evaluation, attribute: str, group: str, chosen: np.ndarray, name: str, resamples: int, least: int
) -> Row:
    part = evaluation.part(chosen)
    count = len(np.unique(part.patients)) if part.patients is not None else part.rows
    cases = 0  # positives
    if part.truth is not None and part.kind == "classification":
        cases = int((part.truth == 1).sum()) if part.binary else part.rows
    if count < least:
        return Row(attribute, group, part.rows, count, cases, blank(f"{count} patients; at least {least} are required"))
    if part.kind == "classification" and part.truth is not None and len(np.unique(part.truth)) == 1:
        why = f"all rows have the class {part.names[int(part.truth[0])]}"
        return Row(attribute, group, part.rows, count, cases, blank(why))
    if name == "AUC" and part.truth is not None:
        estimate = auc_interval(part.truth == 1, part.ranks[:, 1], patients=part.patients)
    else:
        estimate = bootstrap_weighted(part.metrics()[name], part.rows, patients=part.patients, resamples=resamples)
    return Row(attribute, group, part.rows, count, cases, estimate)


def _group_name(value: object) -> str:
    name = str(value).strip()
    return name if name and name.lower() != "nan" and value is not None else "unknown"


def of_classes(evaluation: Evaluation) -> dict[str, Weighted]:
    truth, scores, ranks = evaluation.truth, evaluation.scores, evaluation.ranks
    assert truth is not None
    called, k = scores.argmax(1), len(evaluation.names)
    squares = ((scores - np.eye(k)[truth]) ** 2).sum(1) / (2 if k == 2 else 1)
    both = {
        "accuracy": partial(weighted.mean, (called == truth).astype(float)),
        "balanced accuracy": lambda w: weighted.nanmean(weighted.recalls(truth, called, k, w)),
        "Brier score": partial(weighted.mean, squares),
    }
    if k == 2:
        ranked: dict[str, Weighted] = {
            "AUC": partial(weighted.auc, truth == 1, ranks[:, 1]),
            "AP": partial(weighted.average_precision, truth == 1, ranks[:, 1]),
        }
        return ranked | both
    return {
        "macro AUC": lambda w: weighted.nanmean(weighted.class_aucs(truth, ranks, w)),
        "macro AP": lambda w: weighted.nanmean(
            np.stack([weighted.average_precision(truth == c, ranks[:, c], w) for c in range(k)])
        ),
    } | both


def of_labels(evaluation: Evaluation) -> dict[str, Weighted]:
    labels = positives(evaluation)
    truth = evaluation.truth
    assert truth is not None
    wrong = np.where(np.isnan(truth), np.nan, (evaluation.scores >= 0.5) != (truth > 0.5))
    squares = np.where(np.isnan(truth), np.nan, (evaluation.scores - truth) ** 2)
    return {
        name: lambda w, f=f: weighted.nanmean(np.stack([f(t, s, w[:, rows]) for _, rows, t, s in labels]))
        for name, f in (("macro AUC", weighted.auc), ("macro AP", weighted.average_precision))
    } | {
        "accuracy": lambda w: 1 - _cells(wrong, w),
        "Brier score": lambda w: _cells(squares, w),
    }


def of_values(evaluation: Evaluation) -> dict[str, Weighted]:
    truth, scores = evaluation.truth, evaluation.scores
    assert truth is not None
    columns = range(len(evaluation.names))

    def over(f: Callable[..., np.ndarray]) -> Weighted:
        return lambda w: weighted.nanmean(np.stack([f(truth[:, c], scores[:, c], w) for c in columns]))

    mae = over(lambda t, s, w: weighted.mean(np.abs(t - s), w))
    return {"R2": over(weighted.r2), "Pearson r": over(weighted.pearson), "MAE": mae}


def of_measures(evaluation: Evaluation) -> dict[str, Weighted]:
    return {name: partial(weighted.mean, evaluation.scores[:, k]) for k, name in enumerate(evaluation.names)}


def targets(evaluation: Evaluation, resamples: int) -> list[tuple[str, int, dict[str, Estimate]]]:
    """(name, number of known rows, metrics with intervals) of each target of a regression."""
    out = []
    for k, name in enumerate(evaluation.names):
        assert evaluation.truth is not None
        out.append((name, int(np.isfinite(evaluation.truth[:, k]).sum()), headline(evaluation.column(k), resamples)))
    return out


def over_draws(result: FewShotResult, draws: np.ndarray, resamples: int = 200) -> Estimate:
    """Macro AUC of few-shot probabilities, averaged over `draws`, with an interval over the patients of the test set."""
    labels, probabilities = result.labels, result.probabilities
    if labels is None or probabilities is None:
        return blank("the evaluation did not store probabilities")

    def metric(weights: np.ndarray) -> np.ndarray:
        areas = [weighted.nanmean(weighted.class_aucs(labels, p, weights)) for p in probabilities[draws]]
        return weighted.nanmean(np.stack(areas))

    return bootstrap_weighted(metric, len(labels), patients=result.patient, resamples=resamples)


def _cells(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the labelled entries of [N K]."""
    known = np.isfinite(values)
    total = weights @ known.sum(1).astype(np.float64)
    part = weights @ np.where(known, values, 0).sum(1)
    return np.divide(part, total, out=np.full(len(weights), np.nan), where=total > 0)


def _shares(truth: np.ndarray, called: np.ndarray) -> dict[str, Estimate]:
    def share(hits: int, total: int, why: str) -> Estimate:
        return Estimate(hits / total) if total else blank(why)

    hits, wanted, predicted = int((truth & called).sum()), int(truth.sum()), int(called.sum())
    return {
        "sensitivity": share(hits, wanted, "no such row"),
        "specificity": share(int((~truth & ~called).sum()), len(truth) - wanted, "no other row"),
        "precision": share(hits, predicted, "never predicted"),
        "F1": share(2 * hits, wanted + predicted, "no such row") if wanted else blank("no such row"),
    }
