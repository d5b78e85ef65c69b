"""Confidence intervals and tests: AUC by DeLong, any metric by a bootstrap over patients, McNemar, Holm.

Undefined cases (an absent class, a single patient, a sample that is too small) return an empty estimate with a reason
instead of raising."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fundax.types import UserError

Metric = Callable[..., float]
Weighted = Callable[[np.ndarray], np.ndarray]  # weights f64 [R N] -> values f64 [R]
_NOTHING = 1e-18  # variances below this are rounding errors


class Comparison(NamedTuple):
    """The difference of two models (first minus second) and the two-sided p-value of no difference.

    If the test is undefined, p is NaN and the note of the difference says why.
    """

    difference: Estimate
    p: float


def auc_interval(labels: Any, scores: Any, *, patients: Any = None, level: float = 0.95) -> Estimate:
    """Area under the ROC curve with its DeLong interval, clipped to [0, 1].

    Args:
        labels: bool or 0/1 [N].
        scores: f32 [N].
        patients: identifiers [N]; rows of a patient (for example two eyes) are then treated as dependent.
        level: confidence level.

    Returns:
        The estimate; blank if a class is absent or a score is not finite.

    Sources: DeLong et al. 1988, Biometrics 44:837; for clusters Obuchowski 1997, Biometrics 53:567.
    """
    labels, scores = check_binary(labels, scores)
    if reason := _no_auc(labels, scores):
        return blank(reason)
    area, covariance = _areas(labels, scores, patients)
    return _normal(float(area[0]), float(covariance[0, 0]), level, low=0.0, high=1.0)


def auc_test(labels: Any, first: Any, second: Any, *, patients: Any = None, level: float = 0.95) -> Comparison:
    """DeLong's paired test of the AUCs of two models, given their scores [N] for the same rows. See `auc_interval`.

    If both models rank all rows in the same order, the difference is 0 and p is 1.
    """
    labels, scores = check_binary(labels, first, second)
    if reason := _no_auc(labels, scores):
        return Comparison(blank(reason), math.nan)
    area, covariance = _areas(labels, scores, patients)
    contrast = np.array([1.0, -1.0])
    return _two_sided(float(area @ contrast), float(contrast @ covariance @ contrast), level)


def auc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve; NaN if a class is absent. Equal to scikit-learn's roc_auc_score, but faster."""
    labels, scores = check_binary(labels, scores)
    return math.nan if _no_auc(labels, scores) else float(_areas(labels, scores, None)[0][0])


def _areas(labels: np.ndarray, scores: np.ndarray, patients: Any) -> tuple[np.ndarray, np.ndarray]:
    """AUC f64 [M] of scores [M N] and their covariance [M M] (NaN if a class has a single patient).

    The placements (structural components) come from midranks in O(N log N): Sun & Xu 2014, IEEE SPL 21:1389.
    """
    from scipy.stats import rankdata

    positive, negative = scores[:, labels], scores[:, ~labels]
    m, n = positive.shape[1], negative.shape[1]
    overall = rankdata(scores, axis=1)
    of_positive = (overall[:, labels] - rankdata(positive, axis=1)) / n  # share of negatives below each positive
    of_negative = 1 - (overall[:, ~labels] - rankdata(negative, axis=1)) / m  # share of positives above each negative
    area = of_positive.mean(1)
    groups = np.arange(len(labels)) if patients is None else np.unique(patients, return_inverse=True)[1]
    parts = [
        _sums(of_positive - area[:, None], groups[labels], groups.max() + 1),
        _sums(of_negative - area[:, None], groups[~labels], groups.max() + 1),
    ]
    counts = [len(np.unique(groups[labels])), len(np.unique(groups[~labels])), len(np.unique(groups))]
    if min(counts[:2]) < 2:
        return area, np.full((len(area), len(area)), np.nan)
    grow = [c / (c - 1) for c in counts]
    x, y = parts
    covariance = grow[0] * x @ x.T / m**2 + grow[1] * y @ y.T / n**2 + grow[2] * (x @ y.T + y @ x.T) / (m * n)
    return area, covariance


