"""Convolutions: every form gives the numbers of XLA's own and of its derivatives, with each padding and stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import convolution
from fundax.encoders.convolution import convolve


def random(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("padding", ["both", "same", "none"])
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 7), (3, 2, 8), (5, 2, 7)])
def test_shifted_slices_are_a_depthwise_convolution(size, stride, side, padding):
    x, kernel = random(2, side, side + 1, 3), random(size, size, 1, 3)
    pads = tuple(convolution._pads(n, size, stride, padding) for n in x.shape[1:3])
    general = lambda x, k: convolution._general(x, k, stride=stride, pads=pads, groups=3)  # noqa: E731
    shifted = lambda x, k: convolution._shifted(x, k, stride, pads)  # noqa: E731
    (y, back), (expected, expected_back) = (jax.vjp(jax.jit(one), x, kernel) for one in (shifted, general))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    g = random(*expected.shape)
    for found, wanted in zip(back(g), expected_back(g), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_product_is_a_pointwise_convolution(stride):
    x, kernel = random(2, 5, 4, 3), random(1, 1, 3, 6)
    expected = convolution._general(x, kernel, stride=stride, pads=((0, 0), (0, 0)), groups=1)
    np.testing.assert_allclose(convolve(x, kernel, stride), expected, rtol=0, atol=1e-5)


def test_the_form_is_chosen_by_platform():
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
    for platform, convolutions in (("cpu", 0), ("tpu", 1)):
        text = jax.jit(convolve).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions, platform


def test_same_padding_is_tensorflows():
    # 4 pixels 1 2 3 4, kernel of ones, stride 2: windows (1 2 3) and (3 4 0)
    x = jnp.broadcast_to(jnp.arange(1.0, 5.0)[None, None, :, None], (1, 1, 4, 1))
    assert convolve(x, jnp.ones((3, 3, 1, 1)), 2, "same").ravel().tolist() == [6.0, 7.0]
