"""Results of several folds as one, by numbers one can check by hand."""

import numpy as np
import pytest

from fundax.evals.kinds import LandmarkResult, RegressionResult, Rows, SegmentationResult
from fundax.results.pooling import pooled
from fundax.types import UserError


def masks(dice, patient, classes=("vessel",)):
    table = {name: np.array(dice) for name in ("dice", "iou", "sensitivity", "specificity", "hd95")}
    return SegmentationResult(
        metrics={}, classes=np.array(classes), rows=Rows(patient=np.array(patient), index=np.arange(len(dice))), **table
    )


def landmarks(error, patient):
    error = np.array(error)
    return LandmarkResult(
        metrics={}, names=np.array(["fovea", "disc"]), error=error, error_diameters=np.full(error.shape, np.nan),
        found=np.zeros((*error.shape, 2)), truth=np.zeros((*error.shape, 2)), rows=Rows(patient=np.array(patient)),
    )  # fmt: skip


def test_masks_of_two_folds():
    """Mean Dice of 0.5, 0.7 and 0.9; patient 0 of one fold is not patient 0 of the other."""
    found = pooled([masks([[0.5], [0.7]], [0, 0]), masks([[0.9]], [0])])
    assert found.metrics["mean_dice"] == pytest.approx(0.7) and found.metrics["empty"] == 0
    assert [found.metrics[f"mean_dice_{end}"] for end in ("low", "high")] == pytest.approx([0.6, 0.9])
    assert found.rows.patient.tolist() == [0, 0, 1] and found.rows.index is None and found.cases is None
    assert found.dice.tolist() == [[0.5], [0.7], [0.9]]


def test_landmarks_of_two_folds():
    """Medians of 1, 2, 3 and of 4, 5, 9; the 95th percentile lies 0.9 of the way from the second to the third."""
    found = pooled([landmarks([[1.0, 4.0], [2.0, 5.0]], [0, 1]), landmarks([[3.0, 9.0]], [0])])
    assert found.metrics["fovea_median_error"] == 2 and found.metrics["disc_median_error"] == 5
    assert [found.metrics[f"{name}_error_95"] for name in ("fovea", "disc")] == pytest.approx([2.9, 8.6])
    assert found.metrics["mean_error"] == pytest.approx(4.0) and found.error.shape == (3, 2)


def test_what_cannot_be_pooled():
    with pytest.raises(UserError, match="different kinds or classes"):
        pooled([masks([[0.5]], [0]), masks([[0.5]], [0], ("disc",))])
    with pytest.raises(UserError, match="different kinds or classes"):
        pooled([masks([[0.5]], [0]), landmarks([[1.0, 2.0]], [0])])
    one = RegressionResult(metrics={}, value=np.zeros((1, 1)), predicted=np.zeros((1, 1)), names=np.array(["age"]))
    with pytest.raises(UserError, match="of the kind regression cannot be pooled; expected classification"):
        pooled([one, one])
