"""ConvNeXt (arXiv:2201.03545), as torchvision's and timm's convnext_tiny.

Source: the layouts in the public repositories pytorch/vision and huggingface/pytorch-image-models."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from fundax.encoders.convolution import Conv
from fundax.encoders.layers import Dense, Initializer, LayerNorm, LayerScale, drop_branch, gelu_exact
from fundax.encoders.resnet import outputs
from fundax.types import UserError

# Width of each stage, and its number of blocks
SIZES = {
    "convnext-smoke": ((8, 16), (1, 1)),
    "convnext-tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
}
_initial: Initializer = nn.initializers.truncated_normal(0.02)


class ConvNeXt(nn.Module):
    """Images [B h w 3] to a feature map, its positions as tokens [B N D], and their normalised mean as pooled [B D].

    There are no batch statistics. `image_size` is the size of training batches; the model accepts any size that 32
    divides. `drop_path` is the stochastic depth of the last block, rising linearly from 0.
    """

    image_size: int = 224
    widths: tuple[int, ...] = (96, 192, 384, 768)
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    epsilon: float = 1e-6
    drop_path: float = 0.0
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """D, the width of tokens and pooled."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.blocks)

    @property
    def last_unit(self) -> str:
        """Name of the module that computes the last feature map."""
        return f"block_{self.depth - 1}"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, hidden: bool = False) -> dict[str, Any]:
        """tokens [B N D], pooled f32 [B D], map [B h/32 w/32 D], pyramid: the maps of all stages (strides 4, 8, 16, 32).

        `hidden` adds the stem and the output of every stage by name; `train` changes nothing.
        """
        del train
        x = Conv(self.widths[0], 4, 4, self.dtype, "none", bias=True, initial=_initial, name="stem")(
            image.astype(self.dtype)
        )
        x = LayerNorm(self.epsilon, name="stem_norm")(x)
        kept, block = {"stem": x}, 0
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if stage:
                x = LayerNorm(self.epsilon, name=f"reduce{stage}_norm")(x)
                conv = Conv(width, 2, 2, self.dtype, "none", bias=True, initial=_initial, name=f"reduce{stage}")
                x = conv(x)
            for _ in range(count):
                rate = self.drop_path * block / max(self.depth - 1, 1) if self.drop_path else None
                x = ConvNeXtBlock(width, self.epsilon, self.dtype, rate, name=f"block_{block}")(x)
                block += 1
            kept[f"stage{stage + 1}"] = x
        out = outputs(x, tuple(list(kept.values())[1:]))
        out["pooled"] = LayerNorm(self.epsilon, name="norm")(out["pooled"])
        return out | ({"hidden": kept} if hidden else {})


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, layer norm, an MLP with four times the width and a layer scale, added to x."""

    width: int
    epsilon: float
    dtype: str
    drop: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C]; the same shape."""
        conv = Conv(self.width, 7, 1, self.dtype, groups=self.width, bias=True, initial=_initial, name="depthwise")
        y = LayerNorm(self.epsilon, name="norm")(conv(x)).reshape(-1, self.width)  # products of two axes are faster
        y = gelu_exact(Dense(4 * self.width, _initial, dtype=self.dtype, name="fc1")(y))
        y = LayerScale(self.width, 1e-6, name="layer_scale")(
            Dense(self.width, _initial, dtype=self.dtype, name="fc2")(y)
        )
        return x + drop_branch(self, y.reshape(x.shape), self.drop)


def convnext(size: str, **fields: Any) -> ConvNeXt:
    """A ConvNeXt of one of SIZES; `fields` override ConvNeXt's. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"ConvNeXt size is {size!r}; expected one of {', '.join(SIZES)}")
    widths, blocks = SIZES[size]
    return ConvNeXt(**{"widths": widths, "blocks": blocks} | fields)
