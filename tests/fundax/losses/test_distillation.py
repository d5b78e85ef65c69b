"""The losses of self-distillation against numbers worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from fundax.losses import distillation

EVEN = [0.5, 0.5]


def test_targets_are_centered_and_sharpened():
    out = distillation.centered(jnp.array([[2.0, 1.0]]), jnp.array([1.0, 1.0]), 0.5)
    np.testing.assert_allclose(out[0, 0], 1 / (1 + math.exp(-2)), rtol=1e-6)


def test_pairs_of_the_same_crop_are_left_out():
    teacher = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    student = jnp.log(jnp.array([[[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]]]))
    # pairs (0,1) (0,2) (1,0) (1,2): -log of 0.25, 0.5, 0.1, 0.5
    expected = -math.log(0.25 * 0.5 * 0.1 * 0.5) / 4
    assert float(distillation.token_loss(teacher, student, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_a_crop_without_masked_patches_counts_as_nothing():
    teacher = jnp.array([[[EVEN, EVEN, [1.0, 0.0]], [EVEN, EVEN, EVEN]]])
    student = jnp.log(jnp.array([[[EVEN, EVEN, [0.25, 0.75]]] * 2]))
    masked = jnp.array([[[True, False, True], [False, False, False]]])
    expected = (math.log(2) + math.log(4)) / 2 / 2  # two masked patches of the first crop, and 0 of the second
    assert float(distillation.patch_loss(teacher, student, masked, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_center_is_a_running_mean_of_raw_logits():
    moved = distillation.update_center(jnp.array([1.0, 0.0]), jnp.array([[[2.0, 4.0]], [[4.0, 8.0]]]), 0.9)
    np.testing.assert_allclose(moved, [0.9 + 0.3, 0.6], rtol=1e-6)


def test_sinkhorn_uses_prototypes_equally():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)) + jnp.array([[3.0, 0, 0, 0]])
    out = distillation.sinkhorn(logits, 0.5, rounds=50)
    np.testing.assert_allclose(out.sum(1), np.ones(12), rtol=1e-5)
    np.testing.assert_allclose(out.sum(0), np.full(4, 3.0), rtol=1e-3)


def test_koleo_by_hand():
    features = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])  # each nearest other at the distance sqrt 2
    assert float(distillation.koleo(features)) == pytest.approx(-0.5 * math.log(2), rel=1e-4)


def test_entropy():
    assert float(distillation.entropy(jnp.array([EVEN, [1.0, 0.0]]))) == pytest.approx(math.log(2) / 2, rel=1e-6)
