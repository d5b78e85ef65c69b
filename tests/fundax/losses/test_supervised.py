"""Losses of labelled data by hand: weights, focal, smoothing, gaps, grades, mixing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import pixels
from fundax.losses import supervised as losses


def jitted(function, *static):
    """Compiled: op by op, tests cost three times as much."""
    return jax.jit(function, static_argnames=static)


cross_entropy = jitted(losses.cross_entropy, "weights", "focal")
binary_cross_entropy = jitted(losses.binary_cross_entropy, "weights", "focal")
graded_loss = jitted(losses.graded_loss, "grades", "weights")
mixup_cutmix = jitted(pixels.mixup_cutmix, "mixup", "cutmix", "chance")

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def test_cross_entropy_weights_focal_smoothing_and_unlabelled_rows():
    targets = losses.class_targets(jnp.array([0, 2, -1]), 3)
    own = -np.log(P[[0, 1], [0, 2]])
    assert float(cross_entropy(LOGITS, targets)) == pytest.approx(own.mean(), rel=1e-5)
    weighed = float(cross_entropy(LOGITS, targets, weights=(1.0, 5.0, 3.0)))
    assert weighed == pytest.approx((own[0] + 3 * own[1]) / 4, rel=1e-5)
    focal = float(cross_entropy(LOGITS, targets, focal=2.0))
    assert focal == pytest.approx((own * (1 - np.exp(-own)) ** 2).mean(), rel=1e-5)
    smooth = losses.class_targets(jnp.array([1]), 3, 0.3)
    np.testing.assert_allclose(smooth, [[0.1, 0.8, 0.1]], rtol=1e-6)
    nothing = cross_entropy(LOGITS, jnp.full((3, 3), jnp.nan))
    assert float(nothing) == 0 and np.isfinite(jax.grad(lambda z: cross_entropy(z, targets))(LOGITS)).all()


def test_binary_cross_entropy_leaves_gaps_out():
    z, y = jnp.array([[1.0, -2.0], [0.0, 3.0]]), jnp.array([[1.0, jnp.nan], [0.0, 1.0]])
    cells = [np.log1p(np.exp(-1.0)), np.log(2), np.log1p(np.exp(-3.0))]
    assert float(binary_cross_entropy(z, y)) == pytest.approx(np.mean(cells), rel=1e-5)
    weighed = float(binary_cross_entropy(z, y, weights=(10.0, 1.0)))
    assert weighed == pytest.approx((10 * cells[0] + cells[1] + cells[2]) / 3, rel=1e-5)
    q = 1 / (1 + np.exp(1.0))
    expected = (cells[0] * q**2 + cells[1] / 4 + cells[2] * (1 / (1 + np.exp(3.0))) ** 2) / 3
    assert float(binary_cross_entropy(z, y, focal=2.0)) == pytest.approx(expected, rel=1e-5)
    grad = jax.grad(lambda z: binary_cross_entropy(z, y))(z)
    assert np.isfinite(grad).all() and grad[0, 1] == 0


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.binary_cross_entropy])
def test_focal_below_one_has_a_gradient_where_an_answer_is_certain(loss):
    logits = jnp.array([[200.0, -200.0], [0.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda z: loss(z, jnp.eye(2), focal=0.5))(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all() and (gradient[1] != 0).all() and (gradient[0] == 0).all()


def test_mixing_nothing_leaves_rows_with_an_unlabelled_partner_alone():
    targets = jnp.array([[1.0, 0.0], [jnp.nan, jnp.nan]])
    off = mixup_cutmix(jax.random.key(3), jnp.zeros((2, 8, 8, 3)), targets, mixup=0.8, chance=0.0)
    np.testing.assert_array_equal(off[1], targets)


def test_smooth_l1():
    found = losses.smooth_l1(jnp.array([[0.5, 3.0, 9.0]]), jnp.array([[0.0, 0.0, jnp.nan]]))
    assert float(found) == pytest.approx((0.125 + 2.5) / 2)


def test_grades_and_findings_together():
    z = jnp.zeros((2, 13)).at[0, 0].set(1.0)
    y = jnp.zeros((2, 13)).at[0, 0].set(1.0)  # the second row has no grade
    graded = -np.log(np.e / (np.e + 4)) / 2
    columns = np.log(2) * (7 + 5)
    assert float(graded_loss(z, y)) == pytest.approx(5 * graded + columns, rel=1e-5)
    y = y.at[1, 6].set(jnp.nan).at[:, 7].set(jnp.nan)  # a gap, and a column nobody labelled
    assert float(graded_loss(z, y)) == pytest.approx(5 * graded + np.log(2) * 11, rel=1e-5)


def test_mixing():
    image = jnp.stack([jnp.zeros((8, 8, 3)), jnp.ones((8, 8, 3))])
    targets = jnp.eye(2)
    same = pixels.mixup_cutmix(jax.random.key(0), image, targets)
    assert same[0] is image and same[1] is targets
    blend, soft = mixup_cutmix(jax.random.key(1), image, targets, mixup=0.8)
    np.testing.assert_allclose(blend[0], soft[0, 1], rtol=1e-6)  # the share of the other image is that of its label
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    cut, soft = mixup_cutmix(jax.random.key(2), image, targets, cutmix=1.0)
    assert set(np.unique(cut)) <= {0.0, 1.0}
    np.testing.assert_allclose(cut[0].mean(), soft[0, 1], atol=1e-6)
    off = mixup_cutmix(jax.random.key(3), image, targets, mixup=0.8, cutmix=1.0, chance=0.0)
    np.testing.assert_array_equal(off[0], image)


def test_class_weights():
    np.testing.assert_allclose(losses.inverse_frequencies(np.array([0, 1, 1, 1, -1]), 3), [2.0, 2 / 3, 0.0], rtol=1e-6)
    several = np.array([[1, 0], [0, 0], [0, np.nan], [0, 0]])
    assert losses.inverse_frequencies(several, 2) == (3.0, 1.0)
