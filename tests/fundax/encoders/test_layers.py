"""Activations, norms, attention and stacks of blocks, each against numpy or against another way to run it."""

from functools import partial
from math import erf, exp, sqrt, tanh

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import layers
from fundax.encoders.pixels import normalize
from fundax.params import stack_blocks, unstack_blocks
from fundax.types import UserError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_activations_by_hand():
    x = 0.7
    assert layers.quick_gelu(jnp.float32(x)) == pytest.approx(x / (1 + exp(-1.702 * x)), rel=1e-6)
    assert layers.gelu_exact(jnp.float32(x)) == pytest.approx(x * 0.5 * (1 + erf(x / sqrt(2))), rel=1e-6)
    inner = sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    assert layers.gelu_tanh(jnp.float32(x)) == pytest.approx(x * 0.5 * (1 + tanh(inner)), rel=1e-6)


def test_normalize():
    image = np.array([[[0, 51, 255]]], np.uint8)
    out = normalize(image, (0.5, 0.1, 0.0), (0.25, 0.1, 2.0))
    np.testing.assert_allclose(out[0, 0], [-2.0, 1.0, 0.5], rtol=1e-6)
    assert normalize(image, (0.5,) * 3, (0.5,) * 3, "bfloat16").dtype == jnp.bfloat16
    done = normal(1, 1, 3)
    np.testing.assert_array_equal(normalize(done, (0.5,) * 3, (0.5,) * 3), done)
    with pytest.raises(UserError, match="got int32"):
        normalize(image.astype(np.int32), (0.5,) * 3, (0.5,) * 3)


def test_l2_normalize():
    np.testing.assert_allclose(
        layers.l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]], rtol=1e-6
    )


def test_l2_normalize_at_the_edges():
    """A row of zeros has a bounded gradient, and a row whose norm overflows does not pass for zeros."""
    gradient = jax.grad(lambda x: layers.l2_normalize(x)[0].sum())(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, [[1, 1, 1], [0, 0, 0]])
    assert np.isnan(layers.l2_normalize(jnp.full((1, 2), 1e20))).all()
    x = jnp.array([[3.0, 4.0]])
    expected = [[0.16 / 5 * 4, -0.16 / 5 * 3]]  # by hand: d/dx (x_0 / |x|) = (x_1^2, -x_0 x_1) / |x|^3
    np.testing.assert_allclose(jax.grad(lambda x: layers.l2_normalize(x)[0, 0])(x), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 3, 4)])
def test_product_and_its_gradients(shape):
    x, kernel = normal(2, 5, shape[0]), normal(*shape, seed=1)
    weight = normal(2, 5, *shape[1:], seed=2)

    def loss(multiply, x, kernel):
        return (multiply(x, kernel) ** 2 * weight).sum()

    plain = partial(jnp.tensordot, axes=1)
    ours = jax.value_and_grad(partial(loss, layers.product), argnums=(0, 1))(x, kernel)
    expected = jax.value_and_grad(partial(loss, plain), argnums=(0, 1))(x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_product_keeps_gradients_of_bfloat16_in_fp32():
    x, kernel = jnp.ones((1, 300, 2), jnp.bfloat16), jnp.ones((2, 3))
    y, back = jax.vjp(layers.product, x, kernel)
    d_x, d_kernel = back(jnp.ones_like(y))
    assert (y.dtype, d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(d_kernel, np.full((2, 3), 300.0))


def test_layer_norm_against_numpy():
    x = normal(2, 3, 8) * 5 + 2
    params = {"scale": normal(8, seed=1), "bias": normal(8, seed=2)}
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    out = layers.LayerNorm(1e-5).apply({"params": params}, x)
    np.testing.assert_allclose(out, expected * params["scale"] + params["bias"], rtol=1e-5, atol=1e-5)


def test_attend_against_numpy():
    q, k, v = normal(2, 3, 2, 4), normal(2, 5, 2, 4, seed=1), normal(2, 5, 2, 4, seed=2)
    mask = np.tril(np.ones((3, 5), bool), 1)[None, None]
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
    weights = np.exp(np.where(mask, logits, -np.inf))
    expected = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    for path in ("plain", "xla"):
        ours = layers.attend(q, k, v, jnp.asarray(mask), path=path)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="needs an NVIDIA GPU and bfloat16"):
        layers.attend(q, k, v, path="cudnn")
    with pytest.raises(UserError, match="expected one of plain, xla, cudnn"):
        layers.attend(q, k, v, path="flash")


def test_take_rows():
    x = normal(3, 4, 2)
    assert layers.take_rows(x, None) is x
    np.testing.assert_array_equal(layers.take_rows(x, 1), x[:, 1:2])
    np.testing.assert_array_equal(layers.take_rows(x, jnp.array([3, 0, 2])), x[[0, 1, 2], [3, 0, 2]][:, None])


class Backbone(nn.Module):
    """Two blocks with a causal mask."""

    scan: bool = False
    remat: str = "none"
    layer_scale: float | None = 0.1

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        block = partial(
            layers.Block, width, 2, 2 * width, layers.quick_gelu, layers.init_clip_text(width, 2 * width, 2),
            layer_scale=self.layer_scale,
        )  # fmt: skip
        mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, None]
        return layers.Stack(2, self.scan, self.remat)(block, x, mask, jnp.array([2, 0]), True)


