"""Scores of masks on grids small enough to count."""

import math

import numpy as np
import pytest

from fundax.evals.original_grid import UNIT, blend, slide, starts
from fundax.evals.pictures import extremes
from fundax.evals.segmentation import Segmentation, macro
from fundax.metrics.segmentation import hausdorff_95, scores
from fundax.metrics.statistics import bootstrap
from fundax.types import UserError

SAME = np.array([[0, 0], [UNIT, 0], [0, UNIT]], np.float32)


def mask(*rows):
    return np.array([[sign == "#" for sign in row] for row in rows])


def test_scores_by_hand():
    """Truth 3 pixels, found 2, both 1, of 8: Dice 2/5, IoU 1/4, sensitivity 1/3, specificity 4/5."""
    truth, found = mask("##..", "#..."), mask("...#", "#...")
    out = scores(truth, found)
    wanted = {"dice": 2 / 5, "iou": 1 / 4, "sensitivity": 1 / 3, "specificity": 4 / 5}
    assert {k: out[k] for k in wanted} == pytest.approx(wanted)
    inside = mask("##..", "##..")  # the wrong pixel is outside the field of view
    assert scores(truth, found, inside)["dice"] == pytest.approx(2 * 1 / (3 + 1))
    assert scores(truth, found, inside)["specificity"] == 1


def test_hausdorff_by_hand():
    """Two single pixels (3, 4) apart; and two long bars, of which one end sticks out by less than a twentieth."""
    a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    a[1, 1], b[4, 5] = True, True
    assert hausdorff_95(a, b) == 5
    a, b = np.zeros((3, 60), bool), np.zeros((3, 60), bool)
    a[1, 2:42], b[1, 2:43] = True, True
    assert hausdorff_95(a, b) == 0 and hausdorff_95(a, a) == 0
    assert math.isnan(hausdorff_95(a, np.zeros_like(a)))


def test_nothing_to_find_is_a_blank():
    none, some = np.zeros((4, 4), bool), mask("#...", "....", "....", "....")
    out = scores(none, some)
    assert all(math.isnan(out[k]) for k in ("dice", "iou", "sensitivity", "hd95")) and out["specificity"] == 15 / 16
    missed = scores(some, none)
    assert missed["dice"] == missed["sensitivity"] == 0 and math.isnan(missed["hd95"])
    assert macro(np.array([[1.0, math.nan], [0.0, math.nan]])) == 0.5


def test_windows_cover_the_image_and_agree():
    assert starts(10, 4, 0.5) == [0, 2, 4, 6] and starts(3, 4, 0.5) == [0] and starts(8, 4, 0) == [0, 4]
    assert blend(4).min() > 0 and blend(4)[1, 1] == blend(4).max()
    image = np.random.default_rng(0).integers(0, 256, (21, 13, 3)).astype(np.uint8)
    seen = []

    def maps(views):
        seen.append(len(views))
        return views.astype(np.float32)

    np.testing.assert_allclose(slide(maps, image, 8, 0.5, batch=3), image, rtol=1e-5)
    assert set(seen) == {3}
    np.testing.assert_allclose(slide(maps, image, 32, batch=2), image)
    with pytest.raises(UserError, match="overlap by"):
        slide(maps, image, 8, 0.95)


def rows(truth, probability, **more):
    batch = {"image": np.zeros((*truth.shape[:3], 3), np.uint8), "truth": truth, "frame": np.stack([SAME] * len(truth))}
    return batch | more, lambda params, extra, batch: {"probability": probability}


def test_exclusive_classes_and_padding():
    truth = np.array([[[0, 1], [2, 2]], [[1, 1], [0, 0]]])
    likely = np.eye(3, dtype=np.float32)[np.array([[[0, 1], [2, 1]], [[0, 0], [0, 0]]])]
    batch, forward = rows(truth, likely, valid=np.array([True, False]), group=np.array([5, 6]), index=np.array([3, 4]))
    evaluate = Segmentation(data=lambda: iter([batch]), classes=("disc", "cup"), interval=bootstrap, resamples=10)
    out = evaluate(forward, {}, {})
    assert out["mean_dice_disc"] == pytest.approx(2 / 3) and out["mean_dice_cup"] == pytest.approx(2 / 3)
    assert out["mean_dice_with_background"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert (
        out.kind == "segmentation"
        and out["dice"].shape == (1, 2)
        and out["index"].tolist() == [3]
        and out["patient"].tolist() == [5]
    )
    assert out["pictures"].shape == (1, 256, 3 * 256 + 8, 3) and out["pictures"].dtype == np.uint8


def test_overlapping_classes_an_empty_one_and_none_at_all():
    truth = np.zeros((1, 2, 2, 2), np.int32)
    truth[..., 0] = [[1, 0], [0, 0]]
    found = np.zeros((1, 2, 2, 2), np.float32)
    found[0, 0] = 0.9
    batch, forward = rows(truth, found)
    evaluate = Segmentation(data=lambda: iter([batch]), classes=("a", "b"), interval=bootstrap, overlapping=True)
    out = evaluate(forward, {}, {})
    assert out["mean_dice"] == pytest.approx(2 / 3) and out["empty"] == 1 and "mean_dice_b" not in out
    assert extremes(np.array([0.3, np.nan, 0.1])).tolist() == [2, 0]
    batch["truth"][:] = 0
    with pytest.raises(UserError, match="no pixel of a, b in any image"):
        evaluate(forward, {}, {})
