"""Frechet distances by hand, and against scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fundax.metrics.generative import frechet
from fundax.types import UserError


def test_by_hand():
    # means 0 and 3, variances 2 and 8: 9 + 2 + 8 - 2 sqrt(16) = 11
    np.testing.assert_allclose(frechet(np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])), 11.0, rtol=1e-12)


def test_against_the_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((60, 4)) + 0.5
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * sqrtm(one @ two).real)
    np.testing.assert_allclose(frechet(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet(a, a), 0, atol=1e-9)


def test_fewer_images_than_features_and_mistakes():
    rng = np.random.default_rng(0)
    assert 0 < frechet(rng.standard_normal((5, 8)), rng.standard_normal((5, 8))) < 100
    with pytest.raises(UserError, match="at least two"):
        frechet(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(UserError, match="expected"):
        frechet(np.zeros((3, 2)), np.zeros((3, 4)))
