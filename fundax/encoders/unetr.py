"""Decoders from the patch tokens of four blocks of a ViT to a map of the image's own size: UNETR's, and a linear one.

VisionFM segments and finds landmarks with the first (arXiv:2310.04992; its form of UNETR, arXiv:2103.10504); sizes, names
and arithmetic are those of its public code, held to it by golden tests. Channels are last here, [B h w C].

A ViT and a decoder of maps as one model: what segmentation and landmarks share.

Pure functions of an objective that has the fields of `Maps`. Parameters are "image/..." and "decoder/..."; the decoder's
batch statistics are carried in `extra`, of the whole global batch on any mesh."""

from __future__ import annotations

from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.pixels import normalize
from fundax.encoders.resnet import BatchNorm
from fundax.encoders.vit import ViT, chosen_layers
from fundax.types import Extra, Params, UserError

LEVELS = 4


def decoder_blocks(depth: int) -> tuple[int, ...]:
    """Which four blocks (from 0) a decoder reads: VisionFM's 3, 5, 7, 11 of 12 and 5, 11, 17, 23 of 24, else evenly.

    Raises UserError for a ViT of fewer than four blocks.
    """
    if depth == 12:
        return (3, 5, 7, 11)
    if depth < LEVELS:
        raise UserError(
            f"a decoder reads {LEVELS} blocks, and the encoder has {depth}; name the blocks, or take another"
        )
    return tuple(depth * (i + 1) // LEVELS - 1 for i in range(LEVELS))


class UNETR(nn.Module):
    """Tokens of four blocks and the image to K numbers per pixel; with `train`, statistics of the batch and dropout.

    Three levels join what comes from below with tokens brought to that resolution, the fourth with the image itself:
    1/8, 1/4, 1/2 and all of the image's resolution, of 4, 2, 1 and 1/2 times `width` channels. The tokens' own
    resolution is 1/16 at a patch of 16; at 8 the first transposed convolutions enlarge nothing, at 32 fourfold. Other
    patches are decoded as the nearest of these, on a map of another size that is then resized.
    start: where the biases of the outputs begin; -3 says at first that little of an image belongs to any structure
    (arXiv:1708.02002, section 3.3), which spares small ones many steps.
    Batch statistics are the collection "batch_stats"; dropout of whole channels needs a "dropout" rng to act.
    """

    outputs: int
    patch: int = 16
    width: int = 32
    dropout: float = 0.3
    start: float = 0.0
    dtype: str = "float32"

    @property
    def first(self) -> int:
        """How far the first transposed convolution of every path enlarges."""
        return 1 if self.patch <= 8 else 2 if self.patch < 24 else 4

    @nn.compact
    def __call__(self, tokens: tuple[jax.Array, ...], image: jax.Array, train: bool = False) -> jax.Array:
        """tokens: four times [B N D], the earliest block first; image [B h w 3], normalised; f32 [B h w K]."""
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        z3, z6, z9, z12 = (_as_map(z, grid).astype(self.dtype) for z in _four(tokens))
        side = (grid[0] * 8 * self.first, grid[1] * 8 * self.first)
        picture = _resized(image.astype(self.dtype), side)
        x = self._level(1, z12, self._skip(1, z9, train), train)
        x = self._level(2, x, self._skip(2, z6, train), train)
        x = self._level(3, x, self._skip(3, z3, train), train)
        for i in range(2):
            picture = self._conv(f"s4_conv{i}", LEVELS, picture, train)
        x = self._level(4, x, picture, train)
        if train and self.dropout > 0 and self.has_rng("dropout"):
            x = drop_channels(x, self.make_rng("dropout"), self.dropout)
        logits = _dense(self, x.shape[-1])(x).astype(jnp.float32)
        return _resized(logits, (image.shape[1], image.shape[2]))

    def _channels(self, level: int) -> int:
        return self.width * 2 ** (3 - level) if level < LEVELS else self.width // 2

    def _conv(self, name: str, level: int, x: jax.Array, train: bool) -> jax.Array:
        return ConvNorm(self._channels(level), self.dtype, name=name)(x, train)

    def _up(self, name: str, level: int, x: jax.Array, times: int) -> jax.Array:
        return Enlarge(self._channels(level), times, self.dtype, name=name)(x)

    def _skip(self, level: int, z: jax.Array, train: bool) -> jax.Array:
        """Tokens [B h w D] brought to the resolution of a level by as many steps."""
        for i in range(level):
            z = self._up(f"s{level}_up{i}", level, z, 2 if i else self.first)
            z = self._conv(f"s{level}_conv{i}", level, z, train)
        return z

    def _level(self, level: int, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        x = self._up(f"up{level}", level, x, 2 if level > 1 else self.first)
        x = jnp.concatenate([x, skip], -1)
        for i in range(2):
            x = self._conv(f"conv{level}_{i}", level, x, train)
        return x


def drop_channels(x: jax.Array, rng: jax.Array, rate: float) -> jax.Array:
    """x [B h w C] without a part `rate` of the channels of each image, the others larger by as much (arXiv:1411.4280, 3.2)."""
    kept = jax.random.bernoulli(rng, 1 - rate, (len(x), 1, 1, x.shape[-1]))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Linear(nn.Module):
    """Tokens of four blocks side by side, one product for each patch, enlarged to the image: f32 [B h w K].

    The enlarging is bilinear with half-pixel centres, clamped at the edges. Fields and arguments are UNETR's.
    """

    outputs: int
    patch: int = 16
    start: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: tuple[jax.Array, ...], image: jax.Array, train: bool = False) -> jax.Array:
        """See UNETR; there is nothing here that training does differently."""
        del train
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        z = jnp.concatenate([_as_map(z, grid).astype(self.dtype) for z in tokens], -1)
        logits = _dense(self, z.shape[-1])(z).astype(jnp.float32)
        return _resized(logits, (image.shape[1], image.shape[2]))


class Enlarge(nn.Module):
    """A transposed convolution whose stride is its size: every position becomes a square of `times` by `times`.

    kernel [C times times width]; with times 1 it is a product at each position. Biases begin at 0, as in ConvNorm, where
    the norm takes them out anyway: half as many random numbers to compile.
    """

    width: int
    times: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C] to [B times*h times*w width]."""
        b, h, w, c = x.shape
        initial = layers.uniform((self.width * self.times**2) ** -0.5)  # torch counts the outputs of a transposed one
        kernel = self.param("kernel", initial, (c, self.times, self.times, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        y = layers.product(x, kernel).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h * self.times, w * self.times, self.width) + bias.reshape(1, 1, 1, -1)


class ConvNorm(nn.Module):
    """A 3x3 convolution with bias, batch normalisation, ReLU: [B h w C] to [B h w width]; kernel [3 3 C width]."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        initial = layers.uniform((9 * x.shape[-1]) ** -0.5)
        kernel = self.param("kernel", initial, (3, 3, x.shape[-1], self.width), jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout)
        return jax.nn.relu(BatchNorm(name="norm")(x + bias.reshape(1, 1, 1, -1), train))


