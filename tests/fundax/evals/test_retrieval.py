"""Retrieval on a 4x4 matrix made by hand, and against a plain sort."""

import numpy as np
import pytest

from fundax.evals.retrieval import clip_loss, retrieval
from fundax.metrics import ranking as module
from fundax.metrics.ranking import ranks, summary
from fundax.types import UserError

# similarity[i, j] of image i and text j. Positions of the diagonal by row: 0, 1, 0, 3; by column: 0, 2, 1, 3.
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.8, 0.4],
        [0.2, 0.5, 0.1, 0.6],
        [0.3, 0.6, 0.7, 0.2],
        [0.5, 0.7, 0.4, 0.1],
    ],
    np.float32,
)
OWN = np.arange(4)


def forward(params, extra, batch):
    rows = batch["image"][:, 0, 0, 0].astype(int)
    return {
        "image_features": SIMILARITY[rows],
        "text_features": np.eye(4, dtype=np.float32)[batch["text"][:, 0]],
        "logit_scale": np.float32(1.0),
    }


def data(size, text=OWN, **more):
    def one_epoch():
        for at in range(0, 4, size):
            rows = np.minimum(np.arange(at, at + size), 3)
            batch = {
                "image": np.zeros((size, 1, 1, 3)) + rows[:, None, None, None],
                "text": np.asarray(text)[rows][:, None],
                "valid": np.arange(at, at + size) < 4,
            }
            yield batch | {key: value[rows] for key, value in more.items()}

    return one_epoch


def test_ranks_and_recall_by_hand():
    result = retrieval(data(4), ks=(1, 2))(forward, {}, {})
    np.testing.assert_array_equal(result["image_to_text_rank"], [1, 2, 1, 4])
    np.testing.assert_array_equal(result["text_to_image_rank"], [1, 3, 2, 4])
    assert result["image_to_text_R@1"] == 0.5
    assert result["image_to_text_R@2"] == 0.75
    assert result["image_to_text_mean_rank"] == 2.0
    assert result["image_to_text_median_rank"] == 1.0  # floor(.5) + 1
    assert result["text_to_image_R@1"] == 0.25
    assert result["text_to_image_mean_rank"] == 2.5
    assert result["text_to_image_median_rank"] == 2.0  # floor(1.5) + 1
    assert result["samples"] == 4


def test_same_text_is_right_for_each_of_its_images():
    # Images 1 and 3 share a meaning. Image 3 finds text 1 (.7) first, image 1 finds text 3 (.6) first.
    category = {"category": np.array([7, 8, 9, 8])}
    result = retrieval(data(4, **category))(forward, {}, {})
    np.testing.assert_array_equal(result["image_to_text_rank"], [1, 1, 1, 1])
    np.testing.assert_array_equal(result["text_to_image_rank"], [1, 1, 2, 1])
    strict = retrieval(data(4, **category), parity=True)(forward, {}, {})
    np.testing.assert_array_equal(strict["image_to_text_rank"], [1, 2, 1, 4])


def test_same_token_ids_are_the_same_text():
    # Texts 0 and 2 are one and the same: their similarities are equal too, and neither is in the other's way.
    result = retrieval(data(4, text=[0, 1, 0, 3]))(forward, {}, {})
    np.testing.assert_array_equal(result["image_to_text_rank"], [1, 2, 2, 4])  # image 2: .6 of text 1 is before .3
    strict = retrieval(data(4, text=[0, 1, 0, 3]), parity=True)(forward, {}, {})
    assert strict["image_to_text_mean_rank"] >= result["image_to_text_mean_rank"]


def test_collapsed_features_earn_nothing():
    same = np.ones((6, 3), np.float32)
    np.testing.assert_array_equal(ranks(same, same, np.arange(6)), 5)
    np.testing.assert_array_equal(ranks(same, same, np.arange(6), parity=True), np.arange(6))


def test_against_a_plain_sort_whatever_the_chunk(monkeypatch):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 50, 8)).astype(np.float32)
    groups = np.arange(50) // 3
    order = np.argsort(-(image @ text.T), axis=1, kind="stable")
    own = (order == np.arange(50)[:, None]).argmax(axis=1)
    first = (groups[order] == groups[:, None]).argmax(axis=1)
    for size in (64 << 20, 4 * 50 * 7, 1):
        monkeypatch.setattr(module, "CHUNK_BYTES", size)
        np.testing.assert_array_equal(ranks(image, text, groups, parity=True), own)
        np.testing.assert_array_equal(ranks(image, text, np.arange(50)), own)
        np.testing.assert_array_equal(ranks(image, text, groups), first)


def test_summary_by_hand():
    assert summary(np.array([0, 0, 4, 9, 30]), (1, 5, 10)) == {
        "mean_rank": 9.6,
        "median_rank": 5.0,
        "R@1": 0.4,
        "R@5": 0.6,
        "R@10": 0.8,
    }


def test_clip_loss_by_hand():
    # Two pairs, scale 2, similarities [[1, 0], [.5, .5]]: rows -2+log(e^2+1), log 2; columns -2+log(e^2+e), -1+log(1+e).
    image = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    text = np.eye(2, dtype=np.float32)
    rows = np.log(np.exp(2) + 1) - 2 + np.log(2)
    columns = np.log(np.exp(2) + np.e) - 2 + np.log(1 + np.e) - 1
    assert clip_loss(image, text, 2.0) == pytest.approx((rows + columns) / 4, rel=1e-12)
    assert clip_loss(image, text, 2.0) == pytest.approx((0.126928 + 0.693147 + 2 * 0.313262) / 4, abs=1e-6)


def test_loss_is_the_mean_over_rows_of_batches_without_padding():
    result = retrieval(data(3))(forward, {}, {})  # batches of 3 and 1 valid rows; one pair alone has loss 0
    first = clip_loss(SIMILARITY[:3], np.eye(4)[:3], 1.0)
    assert result["clip_loss"] == pytest.approx(first * 3 / 4, rel=1e-9)
    np.testing.assert_array_equal(result["image_to_text_rank"], [1, 2, 1, 4])


def test_bad_input_is_named():
    def broken(params, extra, batch):
        out = forward(params, extra, batch)
        return out | {"text_features": np.where(OWN[:, None] == 2, np.nan, out["text_features"])}

    with pytest.raises(UserError, match="text_features of rows 2 are not finite"):
        retrieval(data(4))(broken, {}, {})
    with pytest.raises(UserError, match="no rows"):
        retrieval(lambda: iter([]))(forward, {}, {})
