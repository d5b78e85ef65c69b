"""Derivatives that are written out against those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import derivatives


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_norm(x, scale, bias):
    y = x - x.mean(-1, keepdims=True)
    y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return y * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


def test_layer_norm_and_its_gradients():
    x, scale, bias, weight = normal(2, 3, 8) * 4 + 1, normal(8, seed=1), normal(8, seed=2), normal(2, 3, 8, seed=3)
    ours = jax.value_and_grad(lambda *a: (derivatives.layer_norm(*a, 1e-5) * weight).sum(), (0, 1, 2))(x, scale, bias)
    expected = jax.value_and_grad(lambda *a: (plain_norm(*a) * weight).sum(), (0, 1, 2))(x, scale, bias)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_layer_norm_of_bfloat16_is_in_fp32():
    x = jnp.asarray(normal(1, 2, 8), jnp.bfloat16)
    y, back = jax.vjp(lambda x: derivatives.layer_norm(x, jnp.ones(8), jnp.zeros(8), 1e-5), x)
    assert (y.dtype, back(y)[0].dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact = plain_norm(x.astype(jnp.float32), jnp.ones(8), jnp.zeros(8))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("at", [-30.0, -1.0, 0.0, 0.5, 30.0])
def test_gradient_of_sigmoid_gelu(at):
    def by_hand(x):  # sigmoid(1.702 x) = s: s + 1.702 x s (1 - s)
        s = 1 / (1 + np.exp(-1.702 * x))
        return s + 1.702 * x * s * (1 - s)

    assert jax.grad(derivatives.sigmoid_gelu)(at) == pytest.approx(by_hand(at), rel=1e-5, abs=1e-12)


def test_product_of_bfloat16_rounds_once():
    x, kernel = jnp.full((1, 2, 256), 1.0, jnp.bfloat16), jnp.full((256, 2), 1.0 + 2**-9)
    # the kernel is rounded to bfloat16 (1.0), and the sum of 256 ones is exact only with an fp32 sum
    np.testing.assert_array_equal(derivatives.product(x, kernel), np.full((1, 2, 2), 256.0))


def test_product_on_a_mesh_with_a_model_axis_keeps_the_kernel_axes():
    mesh = jax.sharding.AbstractMesh((1, 1, 2), ("data", "fsdp", "model"))
    kernel = jnp.zeros((4, 3, 2))
    with jax.sharding.use_abstract_mesh(mesh):
        assert derivatives._matrix(kernel).shape == (4, 3, 2)
    assert derivatives._matrix(kernel).shape == (4, 6)
