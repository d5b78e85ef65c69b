"""The original implementations' metrics: FLAIR's and KeepFIT's classification metrics, VisionFM's kappa and distances."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fundax.metrics.classification import best_threshold, classification, kappa_f1, quadratic_kappa

PER_CLASS = {
    "acc_class": "recall",
    "auc_class": "auc",
    "f1_class": "f1",
    "sensitivity_class": "recall",
    "specificity_class": "specificity",
}


@pytest.fixture(scope="module")
def table(golden):
    def read(original, name):
        with np.load(golden / original / name) as file:
            return dict(file)

    return read


CASES = [("flair", "metrics.npz", ""), ("flair", "metrics.npz", "bin_"), ("keepfit", "metrics_amd.npz", "")]


@pytest.mark.parametrize(
    ("original", "name", "prefix"), [pytest.param(*case, marks=pytest.mark.vectors(case[0])) for case in CASES]
)
def test_classification_metrics(table, original, name, prefix):
    """The original implementations round to three decimals, and average the rounded numbers of classes."""
    arrays = table(original, name)
    ours = classification(arrays[f"{prefix}refs"], arrays[f"{prefix}preds"])
    for theirs, key in PER_CLASS.items():
        np.testing.assert_array_equal(np.round(ours[key], 3), arrays[f"{prefix}m_{theirs}"], err_msg=theirs)
    np.testing.assert_array_equal(ours["confusion"], arrays[f"{prefix}m_cm"])
    shares = ours["confusion"] / ours["confusion"].sum(1, keepdims=True)
    np.testing.assert_allclose(shares, arrays[f"{prefix}m_cm_norm"], atol=1e-12)
    assert round(ours["balanced_accuracy"], 3) == arrays[f"{prefix}m_aca"]
    assert round(ours["kappa"], 3) == arrays[f"{prefix}m_kappa"]
    for theirs, key in (("f1_avg", "f1"), ("auc_avg", "auc"), ("specificity_avg", "specificity")):
        assert np.round(ours[key], 3).mean() == pytest.approx(arrays[f"{prefix}m_{theirs}"], abs=1e-12), theirs


@pytest.mark.vectors("keepfit")
def test_keepfits_own_metrics_of_amd_and_taop(table):
    arrays = table("keepfit", "metrics_amd.npz")
    labels, scores = arrays["refs"], arrays["preds"][:, 1]
    kappa, f1 = kappa_f1(labels, scores >= best_threshold(labels, scores))
    assert kappa == pytest.approx(arrays["m_AMD_kappa"], abs=1e-12)
    assert f1 == pytest.approx(arrays["m_AMD_f1"], abs=1e-12)
    assert roc_auc_score(labels, scores) == pytest.approx(arrays["m_AMD_auc"], abs=1e-12)
    assert classification(labels, arrays["preds"])["accuracy"] == pytest.approx(arrays["m_TAOP_acc"], abs=1e-12)


@pytest.mark.vectors("visionfm")
def test_visionfms_metrics(table):
    arrays = table("visionfm", "metrics.npz")
    assert quadratic_kappa(arrays["confusion"]) == pytest.approx(arrays["quadratic_weighted_kappa"], abs=1e-12)
    positive = arrays["binary2multi_in"]
    np.testing.assert_array_equal(np.stack([1 - positive, positive], axis=1), arrays["binary2multi_out"])
    # coordinates are stored as all x, then all y
    out, target = (arrays[f"mae_dist_{side}"].reshape(len(arrays["mae_dist_out"]), 2, -1) for side in ("out", "target"))
    np.testing.assert_allclose(np.linalg.norm(out - target, axis=1).mean(), arrays["mae_dist"], rtol=1e-6)
