"""Results say what they are: what is written to a file comes back as the same kind, with the same arrays and metrics."""

import numpy as np
import pytest

from fundax.evals.kinds import (
    KINDS,
    ByClass,
    Cases,
    ClassificationResult,
    FewShotResult,
    Horizons,
    LandmarkResult,
    MultiLabelResult,
    ReconstructionResult,
    RegressionResult,
    ReportResult,
    RetrievalResult,
    Rows,
    Scores,
    SegmentationResult,
    named,
    read,
)
from fundax.types import UserError

ONE, TWO = np.ones(2), np.ones((2, 2))
NAMES, PICTURES = np.array(["a", "b"]), np.zeros((1, 4, 4, 3), np.uint8)
ROWS = Rows(index=np.arange(2), patient=np.array([3, 3]), sex=np.array(["f", "m"]))
CASES = Cases(pictures=PICTURES, picture_row=np.array([1]), picture_score=np.array([0.5]))
METRICS = {"score": 0.75}
HORIZONS = Horizons(from_=np.array([1.0]), to=np.array([9.0]), rows=np.array([2]))
CLASSES = {"labels": np.arange(2), "probabilities": TWO / 2, "classes": NAMES, "ranked_by": "logits", "logits": TWO}
EVERY = [
    Scores(metrics=METRICS, other={"margin": ONE}),
    ClassificationResult(
        metrics=METRICS, **CLASSES, rows=ROWS, cases=CASES, by_class=ByClass(auc=ONE), horizons=HORIZONS
    ),
    MultiLabelResult(metrics=METRICS, **CLASSES),
    RegressionResult(metrics=METRICS, value=TWO, predicted=TWO, names=NAMES),
    SegmentationResult(metrics=METRICS, dice=TWO, classes=NAMES, rows=ROWS, cases=CASES),
    LandmarkResult(metrics=METRICS, error=TWO, names=NAMES),
    RetrievalResult(metrics=METRICS, image_to_text_rank=ONE, text_to_image_rank=ONE),
    FewShotResult(metrics=METRICS, method=NAMES, shots=ONE, balanced_accuracy=ONE, macro_auc=ONE),
    ReportResult(metrics=METRICS, image=PICTURES, written=NAMES, true=NAMES),
    ReconstructionResult(metrics=METRICS, pictures=PICTURES, reconstruction=PICTURES),
]


@pytest.mark.parametrize("result", EVERY, ids=lambda result: result.kind)
def test_a_result_comes_back_from_its_file(result, tmp_path):
    np.savez(tmp_path / "one.npz", **result.arrays())
    with np.load(tmp_path / "one.npz", allow_pickle=False) as stored:
        again = read({key: stored[key] for key in stored})
    assert type(again) is type(result) and again.metrics == METRICS
    assert again.arrays().keys() == result.arrays().keys()
    for key, value in result.arrays().items():
        np.testing.assert_array_equal(again.arrays()[key], value, err_msg=key)


def test_every_kind_is_tested():
    assert {result.kind for result in EVERY} == set(KINDS)


def test_a_result_is_a_mapping_of_metrics_and_arrays():
    result = EVERY[1]
    assert result["score"] == 0.75 and result["patient"].tolist() == [3, 3] and result["band_from"][0] == 1
    assert {"kind", "score", "labels", "auc", "pictures"} <= set(result) and "index" in result
    np.testing.assert_array_equal(result.ranks, TWO)
    assert EVERY[0].arrays()["margin"] is ONE
    assert named("auc", ["a", "b"], np.array([0.5, np.nan])) == {"auc/a": 0.5}


def test_an_unknown_kind_and_missing_arrays_are_named():
    with pytest.raises(UserError, match="kind of the evaluation is gaze; expected one of scores, classification"):
        read({"kind": np.array("gaze")})
    with pytest.raises(UserError, match="kind of the evaluation is missing"):
        read({"labels": ONE})
    with pytest.raises(UserError, match=r"kind segmentation has kind, iou; expected dice, classes"):
        read({"kind": np.array("segmentation"), "iou": ONE})


def test_a_name_is_a_metric_or_an_array():
    with pytest.raises(ValueError, match="dice are names of both metrics and arrays"):
        SegmentationResult(metrics={"dice": 1.0}, dice=TWO, classes=NAMES)
