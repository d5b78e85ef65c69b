"""Operations whose derivatives are written out, because those that JAX derives are slower or less accurate.

Forward-mode differentiation is not supported. Times are in docs/measurements/performance.md."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

Kept = tuple[jax.Array, ...]  # what the forward pass keeps for the backward pass
Contraction = tuple[tuple[int, ...], tuple[int, ...]]


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Product of x [... D] with an fp32 kernel [D ...] in x's dtype, whose kernel gradient stays in fp32.

    The gradient that JAX derives is rounded to bfloat16 where x is bfloat16, and is summed over devices in bfloat16.
    """
    rows, matrix = _flat(x), _matrix(kernel)
    return _dot(rows, matrix.astype(x.dtype), ((1,), (0,))).reshape(*x.shape[:-1], *kernel.shape[1:])


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Kept]:
    return product(x, kernel), (x, kernel)


def _product_backward(kept: Kept, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows, matrix = _flat(x), _matrix(kernel)
    g = g.reshape(len(rows), *matrix.shape[1:])
    columns = tuple(range(1, matrix.ndim))
    d_x = _dot(g, matrix.astype(g.dtype), (columns, columns))
    d_kernel = jax.lax.dot_general(rows, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return d_x.reshape(x.shape), d_kernel.reshape(kernel.shape)


product.defvjp(_product_forward, _product_backward)  # pyright: ignore[reportFunctionMemberAccess]


def _flat(x: jax.Array) -> jax.Array:
    """x [... D] as rows [M D]: XLA's fast products on CPUs have two axes."""
    return x.reshape(-1, x.shape[-1])


def _matrix(kernel: jax.Array) -> jax.Array:
    """The kernel [D ...] as a matrix [D W]; as it is where the model axis splits its last axis, which cannot be merged."""
    mesh = jax.sharding.get_abstract_mesh()
    split = not mesh.empty and mesh.shape.get("model", 1) > 1
    return kernel if split else kernel.reshape(len(kernel), -1)


def _dot(x: jax.Array, y: jax.Array, contraction: Contraction) -> jax.Array:
    """Contraction of x and y in their dtype. XLA's CPU products in bfloat16 are fast only with an fp32 result."""
    if x.dtype != jnp.bfloat16:
        return jax.lax.dot_general(x, y, (contraction, ((), ())))

    def wide(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, y, (contraction, ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)

    def plain(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, y, (contraction, ((), ())))

    return jax.lax.platform_dependent(x, y, cpu=wide, default=plain)


@jax.custom_vjp
def sigmoid_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x) (arXiv:1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return sigmoid_gelu(x), x


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    sigmoid = jax.nn.sigmoid(1.702 * x)
    return (g * (sigmoid + 1.702 * x * sigmoid * (1 - sigmoid)),)


sigmoid_gelu.defvjp(_gelu_forward, _gelu_backward)  # pyright: ignore[reportFunctionMemberAccess]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer norm (arXiv:1607.06450) of the last axis of x [... D] in fp32, with a two-pass variance; in x's dtype.

    scale, bias: f32 [D].
    """
    return _norm_forward(x, scale, bias, epsilon)[0]


def _norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, Kept]:
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, -1, keepdims=True)
    y = y - mean
    rate = jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    out = y * rate * _last(scale, x.ndim) + _last(bias, x.ndim)
    return out.astype(x.dtype), (x, mean, rate, scale)


def _norm_backward(epsilon: float, kept: Kept, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, rate, scale = kept
    unit, g = (x.astype(jnp.float32) - mean) * rate, g.astype(jnp.float32)
    d_unit, rows = g * _last(scale, x.ndim), tuple(range(x.ndim - 1))
    centered = d_unit - jnp.mean(d_unit, -1, keepdims=True) - unit * jnp.mean(d_unit * unit, -1, keepdims=True)
    return (rate * centered).astype(x.dtype), (g * unit).sum(rows), g.sum(rows)


layer_norm.defvjp(_norm_forward, _norm_backward)  # pyright: ignore[reportFunctionMemberAccess]


def _last(x: jax.Array, ndim: int) -> jax.Array:
    return x.reshape((1,) * (ndim - 1) + (-1,))
