"""Metrics under row weights: those of scikit-learn with rows repeated, and the bootstrap that uses them."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score, recall_score, roc_auc_score

from fundax.metrics import weighted
from fundax.metrics.statistics import auc, bootstrap, bootstrap_weighted, weighted_difference


def test_weights_are_repeated_rows():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(3, size=40), rng.integers(6, size=(40, 3)) / 5  # many ties
    weights = rng.integers(4, size=(2, 40)).astype(float)
    truth, predicted = rng.normal(size=40), rng.normal(size=40)
    truth[3] = np.nan
    for r, w in enumerate(weights):
        rows = np.repeat(np.arange(40), w.astype(int))
        for k in range(3):
            positive = labels == k
            expected = roc_auc_score(positive[rows], scores[rows, k])
            assert weighted.class_aucs(labels, scores, weights)[k, r] == pytest.approx(expected)
            expected = average_precision_score(positive[rows], scores[rows, k])
            assert weighted.average_precision(positive, scores[:, k], weights)[r] == pytest.approx(expected)
        called = scores.argmax(1)
        recalls = recall_score(labels[rows], called[rows], average=None, labels=[0, 1, 2])
        np.testing.assert_allclose(weighted.recalls(labels, called, 3, weights)[:, r], recalls)
        known = rows[rows != 3]
        assert weighted.r2(truth, predicted, weights)[r] == pytest.approx(r2_score(truth[known], predicted[known]))
        correlation = np.corrcoef(truth[known], predicted[known])[0, 1]
        assert weighted.pearson(truth, predicted, weights)[r] == pytest.approx(correlation)
        assert weighted.mean(truth, weights)[r] == pytest.approx(truth[known].mean())


def test_nothing_to_measure_is_nan():
    nothing = np.zeros((1, 4))
    assert np.isnan(weighted.auc(np.ones(4, bool), np.arange(4.0), np.ones((1, 4))))[0]
    assert np.isnan(weighted.average_precision(np.zeros(4, bool), np.arange(4.0), np.ones((1, 4))))[0]
    assert np.isnan(weighted.mean(np.arange(4.0), nothing))[0]
    assert np.isnan(weighted.r2(np.ones(4), np.arange(4.0), np.ones((1, 4))))[0]
    assert np.isnan(weighted.nanmean(np.full((2, 1), np.nan)))[0]


def test_the_weighted_bootstrap_is_the_bootstrap():
    """The same distribution drawn another way: intervals agree within Monte-Carlo error."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 2)
    labels = rng.integers(2, size=80).astype(bool)
    scores = labels + rng.normal(size=80)
    slow = bootstrap(auc, labels, scores, patients=patients, resamples=400)

    def metric(w):
        return weighted.auc(labels, scores, w)

    quick = bootstrap_weighted(metric, 80, patients=patients, resamples=4000)
    assert quick.value == pytest.approx(slow.value)
    assert quick.low == pytest.approx(slow.low, abs=0.02)
    assert quick.high == pytest.approx(slow.high, abs=0.02)
    found = weighted_difference(
        metric, lambda w: weighted.auc(labels, -scores, w), 80, patients=patients, resamples=200
    )
    assert found.difference.value == pytest.approx(2 * slow.value - 1)
    assert found.p == pytest.approx(2 / 201)
    assert bootstrap_weighted(metric, 80, patients=np.zeros(80)).note == "one patient: no interval"
    assert bootstrap_weighted(lambda w: w[:, 0] * np.nan, 5).note == "not defined on these rows"
