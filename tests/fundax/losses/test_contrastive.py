"""Contrastive losses by hand, with masks and soft targets, and the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fundax.losses import contrastive

IMAGE = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
TEXT = np.array([[0.0, 1.0], [0.8, 0.6]], np.float32)
LOGITS = np.array([[0.0, 1.6], [1.6, 1.92]])  # of scale 2


def unit_rows(seed, count=8, width=4):
    x = np.random.default_rng(seed).standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_softmax_by_hand():
    # symmetric logits: both directions are ln(e^0 + e^1.6) - 0 and ln(e^1.6 + e^1.92) - 1.92
    expected = (np.log(1 + np.exp(1.6)) + np.log(np.exp(1.6) + np.exp(1.92)) - 1.92) / 2
    assert contrastive.softmax_contrastive(IMAGE, TEXT, jnp.float32(2)) == pytest.approx(float(expected), rel=1e-6)


def test_sigmoid_by_hand():
    z = np.where(np.eye(2) > 0, 1, -1) * (LOGITS - 0.5)
    expected = np.log1p(np.exp(-z)).sum() / 2
    assert contrastive.sigmoid_contrastive(IMAGE, TEXT, jnp.float32(2), -0.5) == pytest.approx(
        float(expected), rel=1e-6
    )


@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
@pytest.mark.parametrize("matched", [False, True])
def test_masked_examples_are_not_there(loss, matched):
    image, text, mask = unit_rows(0), unit_rows(1), np.arange(8) % 3 != 0
    targets = contrastive.matching_targets(jnp.array([0, 1, 1, 0, 2, 2, 3, 1])) if matched else None
    few = None if targets is None else targets[mask][:, mask]
    masked = loss(image, text, 5.0, -1.0, mask=jnp.asarray(mask), targets=targets)
    assert masked == pytest.approx(float(loss(image[mask], text[mask], 5.0, -1.0, targets=few)), rel=1e-5)


@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
def test_nobody_there_is_zero_with_zero_gradient(loss):
    nobody = jnp.zeros(8, bool)
    value, gradient = jax.value_and_grad(lambda x: loss(x, unit_rows(1), 5.0, mask=nobody))(unit_rows(0))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((8, 4)))


@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
def test_identity_targets_are_the_default(loss):
    expected = loss(unit_rows(0), unit_rows(1), 5.0)
    assert loss(unit_rows(0), unit_rows(1), 5.0, targets=jnp.eye(8)) == pytest.approx(float(expected), rel=1e-6)


def test_soft_targets_against_numpy():
    image, text = unit_rows(0), unit_rows(1)
    targets = np.random.default_rng(2).random((8, 8)).astype(np.float32)

    def cross_entropy(logits, weights):
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(weights / weights.sum(1, keepdims=True) * log_p).sum(1).mean()

    logits = 5.0 * image @ text.T
    expected = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2
    assert contrastive.softmax_contrastive(image, text, 5.0, targets=targets) == pytest.approx(expected, rel=1e-5)


def test_accuracy_by_hand():
    # rows of LOGITS: image 0 prefers text 1 (wrong), image 1 text 1 (right); the same for texts
    assert contrastive.contrastive_accuracy(IMAGE, TEXT) == (0.5, 0.5)
    assert contrastive.contrastive_accuracy(IMAGE, TEXT, jnp.array([True, False])) == (1.0, 1.0)


def test_losses_are_fp32_of_bfloat16_features():
    image, text = jnp.asarray(unit_rows(0), jnp.bfloat16), jnp.asarray(unit_rows(1), jnp.bfloat16)
    assert contrastive.softmax_contrastive(image, text, 5.0).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("loss", [contrastive.softmax_contrastive, contrastive.sigmoid_contrastive])
def test_a_mesh_changes_nothing(loss, shape):
    image, text = unit_rows(0), unit_rows(1)
    run = jax.jit(jax.value_and_grad(lambda a, b: loss(a, b, 5.0, -1.0), argnums=(0, 1)))
    expected = run(image, text)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        placed = jax.device_put(image, rows), jax.device_put(text, rows)
        sharded = run(*placed)
        spread = jax.jit(contrastive.similarity)(*placed)
    assert spread.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", "model")), 2)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_the_mesh_does_not_divide_is_left_to_the_compiler():
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    expected = contrastive.softmax_contrastive(unit_rows(0, 6), unit_rows(1, 6), 5.0)
    with jax.set_mesh(mesh):
        value = jax.jit(contrastive.softmax_contrastive)(unit_rows(0, 6), unit_rows(1, 6), 5.0)
    assert value == pytest.approx(float(expected), rel=1e-6)
