"""EfficientNet-Lite (arXiv:1905.11946, without squeeze-excitation and with ReLU6), as TensorFlow's and timm's.

Source: the layouts in the public repositories tensorflow/tpu (efficientnet/lite) and huggingface/pytorch-image-models."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.convolution import BatchNorm, Conv, Padding
from fundax.encoders.layers import drop_branch
from fundax.encoders.resnet import outputs
from fundax.types import UserError

# Kernel, stride, expansion, width and repeats of each stage of Lite0. Width and depth are scaled, except those of the
# stem, the head, and the depth of the first and the last stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
PYRAMID = (1, 2, 4, 6)  # the last stages at strides 4, 8, 16 and 32
STEM, HEAD = 32, 1280

# Factors of width and depth, and side of the images
SIZES = {
    "efficientnet-lite0": (1.0, 1.0, 224),
    "efficientnet-lite1": (1.0, 1.1, 240),
    "efficientnet-lite2": (1.1, 1.2, 260),
}


class EfficientNet(nn.Module):
    """Images [B h w 3] to a feature map, its positions as tokens [B N 1280], and their mean as pooled [B 1280].

    Batch statistics are in the collection "batch_stats", which objectives keep in `extra`. `image_size` is the size of
    training batches; the model accepts any size. `drop_path` is the stochastic depth of the last block, rising linearly
    from 0. TensorFlow's weights have "same" padding and the epsilon 1e-3, timm's own "both" and 1e-5.
    """

    image_size: int = 224
    width_factor: float = 1.0
    depth_factor: float = 1.0
    padding: Padding = "same"
    epsilon: float = 1e-3
    momentum: float = 0.01  # weight of the new statistics
    drop_path: float = 0.0
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """D, the width of tokens and pooled."""
        return HEAD

    @property
    def stages(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Kernel, stride, expansion, width and repeats of each stage of this size."""
        last = len(STAGES) - 1
        return tuple(
            (kernel, stride, expansion, _width(width * self.width_factor),
             repeats if i in (0, last) else math.ceil(repeats * self.depth_factor))
            for i, (kernel, stride, expansion, width, repeats) in enumerate(STAGES)
        )  # fmt: skip

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(repeats for *_, repeats in self.stages)

    @property
    def last_unit(self) -> str:
        """Name of the module that computes the last feature map."""
        return f"block_{self.depth - 1}"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden: bool = False) -> dict[str, Any]:
        """tokens [B N D], pooled f32 [B D], map [B h/32 w/32 D], pyramid: maps of strides 4, 8, 16 and 32.

        With `train` the statistics of the batch are used, and "batch_stats" must be mutable. `hidden` adds the stem, the
        output of every stage and the head by name.
        """
        x = Conv(STEM, 3, 2, self.dtype, self.padding, name="stem")(image.astype(self.dtype))
        x = _relu6(BatchNorm(self.epsilon, self.momentum, name="stem_norm")(x, train))
        kept, block = {"stem": x}, 0
        for stage, (kernel, stride, expansion, width, repeats) in enumerate(self.stages):
            for unit in range(repeats):
                rate = self.drop_path * block / max(self.depth - 1, 1) if self.drop_path else None
                fields = (kernel, 1 if unit else stride, expansion, width, self.padding, self.epsilon, self.momentum)
                x = InvertedResidual(*fields, self.dtype, rate, name=f"block_{block}")(x, train)
                block += 1
            kept[f"stage{stage}"] = x
        pyramid = tuple(kept[f"stage{stage}"] for stage in PYRAMID)
        x = Conv(HEAD, 1, 1, self.dtype, name="head")(x)
        x = kept["head"] = _relu6(BatchNorm(self.epsilon, self.momentum, name="head_norm")(x, train))
        return outputs(x, pyramid) | ({"hidden": kept} if hidden else {})


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the channels (left out for 1), depthwise with the stride, 1x1 to `width`."""

    kernel: int
    stride: int
    expansion: int
    width: int
    padding: Padding
    epsilon: float
    momentum: float
    dtype: str
    drop: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B h w C] to [B h/stride w/stride width]; with equal shapes x is added."""
        norm = lambda name: BatchNorm(self.epsilon, self.momentum, name=name)  # noqa: E731
        y, wide = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = _relu6(norm("expand_norm")(Conv(wide, 1, 1, self.dtype, name="expand")(y), train))
        y = Conv(wide, self.kernel, self.stride, self.dtype, self.padding, groups=wide, name="depthwise")(y)
        y = _relu6(norm("depthwise_norm")(y, train))
        y = norm("project_norm")(Conv(self.width, 1, 1, self.dtype, name="project")(y), train)
        return x + drop_branch(self, y, self.drop) if x.shape == y.shape else y


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


def _width(exact: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, the next one up if it loses more than a tenth."""
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def efficientnet(size: str, **fields: Any) -> EfficientNet:
    """An EfficientNet of one of SIZES; `fields` override EfficientNet's. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"EfficientNet size is {size!r}; expected one of {', '.join(SIZES)}")
    width, depth, side = SIZES[size]
    return EfficientNet(**{"image_size": side, "width_factor": width, "depth_factor": depth} | fields)
