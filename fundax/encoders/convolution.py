"""Convolutions and batch normalisation of convolutional encoders.

`convolve` chooses the form of a convolution by platform. Accelerators run XLA's own. On CPUs, XLA's grouped convolution is
30 to 100 times slower than PyTorch's and its 1x1 convolution twice as slow, so there a depthwise convolution is a sum of
shifted slices and a 1x1 convolution is a matrix product."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import Initializer
from fundax.types import UserError

Padding = Literal["both", "same", "none"]
Pads = tuple[tuple[int, int], tuple[int, int]]

he: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # what torchvision starts from


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "both") -> jax.Array:
    """Convolution of x [B h w C] with a kernel [k k C/groups W], in x's dtype.

    padding: "both" pads half of the kernel's size on both sides, as PyTorch's networks; "same" pads as TensorFlow, which
    for a stride of 2 pads more below and to the right; "none" pads nothing.
    """
    size, groups = kernel.shape[0], x.shape[-1] // kernel.shape[2]
    rows, columns = (_pads(side, size, stride, padding) for side in x.shape[1:3])
    pads = (rows, columns)
    general = functools.partial(_general, stride=stride, pads=pads, groups=groups)
    if groups == 1 and size == 1:
        return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(_pointwise, stride=stride), default=general)
    if groups > 1 and groups == kernel.shape[3]:
        shifted = lambda x, kernel: _shifted(x, kernel, stride, pads)  # noqa: E731
        return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=general)
    return general(x, kernel)


def _pads(side: int, size: int, stride: int, padding: Padding) -> tuple[int, int]:
    if padding == "same":
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        return total // 2, total - total // 2
    return (0, 0) if padding == "none" else (size // 2, size // 2)


def _general(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads, groups: int) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride,) * 2, pads, dimension_numbers=layout, feature_group_count=groups
    )


def _pointwise(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    x = x[:, ::stride, ::stride]
    rows = x.reshape(-1, x.shape[-1])  # XLA's fast products on CPUs have two axes
    out = jax.lax.dot(rows, kernel[0, 0].astype(x.dtype), preferred_element_type=_wide_type(x))
    return out.astype(x.dtype).reshape(*x.shape[:3], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Depthwise convolution as a sum of shifted slices, which XLA fuses into one loop."""
    size = len(kernel)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    h, w = ((side - size) // stride + 1 for side in padded.shape[1:3])
    total = jnp.zeros((len(x), h, w, x.shape[-1]), _wide_type(x))
    for i in range(size):
        for j in range(size):
            part = padded[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride]
            total = total + part * kernel[i, j, 0].reshape(1, 1, 1, -1)
    return total.astype(x.dtype)


def _shifted_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted(x, kernel, stride, pads), (x, kernel)


def _shifted_backward(
    stride: int, pads: Pads, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    d_x = _input_gradient(g, kernel, x.shape, stride, pads)
    return d_x.astype(x.dtype), _kernel_gradient(x, g, kernel, stride, pads).astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)  # pyright: ignore[reportFunctionMemberAccess]


def _input_gradient(g: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, pads: Pads) -> jax.Array:
    """Gradient f32 [B h w C] of the input, whose pixels of each phase of the stride see their own part of the kernel."""
    size, (b, h, w, c) = len(kernel), g.shape
    tall, wide = (-(-(side + sum(pad)) // stride) for side, pad in zip(shape[1:3], pads, strict=True))
    padded = jnp.pad(g, ((0, 0), (size, max(tall - h, 0) + size), (size, max(wide - w, 0) + size), (0, 0)))
    rows = []
    for top in range(stride):
        phases = []
        for left in range(stride):
            phase = jnp.zeros((b, tall, wide, c), _wide_type(g))
            for i in range(top, size, stride):
                for j in range(left, size, stride):
                    down, right = size - i // stride, size - j // stride
                    part = padded[:, down : down + tall, right : right + wide]
                    phase = phase + part * kernel[i, j, 0].reshape(1, 1, 1, -1)
            phases.append(phase)
        rows.append(jnp.stack(phases, axis=3))
    whole = jnp.stack(rows, axis=2).reshape(b, tall * stride, wide * stride, c)
    (above, _), (before, _) = pads
    return whole[:, above : above + shape[1], before : before + shape[2]]


def _kernel_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Gradient f32 [k k 1 C] of the kernel, accumulated row by row: a reduction of whole images is ten times slower."""
    size, (b, h, w, c) = len(kernel), g.shape
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def add(sums: tuple[jax.Array, ...], row: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        image, at = row // h, row % h
        out = jax.lax.dynamic_slice(g, (image, at, 0, 0), (1, 1, w, c))[0, 0]
        seen = jax.lax.dynamic_slice(padded, (image, at * stride, 0, 0), (1, size, padded.shape[2], c))[0]
        taps = ((i, j) for i in range(size) for j in range(size))
        parts = (seen[i, j : j + (w - 1) * stride + 1 : stride] * out for i, j in taps)
        return tuple(one + part for one, part in zip(sums, parts, strict=True)), None

    start = tuple(jnp.zeros((w, c), _wide_type(g)) for _ in range(size * size))
    sums, _ = jax.lax.scan(add, start, jnp.arange(b * h))
    return jnp.stack([one.sum(0) for one in sums]).reshape(kernel.shape)


def _wide_type(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


class Conv(nn.Module):
    """Convolution with a kernel [size size C/groups width], by default without bias; see `convolve`.

    groups: 1, or the number of channels for a depthwise convolution.
    """

    width: int
    size: int
    stride: int
    dtype: str
    padding: Padding = "both"
    groups: int = 1
    bias: bool = False
    initial: Initializer = he

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C] to [B h/stride w/stride width]."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.width)
        kernel = self.param("kernel", self.initial, shape, jnp.float32).astype(self.dtype)
        y = convolve(x, kernel, self.stride, self.padding)
        if self.bias:
            y = y + _wide(self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)).astype(y.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167) with fp32 statistics of the global batch, on any mesh.

    Running statistics are PyTorch's: the running variance is the unbiased one, N / (N - 1) times the variance used for
    normalising, and `count` is the number of batches seen. Raises UserError for a single value per channel.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B h w C]; returns its dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(x.shape[-1], jnp.float32))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(x.shape[-1], jnp.float32))
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        y = x.astype(_wide_type(x))
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = _moments(y)
        if train and not self.is_initializing():
            n = x.size // x.shape[-1]
            weight = self.momentum
            running_mean.value = (1 - weight) * running_mean.value + weight * mean
            running_var.value = (1 - weight) * running_var.value + weight * var * (n / (n - 1))
            count.value = count.value + 1
        y = (y - _wide(mean)) * _wide(jax.lax.rsqrt(var + self.epsilon) * scale) + _wide(bias)
        return y.astype(x.dtype)


def _moments(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, in two passes, which is accurate even if the mean is large."""
    if y.size == y.shape[-1]:
        raise UserError(f"batch statistics of one value per channel (a map of {y.shape[:3]}): enlarge batch or image")
    mean = y.mean((0, 1, 2))
    return mean, jnp.square(y - _wide(mean)).mean((0, 1, 2))


def _wide(x: jax.Array) -> jax.Array:
    return x.reshape(1, 1, 1, -1)
