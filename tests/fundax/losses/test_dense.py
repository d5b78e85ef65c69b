"""Losses of masks and landmarks by numbers one can check on paper (the original's are golden tests)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.losses import dense as dense_losses

# compiled whole: operation by operation is slower by seconds
STATIC = {
    "dice_loss": "exclusive",
    "heat_maps": ("height", "width", "sigma"),
    "one_hot": "outputs",
    "refined_points": "radius",
}


class losses:
    """dense_losses, each compiled."""

    SMOOTH = dense_losses.SMOOTH


for _name in ("focal_loss", "landmark_loss", "expected_points", "peaks", *STATIC):
    setattr(losses, _name, jax.jit(getattr(dense_losses, _name), static_argnames=STATIC.get(_name, ())))


def test_dice_by_hand():
    """Two pixels, probability 1/2 each, one of them the structure: 1 - (2 * 1/2 + s) / (1 + 1 + s)."""
    logits, target = jnp.zeros((1, 1, 2, 1)), jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    s = losses.SMOOTH
    assert float(losses.dice_loss(logits, target, exclusive=False)) == pytest.approx(1 - (1 + s) / (2 + s), abs=1e-6)
    # two exclusive classes at 1/2 each: background 1 - 1/2, structure the same
    both = jnp.concatenate([1 - target, target], -1)
    found = float(losses.dice_loss(jnp.zeros((1, 1, 2, 2)), both, exclusive=True))
    assert found == pytest.approx(1 - (1 + s) / (2 + s), abs=1e-6)


def test_dice_of_nothing_found_where_nothing_is():
    """Without the structure the loss is that of the smoothing: all but 0 when nothing is found."""
    logits, target = jnp.full((1, 2, 2, 1), -40.0), jnp.zeros((1, 2, 2, 1))
    assert float(losses.dice_loss(logits, target, exclusive=False)) == pytest.approx(0, abs=1e-6)


def test_focal_by_hand():
    """A logit of 0 has the truth at 1/2: (1/2)^2 log 2, whatever the truth; ln 3 has it at 3/4."""
    target = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    assert float(losses.focal_loss(jnp.zeros((1, 1, 2, 1)), target)) == pytest.approx(0.25 * np.log(2), rel=1e-6)
    logits = jnp.log(jnp.array([3.0, 1 / 3])).reshape(1, 1, 2, 1)
    assert float(losses.focal_loss(logits, target)) == pytest.approx(1 / 16 * np.log(4 / 3), rel=1e-5)


def test_masks_to_channels():
    mask = jnp.array([[[0, 2], [1, 0]]])
    np.testing.assert_array_equal(losses.one_hot(mask, 3)[0, 0], [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(losses.one_hot(mask, 1)[0, ..., 0], [[0, 1], [1, 0]])
    overlapping = jnp.ones((1, 2, 2, 3), jnp.int32)
    assert losses.one_hot(overlapping, 3).dtype == jnp.float32


def test_landmark_loss_by_hand():
    """All pixels equally likely: log of their number; a landmark without a place does not count."""
    points = jnp.array([[[1.0, 0.0], [jnp.nan, 2.0], [9.0, 0.0]]])
    target = losses.heat_maps(points, 3, 4, sigma=0)
    assert float(target[0, 0, 1, 0]) == 1 and np.asarray(target.sum((1, 2))).tolist() == [[1, 0, 0]]
    assert float(losses.landmark_loss(jnp.zeros((1, 3, 4, 3)), target)) == pytest.approx(np.log(12), rel=1e-6)
    assert float(losses.landmark_loss(jnp.zeros((1, 3, 4, 3)), jnp.zeros((1, 3, 4, 3)))) == 0
    assert np.isfinite(losses.landmark_loss(jnp.full((1, 3, 4, 3), 1e4).at[0, 0, 0].set(-1e4), target))


def test_points_are_found_where_the_maps_are():
    points = jnp.array([[[3.0, 4.0], [5.25, 3.5]]])
    maps = losses.heat_maps(points, 8, 9, sigma=0.7)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-6)
    found = losses.expected_points(jnp.log(jnp.maximum(maps, 1e-30)))
    np.testing.assert_allclose(found, points, atol=0.01)
    np.testing.assert_array_equal(losses.peaks(maps)[0], [[3, 4], [5, 3]])


def test_a_refined_point_is_not_moved_by_another_maximum():
    """Probabilities 3/4 and 1/4 at x = 2 and 3 give 2.25; half as much again at x = 8 would give 4.17."""
    p = jnp.zeros((1, 3, 9, 1)).at[0, 1, 2].set(0.5).at[0, 1, 3].set(1 / 6).at[0, 1, 8].set(1 / 3)
    logits = jnp.log(jnp.maximum(p, 1e-30))
    np.testing.assert_allclose(losses.refined_points(logits, 2), [[[2.25, 1.0]]], rtol=1e-6)
    np.testing.assert_allclose(losses.expected_points(logits), [[[2 / 2 + 3 / 6 + 8 / 3, 1.0]]], rtol=1e-6)
