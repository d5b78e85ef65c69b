"""Intervals and tests against slow direct forms, published examples, and a simulation of their coverage."""

import math
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fundax.metrics import statistics, weighted
from fundax.metrics.statistics import Estimate, blank
from fundax.types import UserError


def drawn(n, seed=0, shift=1.0, rounded=True):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    scores = rng.normal(size=(2, n)) + shift * labels * np.array([[1.0], [0.6]])
    return labels, np.round(scores, 1) if rounded else scores


def direct(labels, scores):
    """DeLong by its definition: every positive against every negative, ties a half; areas and covariance."""
    positive, negative = scores[:, labels], scores[:, ~labels]
    below = (positive[:, :, None] > negative[:, None]) + 0.5 * (positive[:, :, None] == negative[:, None])
    area, rows, columns = below.mean((1, 2)), below.mean(2), below.mean(1)
    return area, np.cov(rows) / rows.shape[1] + np.cov(columns) / columns.shape[1]


def test_delong_equals_its_definition():
    labels, scores = drawn(41)
    area, covariance = direct(labels, scores)
    ours = statistics._areas(labels, scores, None)
    np.testing.assert_allclose(ours[0], area, atol=1e-12)
    np.testing.assert_allclose(ours[1], covariance, atol=1e-12)
    assert area[0] == pytest.approx(roc_auc_score(labels, scores[0]), abs=1e-12)
    estimate = statistics.auc_interval(labels, scores[0])
    half = 1.959963984540054 * math.sqrt(covariance[0, 0])
    assert (estimate.value, estimate.low) == (pytest.approx(area[0]), pytest.approx(area[0] - half, abs=1e-9))
    compared = statistics.auc_test(labels, *scores)
    z = (area[0] - area[1]) / math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert compared.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-9)
    assert compared.difference.value == pytest.approx(area[0] - area[1])


# 43 patients with ovarian cancer: albumin, total protein, K-G score, 1 where surgery helped (DeLong et al. 1988, as
# printed in the SAS/STAT user's guide, LOGISTIC, "Comparing Receiver Operating Characteristic Curves")
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1"""


def test_delong_on_delongs_patients():
    """Areas, 95 % limits and contrasts as that guide prints them, to its four decimals."""
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    labels, tests = table[:, 3], {"albumin": table[:, 0], "protein": table[:, 1], "k-g": 10 - table[:, 2]}
    printed = {
        "albumin": (0.7366, 0.5549, 0.9182),
        "protein": (0.6478, 0.4518, 0.8439),
        "k-g": (0.7258, 0.5243, 0.9273),
    }
    for name, expected in printed.items():
        found = statistics.auc_interval(labels, tests[name])
        assert (found.value, found.low, found.high) == pytest.approx(expected, abs=5e-5)
    for name, p, difference in (("albumin", 0.9102, 0.0108), ("protein", 0.4561, -0.0780)):
        compared = statistics.auc_test(labels, tests[name], tests["k-g"])
        assert (compared.p, compared.difference.value) == pytest.approx((p, difference), abs=5e-5)


def test_eyes_of_a_patient_are_not_independent():
    """Every row twice under one patient: the variance of the single rows, up to Obuchowski's n / (n - 1)."""
    labels, scores = drawn(60)
    one_epoch = statistics._areas(labels, scores, None)[1]
    twice, patients = np.repeat(labels, 2), np.repeat(np.arange(60), 2)
    clustered = statistics._areas(twice, np.repeat(scores, 2, axis=1), patients)[1]
    np.testing.assert_allclose(clustered, one_epoch, rtol=1e-12)
    naive = statistics._areas(twice, np.repeat(scores, 2, axis=1), None)[1]
    assert naive[0, 0] < 0.55 * one_epoch[0, 0]


def test_obuchowski_by_its_definition():
    """Patients with one diseased and one healthy eye: the cross term counts."""
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(30), 2)
    labels = np.tile([True, False], 30)
    scores = (rng.normal(size=60) + labels + np.repeat(rng.normal(size=30), 2))[None]
    area, covariance = statistics._areas(labels, scores, patients)
    positive, negative = scores[0, ::2], scores[0, 1::2]
    x = (positive[:, None] > negative).mean(1) - area[0]
    y = (positive[:, None] > negative).mean(0) - area[0]
    expected = 30 / 29 * ((x**2).sum() + (y**2).sum() + 2 * (x * y).sum()) / 30**2
    np.testing.assert_allclose(covariance[0, 0], expected, rtol=1e-12)


def test_the_bootstrap_equals_a_slow_one_and_delong():
    labels, scores = drawn(240, rounded=False)
    patients = np.repeat(np.arange(120), 2)
    fast = statistics.bootstrap(roc_auc_score, labels, scores[0], patients=patients, resamples=200, seed=3)
    rng, values = np.random.default_rng(3), []
    for _ in range(200):
        rows = [r for k in rng.integers(120, size=120) for r in np.flatnonzero(patients == k)]
        values.append(roc_auc_score(labels[rows], scores[0][rows]))
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)
    near = statistics.bootstrap(roc_auc_score, labels, scores[0], resamples=800)
    exact = statistics.auc_interval(labels, scores[0])
    assert near.low == pytest.approx(exact.low, abs=0.012)  # Monte-Carlo error
    assert near.high == pytest.approx(exact.high, abs=0.012)


