"""Calibration by hand, thresholds by hand, and subgroups."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from fundax.metrics import calibration, operating_points, subgroups
from fundax.metrics.statistics import Estimate, blank
from fundax.types import UserError


def test_reliability_and_error_by_hand():
    labels, probabilities = [0, 1, 1, 0], [0.1, 0.2, 0.9, 0.8]
    curve = calibration.reliability(labels, probabilities, bins=2)
    np.testing.assert_allclose(curve["confidence"], [0.15, 0.85])
    np.testing.assert_allclose(curve["observed"], [0.5, 0.5])
    assert curve["count"].tolist() == [2, 2]
    assert calibration.calibration_error(labels, probabilities, bins=2).value == pytest.approx(0.35)
    assert calibration.calibration_error([1, 0], [[0.0, 1.0], [0.6, 0.4]], bins=10).value == pytest.approx(0.2)
    empty = calibration.reliability([], np.zeros((0, 3)), bins=3)
    assert np.isnan(empty["observed"]).all()
    assert calibration.calibration_error([], []).note == "no rows"
    quantiles = calibration.reliability([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], bins=4, equal_counts=True)
    assert quantiles["count"].sum() == 4


def test_brier_is_scikit_learns():
    rng = np.random.default_rng(0)
    p, y = rng.random(50), rng.integers(0, 2, 50)
    assert calibration.brier(y, p).value == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    assert calibration.brier([0, 2], [[1, 0, 0], [0.5, 0.5, 0]]).value == pytest.approx((0 + 1.5) / 2)
    assert calibration.brier([], []).note == "no rows"


def test_temperature_is_found():
    """Labels drawn from softmax(z / 3): the temperature that fits best is 3, within the error of 4,000 rows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4)) * 6
    odds = np.exp(logits / 3)
    labels = (rng.random((4000, 1)) > np.cumsum(odds / odds.sum(1, keepdims=True), 1)).sum(1).clip(0, 3)
    assert calibration.temperature(logits, labels) == pytest.approx(3, rel=0.1)
    binary = calibration.temperature(logits[:, 0], rng.random(4000) < 1 / (1 + np.exp(-logits[:, 0] / 2)))
    assert binary == pytest.approx(2, rel=0.15)
    assert math.isnan(calibration.temperature(logits[:5], np.zeros(5, int)))


def test_bad_probabilities_are_named():
    with pytest.raises(UserError, match=r"row 1: 1\.5 is not a probability"):
        calibration.brier([0, 1], [0.5, 1.5])
    with pytest.raises(UserError, match="labels from 0 to 5; expected 0 to 2"):
        calibration.brier([0, 5], np.full((2, 3), 1 / 3))


def test_operating_points_by_hand(tmp_path):
    labels = np.array([0] * 10 + [1] * 5)
    scores = np.array([*range(10), 4, 8, 8.5, 9.5, 12])
    point = operating_points.at_specificity(labels, scores, 0.9)
    assert point.threshold == 8.5  # nine of the ten healthy ones lie below, and no lower score leaves as many
    found = operating_points.apply(point, labels, scores)
    assert found["specificity"].value == pytest.approx(0.9)
    assert found["sensitivity"].value == pytest.approx(0.6)
    sensitive = operating_points.at_sensitivity(labels, scores, 0.8)
    assert sensitive.threshold == 8
    assert operating_points.apply(sensitive, labels, scores)["sensitivity"].value == pytest.approx(0.8)
    none = operating_points.at_specificity(np.zeros(4, int), np.arange(4.0))
    assert (math.isnan(none.threshold), none.note) == (True, "no positive row to choose a threshold on")
    assert operating_points.apply(none, labels, scores)["ppv"].note == none.note
    above_all = operating_points.at_specificity([0, 1], [1.0, 0.0], 1.0)
    assert operating_points.apply(above_all, [0, 1], [1.0, 0.0])["ppv"].note == "no row is predicted positive"
    best = operating_points.at_kappa_f1([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9])
    assert (best.threshold, best.chosen_for) == (0.5, "kappa + F1")  # kappa 1/2, F1 4/5; at 0.9 it is 1/2 and 2/3
    assert operating_points.at_kappa_f1([1, 1], [0.1, 0.2]).note == "a class is absent"
    points = {"glaucoma": point, "absent": none}
    operating_points.write(points, tmp_path / "points.json")
    again = operating_points.read(tmp_path / "points.json")
    assert again["glaucoma"] == point
    assert json.loads((tmp_path / "points.json").read_text())["absent"]["threshold"] is None
    with pytest.raises(UserError, match="expected operating points"):
        operating_points.read(tmp_path / "no.json")


def test_exact_intervals_of_shares():
    """Clopper & Pearson: 0 of 10 is at most 0.3085."""
    point = operating_points.OperatingPoint(0.5, "given")
    found = operating_points.apply(point, np.ones(10, int), np.zeros(10))
    assert found["sensitivity"].high == pytest.approx(0.3084971, abs=1e-6)
    assert found["specificity"].note == "no negative row"


def test_gaps_between_known_groups():
    def row(attribute, group, estimate):
        return subgroups.Row(attribute, group, 9, 9, 3, estimate)

    rows = [
        row("all", "all", Estimate(0.7)),
        row("sex", "f", Estimate(0.9)), row("sex", "m", Estimate(0.6)), row("sex", "unknown", Estimate(0.1)),
        row("device", "a", Estimate(0.8)), row("device", "b", blank("1 patients; at least 10 are required")),
    ]  # fmt: skip
    found = subgroups.gaps(rows)
    assert found["sex"].estimate.value == pytest.approx(0.3) and found["sex"][1:] == ("f", "m")
    device = found["device"].estimate
    assert not device.defined and "fewer than two groups" in device.note
    assert set(found) == {"sex", "device"}


def test_age_bands():
    assert subgroups.age_bands([12, 40, 54.9, 55, 70, math.nan]) == [
        *("under 40", "40-54", "40-54", "55-69", "70 and over", ""),
    ]


def test_the_gap_of_equal_groups_is_between_two_groups():
    rows = [subgroups.Row("sex", group, 9, 9, 3, Estimate(1.0)) for group in ("f", "m")]
    gap = subgroups.gaps(rows)["sex"]
    assert gap.estimate.value == 0 and {gap.best, gap.worst} == {"f", "m"}
