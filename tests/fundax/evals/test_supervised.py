"""Classification and regression evals: numbers by hand, what is not labelled, what is not defined, kept pictures."""

import numpy as np
import pytest

from fundax.evals.supervised import Classified, Valued, regression
from fundax.metrics.classification import multi_label
from fundax.results.finished import draw_run
from fundax.results.page import report
from fundax.types import UserError

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], np.float32))


def forward(params, extra, batch):
    return {"logits": batch["feature"], "value": batch["feature"]}


def passes(*batches):
    return lambda: iter(batches)


def run(one):
    return one(forward, {}, {})


def test_numbers_by_hand():
    one = {"feature": LOGITS, "label": np.array([0, 1, 1, 2], np.int32)}
    found = run(Classified(data=passes(one), classes=("a", "b", "c"), ordered=True))
    assert found["accuracy"] == 0.75 and found["macro_auc"] == pytest.approx(np.mean([1, 1, 1]))
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # confusion [[1 0 0] [1 1 0] [0 0 1]]: weighted sum 1; expected by chance (2*2*1 + 1*1*4 + 2*1*1 ... ) / 4
    expected = np.outer([1, 2, 1], [2, 1, 1]) / 4
    weights = (np.arange(3)[:, None] - np.arange(3)) ** 2
    assert found["kappa"] == pytest.approx(1 - 1 / (weights * expected).sum())
    np.testing.assert_allclose(found["probabilities"], np.exp(LOGITS), rtol=1e-5)
    assert found["labels"].dtype == np.int64 and list(found["index"]) == [0, 1, 2, 3]


def test_unlabelled_padding_and_an_absent_class_are_blanks_with_a_reason():
    one = {
        "feature": LOGITS, "label": np.array([0, 1, -1, 1], np.int32), "valid": np.array([True, True, True, False]),
        "index": np.array([5, 6, 7, 7]), "group": np.array([1, 1, 2, 2], np.int32),
    }  # fmt: skip
    found = run(Classified(data=passes(one), classes=("a", "b", "c")))
    assert found["rows"] == 2 and found["unlabelled"] == 1
    assert list(found["index"]) == [5, 6] and list(found["patient"]) == [1, 1]
    assert "auc/c" not in found and np.isnan(found["auc"][2]) and "absent" in found["note"][2]
    assert "kappa" not in found
    alone = run(Classified(data=passes(one | {"label": np.array([1, 1, 1, 1])}), classes=("a", "b", "c")))
    assert "macro_auc" not in alone and "only class" in alone["note"][1]
    with pytest.raises(UserError, match="no row with a known label"):
        run(Classified(data=passes(one | {"label": np.full(4, -1)}), classes=("a", "b", "c")))


def test_several_labels_with_gaps():
    nan = np.nan
    labels = np.array([[1, 0, nan], [0, 0, nan], [1, nan, nan], [0, 0, nan]], np.float32)
    scores = np.array([[0.9, 0.2, 0.5], [0.6, 0.7, 0.5], [0.4, 0.9, 0.5], [0.1, 0.2, 0.5]], np.float32)
    found = multi_label(labels, scores, ("x", "y", "z"))
    assert found["auc"][0] == pytest.approx(3 / 4) and np.isnan(found["auc"][1:]).all()
    assert found["f1"][0] == pytest.approx(0.5) and found["specificity"][1] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx((2 + 2) / 7) and list(found["labelled"]) == [4, 3, 0]
    assert list(found["note"]) == ["", "every row is not y", "no row is labelled"]
    with pytest.raises(UserError, match=r"row 1: label 2.0 in column 0"):
        multi_label(np.array([[0, 1.0], [2, 0]]), np.zeros((2, 2)))
    logits = np.log(scores / (1 - scores))
    kept = run(Classified(data=passes({"feature": logits, "label": labels}), classes=("x", "y", "z")))
    assert kept["macro_auc"] == pytest.approx(3 / 4) and kept["labels"].dtype == np.float32
    np.testing.assert_allclose(kept["probabilities"], scores, rtol=1e-5)


def test_one_logit_is_the_second_of_two_classes():
    one = {"feature": np.array([[-1.0], [2.0]], np.float32), "label": np.array([0, 1])}
    found = run(Classified(data=passes(one), classes=("no", "yes")))
    assert found["accuracy"] == 1 and found["probabilities"][1, 1] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_a_forecast_is_compared_with_the_days_alone(tmp_path):
    one = {
        "feature": np.log(np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]], np.float32)),
        "label": np.array([0, 1, 0, 1]), "group": np.arange(4),
        "days": np.array([[5, 10], [3, 20], [40, 60], [1, 40]]), "horizon": np.array([10.0, 20.0, 60.0, 40.0]),
    }  # fmt: skip
    found = run(Classified(data=passes(one), classes=("stable", "worse"), bands=2, pictures=0))
    assert found["macro_auc"] == 1 and found["auc_of_days_alone"] == 0.5  # 2 of 4 pairs are in order
    (tmp_path / "evals").mkdir()
    np.savez(tmp_path / "evals" / "test.npz", **found.arrays())
    page = report([tmp_path], tmp_path / "page.html").read_text()
    assert "number of days alone, without an image, has an AUC of 0.500 (" in page


def test_pictures_are_of_the_most_and_least_certain(tmp_path):
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 20, 30, 3), np.uint8)
    one = {"feature": LOGITS, "label": np.array([0, 1, 1, 2], np.int32), "image": images}
    later = {"feature": LOGITS[:1] * 3, "label": np.array([0]), "image": images[:1] + 9}
    found = run(Classified(data=passes(one, later), classes=("a", "b", "c"), pictures=4))
    assert found["pictures"].shape == (4, 96, 96, 3)
    assert list(found["picture_row"]) == [4, 1, 2, 2]
    assert [int(p[0, 0, 0]) for p in found["pictures"]] == [9, 1, 2, 2]


def test_regression_by_hand(tmp_path):
    nan = np.nan
    truth = np.array([[1, 5, nan], [2, 5, nan], [3, 5, nan], [4, nan, nan]], np.float32)
    guess = np.array([[1, 4, 0], [2, 5, 0], [3, 6, 0], [2, 5, 0]], np.float32)
    found = regression(truth, guess)
    assert found["mae"][0] == 0.5 and found["r2"][0] == pytest.approx(1 - 4 / 5)
    assert found["pearson"][0] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2, 3, 2])[0, 1])
    assert found["mae"][1] == pytest.approx(2 / 3) and "same value" in found["note"][1] and "no row" in found["note"][2]
    assert found["relative_error"] == pytest.approx((0.5 / 2.5 + 2 / 3 / 5) / 2)
    kept = run(Valued(data=passes({"feature": guess, "value": truth}), names=("x", "y", "z")))
    assert kept["r2"] == kept["r2/x"] == pytest.approx(0.2) and "r2/y" not in kept
    assert kept["target_r2"].shape == (3,) and list(kept["names"]) == ["x", "y", "z"]
    (tmp_path / "evals").mkdir()
    np.savez(tmp_path / "evals" / "test.npz", **kept.arrays())
    assert [path.name for path in draw_run(tmp_path)] == ["test_scatter.png"]