def _dense(decoder: UNETR | Linear, fan_in: int) -> layers.Dense:
    """The outputs at every position, with torch's initial values of a convolution's kernel."""
    start = nn.initializers.constant(decoder.start)
    return layers.Dense(decoder.outputs, layers.uniform(fan_in**-0.5), start, decoder.dtype, name="out")


def _four(tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    if len(tokens) != LEVELS:
        raise UserError(f"UNETR reads {LEVELS} blocks, got {len(tokens)}")
    return tokens


def _as_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """[B N D] to [B rows columns D], row by row; a class token in front is left out."""
    rows, columns = grid
    extra = tokens.shape[1] - rows * columns
    if extra not in (0, 1):
        raise UserError(f"{tokens.shape[1]} tokens for a grid of {rows} x {columns} patches")
    return tokens[:, extra:].reshape(len(tokens), rows, columns, -1)


def _resized(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear, half-pixel centres, clamped at the edges; nothing where the size is right."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear", antialias=False).astype(x.dtype)


class Maps(Protocol):
    """image: the encoder; decoder: reads `blocks` of it; `frozen`: the encoder takes no part in learning.

    mean, std: of RGB in [0, 1], by which images u8 are normalised.
    """

    @property
    def image(self) -> ViT: ...
    @property
    def decoder(self) -> UNETR | Linear: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    @property
    def frozen(self) -> bool: ...


def init(model: Maps, rng: jax.Array) -> tuple[Params, Extra]:
    """Fresh parameters and, for a decoder that has them, batch statistics. Raises UserError where the parts do not fit."""
    check(model)
    first, second = jax.random.split(rng)
    side = model.image.image_size
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    params = {"image": model.image.init(first, image)["params"]}
    tokens = (jnp.zeros((1, (side // model.image.patch) ** 2, model.image.width)),) * len(model.blocks)
    decoder = dict(model.decoder.init(second, tokens, image))
    return params | {"decoder": decoder.pop("params")}, decoder


def check(model: Maps) -> None:
    """Raises UserError for patches that differ, an image the patches do not fill, or a number of blocks."""
    if model.image.patch != model.decoder.patch:
        raise UserError(f"the encoder has patches of {model.image.patch}, the decoder of {model.decoder.patch}")
    if model.image.image_size % model.image.patch:
        raise UserError(f"patches of {model.image.patch} do not fill an image of {model.image.image_size} pixels")
    if wrong := [block for block in model.blocks if not 0 <= block < model.image.depth]:
        raise UserError(f"the decoder reads block {wrong[0]}, the encoder has 0 to {model.image.depth - 1}")


def logits(model: Maps, params: Params, extra: Extra, image: Any) -> jax.Array:
    """f32 [B h w K] of images u8 (or normalised, floating) [B h w 3], by the running statistics, nothing dropped."""
    image = normalize(image, model.mean, model.std, model.image.dtype)
    tokens = chosen_layers(model.image, params["image"], image, model.blocks)
    return model.decoder.apply({"params": params["decoder"], **extra}, tokens, image)  # type: ignore[return-value]


def training_logits(model: Maps, params: Params, extra: Extra, image: Any, rng: jax.Array) -> tuple[jax.Array, Extra]:
    """As `logits`, by the statistics of the batch and with dropout; and the statistics moved on.

    A frozen encoder runs as in evaluation, and no gradient reaches it.
    """
    image = normalize(image, model.mean, model.std, model.image.dtype)
    drop, path = jax.random.split(rng)
    rngs = None if model.frozen or not model.image.drop_path else {"drop_path": path}
    tokens = chosen_layers(model.image, params["image"], image, model.blocks, rngs)
    if model.frozen:
        tokens = jax.lax.stop_gradient(tokens)
    variables = {"params": params["decoder"], **extra}
    out, moved = model.decoder.apply(
        variables, tokens, image, train=True, mutable=["batch_stats"], rngs={"dropout": drop}
    )
    return out, dict(moved)  # type: ignore[return-value]