def _sums(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sums of the columns of values [M n] by group, [M count]."""
    return np.stack([np.bincount(groups, row, minlength=count) for row in values])


def bootstrap(
    metric: Metric,
    *arrays: Any,
    patients: Any = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`metric(*arrays)` with a percentile bootstrap interval over patients.

    Resamples in which the metric raises an error or is NaN (for example because a class is absent) are ignored; the note
    gives the number of valid resamples.

    Args:
        metric: maps the arrays to a float.
        *arrays: [N ...] each, resampled together.
        patients: identifiers [N]; rows of a patient are drawn together. None draws every row independently.
        resamples: number of resamples.
        level: confidence level.
        seed: random seed.

    Returns:
        The estimate; blank if the metric is undefined on the data, and without an interval for fewer than two patients.

    Source: Efron & Tibshirani 1993, chapter 13 (percentile), with patients as the unit (Davison & Hinkley 1997, 3.8).
    """
    data, members = _data(arrays, patients)
    value = _tried(metric, data)
    if isinstance(value, str):
        return blank(value)
    if len(members.counts) < 2:
        return Estimate(value, note="one patient: no interval")
    drawn = _resampled(metric, data, members, resamples, seed)
    return _percentiles(value, drawn, resamples, level)


def bootstrap_weighted(
    metric: Weighted,
    rows: int,
    *,
    patients: Any = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`bootstrap` for a metric of row weights (see fundax/metrics/weighted.py), which computes many resamples at once.

    `metric` maps weights f64 [R N] to values f64 [R], NaN where undefined. The other arguments are those of `bootstrap`.
    """
    value, drawn, count = _drawn(metric, rows, patients, resamples, seed)
    if math.isnan(value):
        return blank("no rows" if not rows else "not defined on these rows")
    if count < 2:
        return Estimate(value, note="one patient: no interval")
    return _percentiles(value, drawn[~np.isnan(drawn)], resamples, level)


def weighted_difference(
    first: Weighted,
    second: Weighted,
    rows: int,
    *,
    patients: Any = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The difference first(weights) - second(weights) of two metrics on the same resampled patients, and its p-value.

    p is twice the smaller fraction of resamples above or below 0, and at least 1 / (resamples + 1). See `bootstrap`.
    """
    value, drawn, count = _drawn(lambda w: first(w) - second(w), rows, patients, resamples, seed)
    if math.isnan(value):
        return Comparison(blank("no rows" if not rows else "not defined on these rows"), math.nan)
    if count < 2:
        return Comparison(Estimate(value, note="one patient: no interval"), math.nan)
    drawn = drawn[~np.isnan(drawn)]
    return Comparison(_percentiles(value, drawn, resamples, level), _smaller_side(drawn))


def _drawn(metric: Weighted, rows: int, patients: Any, resamples: int, seed: int) -> tuple[float, np.ndarray, int]:
    """The metric on all rows, on every resample, and the number of patients."""
    if not rows:
        return math.nan, np.zeros(0), 0
    groups = np.arange(rows) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    if len(groups) != rows:
        raise UserError(f"{rows} rows and {len(groups)} patients; expected one each")
    count, rng = int(groups.max()) + 1, np.random.default_rng(seed)
    value = float(metric(np.ones((1, rows)))[0])
    at_once, values = max(1, 2_000_000 // rows), []
    for start in range(0, resamples if count > 1 else 0, at_once):
        size = min(at_once, resamples - start)
        taken = rng.multinomial(count, np.full(count, 1 / count), size=size)
        values.append(metric(taken[:, groups].astype(np.float64)))
    return value, np.concatenate(values) if values else np.zeros(0), count


def _smaller_side(drawn: np.ndarray) -> float:
    """The p-value of `weighted_difference`."""
    sides = [(np.sum(drawn <= 0) + 1) / (len(drawn) + 1), (np.sum(drawn >= 0) + 1) / (len(drawn) + 1)]
    return float(min(1.0, 2 * min(sides)))


class _Members(NamedTuple):
    """Rows sorted by patient, with the first position and the number of rows of each patient."""

    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def of(self, patients: np.ndarray) -> np.ndarray:
        """All rows of these patients, in order."""
        counts = self.counts[patients]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.rows[np.repeat(self.starts[patients], counts) + within]


def _data(arrays: Sequence[Any], patients: Any) -> tuple[list[np.ndarray], _Members]:
    data = [np.asarray(a) for a in arrays]
    rows = len(data[0])
    if any(len(a) != rows for a in data) or (patients is not None and len(patients) != rows):
        raise UserError(f"the rows differ: {', '.join(str(len(a)) for a in data)}; expected one length for all")
    groups = np.arange(rows) if patients is None else np.unique(patients, return_inverse=True)[1]
    counts = np.bincount(groups) if rows else np.zeros(0, np.int64)
    return data, _Members(np.argsort(groups, kind="stable"), np.cumsum(counts) - counts, counts)


def _tried(metric: Metric, data: Sequence[np.ndarray]) -> float | str:
    """The value of the metric, or the reason why it is undefined."""
    if not len(data[0]):
        return "no rows"
    try:
        value = float(metric(*data))
    except (ValueError, ZeroDivisionError) as error:
        return str(error).split("\n")[0]
    return "not defined on these rows" if math.isnan(value) else value


def _resampled(metric: Metric, data: Sequence[np.ndarray], members: _Members, resamples: int, seed: int) -> np.ndarray:
    rng, values, count = np.random.default_rng(seed), [], len(members.counts)
    for _ in range(resamples):
        chosen = members.of(rng.integers(count, size=count))
        value = _tried(metric, [a[chosen] for a in data])
        if not isinstance(value, str):
            values.append(value)
    return np.array(values)


def _percentiles(value: float, drawn: np.ndarray, resamples: int, level: float) -> Estimate:
    if len(drawn) < max(2, resamples // 2):
        return Estimate(value, note=f"no interval: defined in {len(drawn)} of {resamples} resamples only")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    note = "" if len(drawn) == resamples else f"defined in {len(drawn)} of {resamples} resamples"
    return Estimate(value, float(low), float(high), note)


def mcnemar(first: Any, second: Any, *, exact: bool | None = None) -> float:
    """P-value of McNemar's test that two models are equally accurate on the same rows.

    Args:
        first, second: bool [N], whether each model is correct. The p-value is 1 if they never differ.
        exact: use the binomial test (True) or chi-squared without continuity correction (False). None uses the binomial
            test if the models differ on fewer than 25 rows.

    Source: McNemar 1947, Psychometrika 12:153.
    """
    from scipy.stats import binomtest, chi2

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise UserError(f"McNemar compares the same rows; got {len(first)} and {len(second)}")
    b, c = int(np.sum(first & ~second)), int(np.sum(~first & second))
    if b + c == 0:
        return 1.0
    if exact or (exact is None and b + c < 25):
        return float(binomtest(b, b + c, 0.5).pvalue)
    return float(chi2.sf((b - c) ** 2 / (b + c), 1))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values f64, in the given order. NaN (an undefined test) stays NaN and is not counted.

    Source: Holm 1979, Scand J Statist 6:65.
    """
    values = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def check_binary(labels: Any, *scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels bool [N] and scores f64 [M N]. Raises UserError for lengths that differ and labels other than 0 and 1."""
    raw = np.asarray(labels)
    if not np.isin(raw, (0, 1)).all():
        raise UserError(f"labels are {np.unique(raw)[:5]}; expected 0 and 1")
    rows = [np.asarray(s, np.float64) for s in scores]
    if any(row.shape != raw.shape for row in rows):
        raise UserError(f"{len(raw)} labels and {', '.join(str(row.shape) for row in rows)} scores; expected as many")
    return raw.astype(bool), np.stack(rows)


def _no_auc(labels: np.ndarray, scores: np.ndarray) -> str:
    """The reason why the AUC is undefined; "" if it is defined."""
    if not len(labels):
        return "no rows"
    if labels.all() or not labels.any():
        return "every row is " + ("positive" if labels[0] else "negative") + ": nothing to rank against"
    return "" if np.isfinite(scores).all() else "a score is not finite"


def _normal(value: float, variance: float, level: float, low: float, high: float) -> Estimate:
    if math.isnan(variance):
        return Estimate(value, note="one patient in a class: no interval")
    if variance <= _NOTHING:
        return Estimate(value, note="the variance is 0 (classes ranked apart, or too few rows): no interval")
    half = _quantile(level) * math.sqrt(variance)
    return Estimate(value, max(value - half, low), min(value + half, high))


def _two_sided(value: float, variance: float, level: float) -> Comparison:
    from scipy.stats import norm

    estimate = _normal(value, variance, level, -1.0, 1.0)
    if variance <= _NOTHING and abs(value) < 1e-12:
        return Comparison(Estimate(0.0, 0.0, 0.0), 1.0)
    if math.isnan(estimate.low):
        return Comparison(estimate, math.nan)
    return Comparison(estimate, float(2 * norm.sf(abs(value) / math.sqrt(variance))))


def _quantile(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2))


@dataclass(frozen=True)
class Estimate:
    """A value with a confidence interval from `low` to `high`; NaN where undefined, with the reason in `note`.

    The note of a defined value is a warning, for example about the number of valid resamples.
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
        """Format as "0.912 (0.880 to 0.941)", or as a dash with the reason in brackets."""
        if not self.defined:
            return f"– ({self.note})" if self.note else "–"
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def blank(note: str) -> Estimate:
    """An undefined estimate with the reason."""
    return Estimate(math.nan, note=note)
