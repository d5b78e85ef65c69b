"""ResNet (arXiv:1512.03385), as torchvision's: with bottlenecks the image encoder of FLAIR and KeepFIT.

Convolutions are padded explicitly as in PyTorch, because JAX's SAME pads the other side for a stride of 2. The stride of
a stage is in its first 3x3 convolution."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.convolution import BatchNorm, Conv
from fundax.encoders.layers import drop_branch
from fundax.types import UserError

EXPANSION = 4  # output channels of a bottleneck per channel of its 3x3 convolution


# Width of the first stage, units of each stage, and whether they are basic blocks. Names with a two-digit number are
# torchvision's, except resnet14. The others are ours, for small machines: resnet-tiny learns from a few thousand images,
# which is too few for a ViT of the same cost.
SIZES = {
    "resnet-smoke": (8, (1,), False),
    "resnet-tiny": (24, (1, 1, 1, 1), False),
    "resnet14": (64, (1, 1, 1, 1), False),
    "resnet18": (64, (2, 2, 2, 2), True),
    "resnet34": (64, (3, 4, 6, 3), True),
    "resnet50": (64, (3, 4, 6, 3), False),
    "resnet101": (64, (3, 4, 23, 3), False),
}


class ResNet(nn.Module):
    """Images [B h w 3] to a feature map, its positions as tokens [B N D], and their mean as pooled [B D].

    With four stages D is 32 `width_first` (8 with basic blocks), and the map has 1/32 of the image's resolution. Batch
    statistics are in the collection "batch_stats", which objectives keep in `extra`. `image_size` is the size of training
    batches; the model accepts any size. `drop_path` is the stochastic depth of the last unit, rising linearly from 0.
    """

    image_size: int = 512
    width_first: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    epsilon: float = 1e-5
    momentum: float = 0.1  # weight of the new statistics, as in PyTorch
    dtype: str = "float32"
    basic: bool = False  # two 3x3 convolutions in a unit, as resnet18 and resnet34, instead of a bottleneck
    drop_path: float = 0.0

    @property
    def width(self) -> int:
        """D, the width of tokens and pooled."""
        return self.width_first * 2 ** (len(self.blocks) - 1) * (1 if self.basic else EXPANSION)

    @property
    def last_unit(self) -> str:
        """Name of the module that computes the last feature map."""
        return f"stage{len(self.blocks)}_unit{self.blocks[-1] - 1}"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden: bool = False) -> dict[str, Any]:
        """tokens [B N D], pooled f32 [B D], map [B h/32 w/32 D], pyramid: the maps of all stages (strides 4, 8, 16, 32).

        With `train` the statistics of the batch are used, and "batch_stats" must be mutable. `hidden` adds the stem and
        the output of every stage by name.
        """
        x = Conv(self.width_first, 7, 2, self.dtype, name="conv1")(image.astype(self.dtype))
        kept = {"stem": x}
        x = jax.nn.relu(self._norm("norm1")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # type: ignore[arg-type]  # flax says str, takes both
        kind, count = Basic if self.basic else Bottleneck, max(sum(self.blocks) - 1, 1)
        for stage, units in enumerate(self.blocks):
            for unit in range(units):
                stride = 2 if stage and not unit else 1
                project = not unit and bool(stage or not self.basic)
                fields = (self.width_first * 2**stage, stride, project, self.epsilon, self.momentum, self.dtype)
                rate = self.drop_path * (sum(self.blocks[:stage]) + unit) / count if self.drop_path else None
                x = kind(*fields, rate, name=f"stage{stage + 1}_unit{unit}")(x, train)
            kept[f"stage{stage + 1}"] = x
        return outputs(x, tuple(list(kept.values())[1:])) | ({"hidden": kept} if hidden else {})

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
    drop: float | None = None

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
        return jax.nn.relu(x + drop_branch(self, y, self.drop))


class Basic(nn.Module):
    """Two 3x3 convolutions to `width`, the first with the stride; the first unit of a later stage projects its shortcut."""

    width: int
    stride: int
    project: bool
    epsilon: float
    momentum: float
    dtype: str
    drop: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B h w C] to [B h/stride w/stride width]."""
        norm = lambda name: BatchNorm(self.epsilon, self.momentum, name=name)  # noqa: E731
        conv = lambda size, stride, name: Conv(self.width, size, stride, self.dtype, name=name)  # noqa: E731
        y = jax.nn.relu(norm("norm1")(conv(3, self.stride, "conv1")(x), train))
        y = norm("norm2")(conv(3, 1, "conv2")(y), train)
        if self.project:
            x = norm("shortcut_norm")(conv(1, self.stride, "shortcut")(x), train)
        return jax.nn.relu(x + drop_branch(self, y, self.drop))


def outputs(x: jax.Array, pyramid: tuple[jax.Array, ...]) -> dict[str, Any]:
    """The outputs of a convolutional encoder with the last map x [B h w D]."""
    tokens = x.reshape(len(x), -1, x.shape[-1])
    pooled = tokens.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(1)
    return {"tokens": tokens, "pooled": pooled, "map": x, "pyramid": pyramid}


def resnet(size: str, **fields: Any) -> ResNet:
    """A ResNet of one of SIZES; `fields` override ResNet's. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"ResNet size is {size!r}; expected one of {', '.join(SIZES)}")
    width, blocks, basic = SIZES[size]
    return ResNet(width_first=width, blocks=blocks, basic=basic, **fields)
