"""Classification numbers by hand, and blanks for classes that are not there."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from fundax.metrics.classification import best_threshold, classification, quadratic_kappa
from fundax.types import UserError


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 4, 90), rng.random((90, 4))
    ours, guess = classification(labels, scores), scores.argmax(1)
    np.testing.assert_allclose(ours["recall"], recall_score(labels, guess, average=None))
    np.testing.assert_allclose(ours["precision"], precision_score(labels, guess, average=None))
    np.testing.assert_allclose(ours["f1"], f1_score(labels, guess, average=None))
    assert ours["kappa"] == pytest.approx(cohen_kappa_score(labels, guess, weights="quadratic"))


def test_absent_and_only_classes_are_blanks():
    ours = classification([0, 0, 1], [[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.1, 0.8]])
    assert np.isnan([ours[key][2] for key in ("recall", "f1", "auc", "ap")]).all()
    assert ours["note"].tolist() == ["", "", "absent from the evaluation set"]
    assert (ours["recall"][1], ours["f1"][1]) == (0, 0)
    assert ours["balanced_accuracy"] == 0.5
    assert ours["specificity"][2] == pytest.approx(2 / 3)
    only = classification([1, 1], [[0.2, 0.8], [0.6, 0.4]])
    assert (only["note"][1], only["recall"][1]) == ("the only class of the evaluation set", 0.5)
    assert np.isnan(only["macro_auc"])
    nothing = classification(np.zeros(0, int), np.zeros((0, 3)))
    assert np.isnan([nothing["accuracy"], nothing["kappa"], nothing["macro_f1"]]).all()
    assert np.isnan(quadratic_kappa(np.array([[4, 0], [0, 0]])))
    assert np.isnan(best_threshold([1, 1], [0.1, 0.2]))


def test_bad_rows_are_named():
    with pytest.raises(UserError, match="row 1: label 2; expected 0 to 1"):
        classification([0, 2], np.eye(2))
    with pytest.raises(UserError, match="row 1: a score is not finite"):
        classification([0, 1], [[0.5, 0.5], [np.nan, 0.5]])
    with pytest.raises(UserError, match=r"expected \[N\], \[N K\], K"):
        classification([0, 1], [0.5, 0.5])
