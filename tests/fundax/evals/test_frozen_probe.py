"""Probes of frozen features: areas by hand, folds that keep patients whole, an interval that knows a real gain."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fundax.evals.probe import FrozenProbe, difference, summary
from fundax.metrics.weighted import class_aucs
from fundax.types import UserError

RNG = np.random.default_rng(0)


class Rows:
    """Features that hold the label (or not), two images of each patient."""

    def __init__(self, n=40, signal=2.0):
        self.label = np.repeat(np.arange(n // 2) % 2, 2).astype(np.int32)
        self.group = np.repeat(np.arange(n // 2), 2).astype(np.int32)
        self.features = RNG.normal(size=(n, 3)).astype(np.float32)
        self.features[:, 0] += signal * self.label

    def __call__(self):
        for i in range(0, len(self.label), 16):
            rows = slice(i, i + 16)
            valid = np.ones(len(self.label[rows]), bool)
            yield {"image": self.features[rows], "label": self.label[rows], "group": self.group[rows], "valid": valid}


def forward(params, extra, batch):
    return {"features": batch["image"]}


def test_areas_by_hand_and_by_scikit_learn():
    labels, scores = np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.5, 0.5]])
    # class 1: of the pairs (1 or 2 against 0 or 3): 3 right, one tie
    np.testing.assert_allclose(class_aucs(labels, scores, np.ones((1, 4)))[:, 0], [3.5 / 4, 3.5 / 4])
    labels, scores = RNG.integers(0, 3, 50), RNG.normal(size=(50, 3)).round(1)
    weights = RNG.integers(0, 3, (2, 50))
    ours = class_aucs(labels, scores, weights)
    for r in range(2):
        rows = np.repeat(np.arange(50), weights[r])
        theirs = [roc_auc_score(labels[rows] == k, scores[rows, k]) for k in range(3)]
        np.testing.assert_allclose(ours[:, r], theirs)


def test_a_probe_of_good_and_of_empty_features():
    good = FrozenProbe(data=Rows(), classes=("a", "b"))(forward, {}, {})
    assert good["macro_auc"] > 0.8 and good["labels_used"] == 2
    assert good["logits"].shape == (40, 2)
    none = FrozenProbe(data=Rows(signal=0.0), classes=("a", "b"))(forward, {}, {})
    assert none["macro_auc"] < 0.75


def test_patients_stay_whole():
    probe, rows = FrozenProbe(data=Rows(), classes=("a", "b")), Rows()
    for fit, held in probe._folds(rows.label, rows.group):
        assert not set(rows.group[fit]) & set(rows.group[held])


def test_the_interval_tells_a_gain_from_none():
    rows, noise = Rows(200, 3.0), RNG.normal(size=(200, 2))
    good = np.stack([-rows.features[:, 0], rows.features[:, 0]], 1)
    gain = difference(rows.label, rows.group, noise, good, draws=200)
    assert gain["low"] > 0.2 and gain["low"] < gain["second"] - gain["first"] < gain["high"]
    same = difference(rows.label, rows.group, good, good, draws=50)
    assert same["low"] == same["high"] == 0
    assert "| x | 200 |" in summary([("x", gain, 200)])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="expected the feature 'pooled'"):
        FrozenProbe(data=Rows(), classes=("a", "b"), feature="pooled")(forward, {}, {})
    with pytest.raises(UserError, match="5 folds need at least as many patients, got 2"):
        FrozenProbe(data=Rows(4), classes=("a", "b"))(forward, {}, {})
