"""Errors of landmarks by hand, in pixels of the original and in disc diameters."""

import numpy as np
import pytest

from fundax.evals.landmarks import Landmarks, distances
from fundax.metrics.statistics import bootstrap
from fundax.types import UserError

NAMES = ("fovea", "disc")
HALF = np.array([[0.0, 0.0], [500.0, 0.0], [0.0, 500.0]], np.float32)  # the seen image is half the original


def eval_of(points, found, **more):
    batch = {
        "image": np.zeros((len(points), 16, 16, 3), np.uint8),
        "points": np.asarray(points, np.float32),
        "frame": np.stack([HALF] * len(points)),
        "index": np.arange(len(points)) + 7,
        "valid": np.ones(len(points), bool),
    } | more
    forward = lambda params, extra, batch: {"points_refined": np.asarray(found, np.float32)}  # noqa: E731
    return Landmarks(data=lambda: iter([batch]), names=NAMES, interval=bootstrap, resamples=20)(forward, {}, {})


def test_errors_by_hand():
    """3, 4, 5 on the model's grid is 10 pixels of an original of twice the size, half a disc of 20 pixels."""
    truth = [[[1, 2], [8, 8]], [[5, 5], [np.nan, np.nan]]]
    found = [[[4, 6], [8, 8]], [[5, 6], [3, 3]]]
    out = eval_of(truth, found, diameter=np.array([20.0, 4.0], np.float32), group=np.array([3, 3]))
    np.testing.assert_allclose(out["error_diameters"][0], [0.5, 0])
    assert (
        "minus_mean_error" not in out
        and out["mean_error_grid"] == pytest.approx((5 + 0 + 1) / 3)
        and out["median_error"] == pytest.approx(2)
    )
    assert out["fovea_median_error"] == pytest.approx(6) and out["disc_median_error"] == 0
    assert out["median_diameters"] == pytest.approx(0.5) and out["within_half"] == 1
    np.testing.assert_array_equal(out["patient"], [3, 3])
    assert out["pictures"].shape[0] == 2 and out["index"][out["picture_row"]].tolist() == [8, 7]
    np.testing.assert_allclose(out["truth"][0], [[2, 4], [16, 16]])


def test_padding_does_not_count_and_blanks_are_left_out():
    out = eval_of([[[1, 1], [1, 1]]] * 2, [[[1, 1], [1, 1]], [[9, 9], [9, 9]]], valid=np.array([True, False]))
    assert out["median_error"] == 0 and "median_diameters" not in out
    with pytest.raises(UserError, match="no image with a known landmark"):
        eval_of(np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)))
    assert np.isnan(distances(np.zeros((1, 2)), np.full((1, 2), np.nan))).all()