def test_paired_bootstrap_agrees_with_delong():
    labels, scores = drawn(300, shift=1.2, rounded=False)
    first, second = (partial(weighted.auc, np.asarray(labels) == 1, one) for one in scores)
    ours = statistics.weighted_difference(first, second, len(labels), resamples=600)
    exact = statistics.auc_test(labels, *scores)
    assert ours.difference.value == pytest.approx(exact.difference.value)
    assert ours.difference.low == pytest.approx(exact.difference.low, abs=0.02)
    assert ours.p == pytest.approx(exact.p, abs=0.03)
    same = statistics.weighted_difference(first, first, len(labels), resamples=50)
    assert (same.difference.value, same.p) == (0.0, 1.0)


def test_coverage():
    """95 % intervals hold the truth in 93 to 97 % of 1,000 samples (2,000 patients: benchmarks/coverage.py)."""
    rng, truth, held = np.random.default_rng(0), 0.5 * math.erfc(-1 / 2), 0  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    labels = np.arange(200) < 60
    for _ in range(1000):
        estimate = statistics.auc_interval(labels, rng.normal(size=200) + labels)
        held += estimate.low <= truth <= estimate.high
    assert 930 <= held <= 970


def test_mcnemar_of_agresti():
    """Agresti 2002, Categorical Data Analysis, section 10.1.1 (approval in two surveys): z = -4.17."""
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    z = (86 - 150) / math.sqrt(86 + 150)
    assert round(z, 2) == -4.17
    assert statistics.mcnemar(first, second) == pytest.approx(math.erfc(-z / math.sqrt(2)), rel=1e-9)
    few = np.array([True] * 9 + [False])
    assert statistics.mcnemar(few, ~few) == pytest.approx(2 * 11 / 1024)  # 9 against 1
    assert statistics.mcnemar(few, few) == 1
    with pytest.raises(UserError, match="the same rows; got 10 and 3"):
        statistics.mcnemar(few, few[:3])


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.5, math.nan, 0.9]), [1.0, math.nan, 1.0])
    assert statistics.holm([]).shape == (0,)


def test_blanks_say_why():
    ones, scores = np.ones(5, int), np.linspace(0, 1, 5)
    assert statistics.auc_interval(ones, scores) == blank_like("every row is positive: nothing to rank against")
    assert statistics.auc_interval(1 - ones, scores) == blank_like("every row is negative: nothing to rank against")
    assert statistics.auc_interval([], []) == blank_like("no rows")
    assert statistics.auc_interval([0, 1], [0.0, math.nan]) == blank_like("a score is not finite")
    assert statistics.bootstrap(lambda a: math.nan, ones) == blank_like("not defined on these rows")
    lone = statistics.auc_interval([0, 0, 1], [0.1, 0.5, 0.3])
    assert (lone.value, lone.note) == (0.5, "one patient in a class: no interval")
    assert math.isnan(lone.low)
    apart = statistics.auc_interval([0, 0, 1, 1], [0, 1, 2, 3])
    assert apart.value == 1
    assert "no interval" in apart.note
    assert statistics.auc_test(ones, scores, scores).difference.note.startswith("every row is positive")
    alike = statistics.auc_test([0, 0, 1, 1], [1, 2, 3, 0], [1, 2, 3, 0])
    assert (alike.difference.value, alike.p) == (0, 1)
    one = statistics.bootstrap(np.mean, scores, patients=["p"] * 5)
    assert (one.value, one.note) == (0.5, "one patient: no interval")
    rare = statistics.bootstrap(share_of_first, np.array([1, *[0] * 9]), resamples=100)
    assert math.isnan(rare.low) or "resamples" in rare.note
    assert statistics.bootstrap(share_of_first, np.zeros(4)) == blank_like("nobody there")
    assert str(statistics.auc_interval(ones, scores)) == "– (every row is positive: nothing to rank against)"
    assert str(Estimate(0.9123, 0.88, 0.94)) == "0.912 (0.880 to 0.940)"
    with pytest.raises(UserError, match="expected 0 and 1"):
        statistics.auc_interval([0, 2], [0.0, 1.0])
    with pytest.raises(UserError, match="2 labels and"):
        statistics.auc_interval([0, 1], [0.0, 1.0, 2.0])


def share_of_first(rows):
    if not rows.any():
        raise ValueError("nobody there")
    return rows.mean()


class blank_like:
    """Equal to a blank of this reason (NaN is not equal to itself)."""

    def __init__(self, note):
        self.note = note

    def __eq__(self, other):
        return not other.defined and math.isnan(other.low) and other.note == self.note == blank(self.note).note

    __hash__ = None