@pytest.fixture(scope="module")
def tower():
    x = normal(2, 3, 8)
    params = Backbone().init(jax.random.key(0), x)["params"]
    return x, jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)


def run(model, params, x):
    """The outputs, and gradients of a loss on tokens and row."""

    def loss(params):
        out = model.apply({"params": params}, x)
        return (out["tokens"] ** 2).sum() + (out["row"] ** 3).sum(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return out, gradients


def test_the_row_and_hidden_are_of_the_tokens(tower):
    x, params = tower
    out, _ = run(Backbone(), params, x)
    np.testing.assert_allclose(out["row"], out["tokens"][np.arange(2), [2, 0]], rtol=1e-5, atol=1e-6)
    assert len(out["hidden"]) == 2
    np.testing.assert_array_equal(out["hidden"][-1], out["tokens"])


@pytest.mark.parametrize(("scan", "remat"), [(False, "full"), (False, "dots"), (True, "none"), (True, "dots")])
def test_every_way_to_run_a_stack_gives_the_same_numbers(tower, scan, remat):
    x, params = tower
    expected = run(Backbone(), params, x)
    out, gradients = run(Backbone(scan, remat), stack_blocks(params) if scan else params, x)
    gradients = unstack_blocks(gradients)
    assert jax.tree.structure((out, gradients)) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves((out, gradients)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_fresh_scanned_blocks_differ():
    params = Backbone(scan=True).init(jax.random.key(0), normal(1, 3, 8))["params"]
    kernel = params["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (2, 8, 16)
    assert not np.allclose(kernel[0], kernel[1])


def test_stack_and_unstack():
    tree = {"image": {f"block_{i}": {"w": np.full(2, i)} for i in range(11)} | {"norm": np.ones(1)}}
    stacked = stack_blocks(tree)
    np.testing.assert_array_equal(stacked["image"]["blocks"]["w"][:, 0], np.arange(11))
    back = unstack_blocks(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(back["image"]["block_10"]["w"], [10, 10])


def test_unknown_remat_is_named():
    with pytest.raises(UserError, match="'half'; expected one of none, full, dots"):
        jax.eval_shape(Backbone(remat="half").init, jax.random.key(0), normal(1, 3, 8))


def test_initial_values():
    key = jax.random.key(0)
    vision, text = layers.init_clip_vision(64, 256, 12), layers.init_clip_text(64, 256, 12)
    kernel = vision.qkv(key, (64, 3, 64))
    assert np.abs(kernel).max() == pytest.approx(sqrt(6 / 256), rel=0.01)
    assert np.abs(vision.fc2(key, (256, 64))).max() == pytest.approx(1 / 16, rel=0.01)
    assert text.out(key, (64, 64)).std() == pytest.approx((2 * 64 * 12) ** -0.5, rel=0.05)
    assert text.fc1(key, (64, 256)).std() == pytest.approx(128**-0.5, rel=0.05)
