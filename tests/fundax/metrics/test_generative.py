"""Nearest neighbours of made-up images, by hand."""

import numpy as np
import pytest

from fundax.metrics.generative import draw_pairs, memorised, nearest
from fundax.types import UserError

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)


def batches(images):
    for at in range(0, len(images), 2):
        yield np.arange(at, min(at + 2, len(images))), images[at : at + 2]


def test_nearest_finds_the_image_its_mirror_and_the_distance():
    off = TRAIN[3].astype(int)
    off += np.where(off > 128, -3, 3)  # three grey levels everywhere
    images = np.stack([TRAIN[1], TRAIN[4][:, ::-1], off.astype(np.uint8)])
    found = nearest(images, batches(TRAIN))
    np.testing.assert_array_equal(found.index, [1, 4, 3])
    np.testing.assert_allclose(found.distance, [0, 0, 3], atol=0.05)
    np.testing.assert_array_equal(found.image[1], images[1])


def test_memorised_by_hand():
    result = memorised(np.array([1.0, 5, 9, 10]), np.linspace(6, 16, 101))
    assert result["copies"] == 1 and result["below_unseen"] == 0.5  # the first percentile is 6.1
    assert result["median_samples"] == 7 and result["closest_unseen"] == 6


def test_the_picture(tmp_path):
    path = draw_pairs(TRAIN, nearest(TRAIN[::-1], batches(TRAIN)), np.linspace(1, 20, 6), tmp_path / "pairs.png", 3)
    assert path.stat().st_size > 5000


def test_mistakes():
    with pytest.raises(UserError, match="compared with"):
        nearest(TRAIN, [(np.arange(1), np.zeros((1, 2, 2, 3), np.uint8))])
    with pytest.raises(UserError, match="no images"):
        nearest(TRAIN, [])
