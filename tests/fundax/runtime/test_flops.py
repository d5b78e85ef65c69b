"""Operations counted by hand."""

import jax
import jax.numpy as jnp

from fundax.runtime.chips import chip_named, chip_of
from fundax.runtime.flops import forward_flops, product_bytes, training_flops


def test_a_product_is_two_operations_per_multiply_add():
    a, b = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert forward_flops(lambda a, b: a @ b, a, b) == 2 * 3 * 4 * 7 * 5
    assert training_flops(lambda a, b: (a @ b).sum(), a, b) == 3 * 2 * 3 * 4 * 7 * 5


def test_a_scan_counts_every_turn_and_remat_counts_once():
    w = jax.ShapeDtypeStruct((6, 8, 8), jnp.float32)

    def layers(w):
        body = jax.checkpoint(lambda x, k: (x @ k, None))
        return jax.lax.scan(body, jnp.ones((2, 8)), w)[0]

    assert forward_flops(jax.jit(layers), w) == 6 * 2 * 2 * 8 * 8


def test_what_no_result_needs_is_not_counted():
    def one_of_two(x):
        big = x @ x.T  # dead
        return x[:1] @ (2 * x).T, big.shape

    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert forward_flops(lambda x: one_of_two(x)[0], x) == 2 * 8 * 4


def test_bytes_of_products():
    a, b = jax.ShapeDtypeStruct((3, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)
    product = lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32)  # noqa: E731
    assert product_bytes(product, a, b) == 2 * (12 + 20) + 4 * 15


def test_a_convolution():
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

    def patches(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert forward_flops(patches, image, kernel) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)


def test_chips_by_both_names():
    assert chip_of("TPU v5 lite") == chip_named("v5e") and chip_of("NVIDIA H100 80GB HBM3") == chip_named("H100")
    assert chip_of("cpu") is None
