"""ResNet with bottleneck blocks (arXiv:1512.03385), as torchvision's resnet50: FLAIR's and KeepFIT's image encoder.

Convolutions are padded explicitly as in PyTorch, because JAX's SAME pads the other side for a stride of 2. The stride of
a stage is in its 3x3 convolution."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import Initializer
from fundax.types import UserError

EXPANSION = 4  # output channels of a bottleneck per channel of its 3x3 convolution


# Width of the first stage and units of each stage. resnet50 and resnet101 are torchvision's; the others are ours, for
# small machines: resnet-tiny learns from a few thousand images what a ViT of its cost does not.
SIZES = {
    "resnet-smoke": (8, (1,)),
    "resnet-tiny": (24, (1, 1, 1, 1)),
    "resnet14": (64, (1, 1, 1, 1)),
    "resnet50": (64, (3, 4, 6, 3)),
    "resnet101": (64, (3, 4, 23, 3)),
}


_he: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # what torchvision starts from


class ResNet(nn.Module):
    """Images [B h w 3] to a feature map, its positions as tokens [B N D], and their mean as pooled [B D].

    With four stages D is 32 `width_first`, and the map has 1/32 of the image's resolution. Batch statistics are in the
    collection "batch_stats", which objectives keep in `extra`. `image_size` is the size of training batches; the model
    accepts any size.
    """

    image_size: int = 512
    width_first: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    epsilon: float = 1e-5
    momentum: float = 0.1  # weight of the new statistics, as in PyTorch
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """D, the width of tokens and pooled."""
        return self.width_first * 2 ** (len(self.blocks) - 1) * EXPANSION

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden: bool = False) -> dict[str, Any]:
        """tokens [B N D], pooled f32 [B D], map [B h/32 w/32 D]; `hidden` adds the stem and the output of every stage.

        With `train` the statistics of the batch are used, and "batch_stats" must be mutable.
        """
        x = Conv(self.width_first, 7, 2, self.dtype, name="conv1")(image.astype(self.dtype))
        kept = {"stem": x}
        x = jax.nn.relu(self._norm("norm1")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # type: ignore[arg-type]  # flax says str, takes both
        for stage, units in enumerate(self.blocks):
            for unit in range(units):
                stride = 2 if stage and not unit else 1
                name = f"stage{stage + 1}_unit{unit}"
                fields = (self.width_first * 2**stage, stride, not unit, self.epsilon, self.momentum, self.dtype)
                x = Bottleneck(*fields, name=name)(x, train)
            kept[f"stage{stage + 1}"] = x
        tokens = x.reshape(len(x), -1, x.shape[-1])
        out = {"tokens": tokens, "pooled": tokens.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(1), "map": x}
        return out | ({"hidden": kept} if hidden else {})

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(self.epsilon, self.momentum, name=name)


class Bottleneck(nn.Module):
    """1x1 convolution to `width`, 3x3 with the stride, 1x1 to 4 `width`; the first of a stage projects its shortcut."""

    width: int
    stride: int
    project: bool
    epsilon: float
    momentum: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B h w C] to [B h/stride w/stride 4 width]."""
        norm = lambda name: BatchNorm(self.epsilon, self.momentum, name=name)  # noqa: E731
        conv = lambda width, size, stride, name: Conv(width, size, stride, self.dtype, name=name)  # noqa: E731
        y = jax.nn.relu(norm("norm1")(conv(self.width, 1, 1, "conv1")(x), train))
        y = jax.nn.relu(norm("norm2")(conv(self.width, 3, self.stride, "conv2")(y), train))
        y = norm("norm3")(conv(EXPANSION * self.width, 1, 1, "conv3")(y), train)
        if self.project:
            x = norm("shortcut_norm")(conv(EXPANSION * self.width, 1, self.stride, "shortcut")(x), train)
        return jax.nn.relu(x + y)


class Conv(nn.Module):
    """Convolution without bias, padded by half its size on both sides, as in PyTorch; kernel [size size C width]."""

    width: int
    size: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C] to [B h/stride w/stride width]."""
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", _he, shape, jnp.float32).astype(self.dtype)
        pad = (self.size // 2, self.size // 2)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, (pad, pad), dimension_numbers=layout)


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
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
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


def resnet(size: str, **fields: Any) -> ResNet:
    """A ResNet of one of SIZES; `fields` override ResNet's. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"ResNet size is {size!r}; expected one of {', '.join(SIZES)}")
    width, blocks = SIZES[size]
    return ResNet(width_first=width, blocks=blocks, **fields)
