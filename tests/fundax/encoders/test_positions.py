"""Position tables: each original's rule against its own output, and the rules' invariants."""

import jax
import numpy as np
import pytest

from fundax.encoders.positions import aligned_corners, antialiased, cubic, pixel_centres, resize_positions, scaled
from fundax.types import UserError


def test_cubic_by_hand():
    # a = -0.5 at 1/2: (1.5/8) - (2.5/4) + 1 = 0.5625; at 3/2: -0.5 (27/8 - 45/4 + 12 - 4) = -0.0625
    np.testing.assert_allclose(cubic(np.array([0.0, 0.5, -1.5, 2.0]), -0.5), [1, 0.5625, -0.0625, 0])
    np.testing.assert_allclose(cubic(np.array([0.5, 1.5]), -0.75), [0.59375, -0.09375])


@pytest.mark.parametrize("rule", [antialiased, aligned_corners, pixel_centres, scaled])
@pytest.mark.parametrize(("old", "new"), [(4, 7), (8, 5), (14, 27), (5, 1), (1, 3)])
def test_rules_keep_constants(rule, old, new):
    matrix = rule(old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (8, 5), (14, 27)])
def test_antialiased_is_jax_image_resize(old, new):
    table = np.random.default_rng(0).normal(size=(old, 3)).astype(np.float32)
    expected = jax.image.resize(table, (new, 3), "cubic", antialias=True)
    np.testing.assert_allclose(antialiased(old, new) @ table, expected, atol=2e-6)


def test_aligned_corners_keeps_the_corners():
    table = np.random.default_rng(0).normal(size=(17, 3))
    moved = resize_positions(table, 50, aligned_corners)
    np.testing.assert_allclose(moved[[0, 1, 7, 43, 49]], table[[0, 1, 4, 13, 16]], rtol=1e-6)


def test_without_a_class_row_and_of_the_same_size():
    table = np.ones((16, 3), np.float32)
    np.testing.assert_allclose(resize_positions(table, 49, class_row=False), np.ones((49, 3)), rtol=1e-6)
    assert resize_positions(table, 16, class_row=False) is table


def test_a_grid_that_is_no_square_is_named():
    with pytest.raises(UserError, match="15 patches is not a square"):
        resize_positions(np.zeros((16, 3)), 50)


def test_the_two_rules_of_dino_by_hand():
    # 4 -> 2: centres 0.5 and 2.5, half way between two pixels: -0.09375 and 0.59375; beyond the edge falls on it
    np.testing.assert_allclose(pixel_centres(4, 2)[0], [0.5, 0.59375, -0.09375, 0])
    # with 4 / 2.1 the second centre is 1.5 * 4 / 2.1 - 0.5
    at = 1.5 * 4 / 2.1 - 0.5
    expected = cubic(at - np.arange(5.0), -0.75)
    np.testing.assert_allclose(scaled(4, 2)[1], [*expected[:3], expected[3] + expected[4]])
