"""Dense decoders for a ViT, UNETR and a linear one, and the functions that all segmentation and landmark models share.

A decoder maps the patch tokens of four blocks to a map of the image's size. VisionFM's form of UNETR (arXiv:2310.04992,
arXiv:2103.10504) follows its public code; golden tests compare the two. Channels are last: [B h w C].

The shared functions take an objective with the fields of `Maps`. Parameters are "image/..." and "decoder/..."; the
decoder's batch statistics, of the global batch on any mesh, are in `extra`, with those of a convolutional encoder, which stay as
they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.backbone import Convolutional, VisionEncoder, apply_encoder
from fundax.encoders.convolution import BatchNorm
from fundax.encoders.pixels import normalize
from fundax.encoders.vit import ViT, chosen_layers
from fundax.types import Extra, Params, UserError

if TYPE_CHECKING:
    from fundax.encoders.pyramid import FPN

LEVELS = 4
OF_A_VIT = "the decoder of a ViT does not use it; leave it out"


def decoder_blocks(depth: int) -> tuple[int, ...]:
    """The four blocks, counted from 0, that a decoder reads: VisionFM's for depth 12 and 24, else evenly spaced.

    Raises UserError for a ViT with fewer than four blocks.
    """
    if depth == 12:
        return (3, 5, 7, 11)
    if depth < LEVELS:
        raise UserError(
            f"a decoder reads {LEVELS} blocks, and the encoder has {depth}; name the blocks, or use another encoder"
        )
    return tuple(depth * (i + 1) // LEVELS - 1 for i in range(LEVELS))


class UNETR(nn.Module):
    """UNETR decoder: tokens of four blocks, and the image, to K logits per pixel.

    Four levels at 1/8, 1/4, 1/2 and the full resolution have 4, 2, 1 and 1/2 `width` channels. The first three
    concatenate upsampled tokens, the last the image. Tokens have 1/16 of the resolution for a patch of 16. For a patch
    of 8 the first transposed convolutions do not enlarge, and for 32 they enlarge fourfold; other patch sizes are
    decoded as the nearest of these, and the result is resized.

    outputs: K. start: initial bias of the logits; with -3 few pixels belong to any structure at first, which saves many
        steps for small structures (arXiv:1708.02002, section 3.3).
    dropout: dropout rate of whole channels; active if the caller passes a "dropout" rng.

    With `train` the batch norms use batch statistics, which are in the collection "batch_stats".
    """

    IGNORES: ClassVar[Mapping[str, str]] = {"decoder_stride": OF_A_VIT}  # arguments of a config, and why

    outputs: int
    patch: int = 16
    width: int = 32
    dropout: float = 0.3
    start: float = 0.0
    dtype: str = "float32"

    @property
    def first(self) -> int:
        """Enlargement by the first transposed convolution of every path."""
        return 1 if self.patch <= 8 else 2 if self.patch < 24 else 4

    @nn.compact
    def __call__(self, tokens: tuple[jax.Array, ...], image: jax.Array, train: bool = False) -> jax.Array:
        """Logits f32 [B h w K] from four token arrays [B N D], earliest block first, and normalised images [B h w 3]."""
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        z3, z6, z9, z12 = (_as_map(z, grid).astype(self.dtype) for z in _four(tokens))
        side = (grid[0] * 8 * self.first, grid[1] * 8 * self.first)
        picture = resized(image.astype(self.dtype), side)
        x = self._level(1, z12, self._skip(1, z9, train), train)
        x = self._level(2, x, self._skip(2, z6, train), train)
        x = self._level(3, x, self._skip(3, z3, train), train)
        for i in range(2):
            picture = self._conv(f"s4_conv{i}", LEVELS, picture, train)
        x = self._level(4, x, picture, train)
        if train and self.dropout > 0 and self.has_rng("dropout"):
            x = drop_channels(x, self.make_rng("dropout"), self.dropout)
        logits = _dense(self, x.shape[-1])(x).astype(jnp.float32)
        return resized(logits, (image.shape[1], image.shape[2]))

    def _channels(self, level: int) -> int:
        return self.width * 2 ** (3 - level) if level < LEVELS else self.width // 2

    def _conv(self, name: str, level: int, x: jax.Array, train: bool) -> jax.Array:
        return ConvNorm(self._channels(level), self.dtype, name=name)(x, train)

    def _up(self, name: str, level: int, x: jax.Array, times: int) -> jax.Array:
        return Enlarge(self._channels(level), times, self.dtype, name=name)(x)

    def _skip(self, level: int, z: jax.Array, train: bool) -> jax.Array:
        """Upsample tokens [B h w D] to the resolution of a level, in as many steps."""
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
    """Dropout of whole channels of x [B h w C], independently for each image (arXiv:1411.4280, section 3.2)."""
    kept = jax.random.bernoulli(rng, 1 - rate, (len(x), 1, 1, x.shape[-1]))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Linear(nn.Module):
    """Linear decoder: concatenated tokens of the blocks, one linear layer, bilinear upsampling to f32 [B h w K].

    Half-pixel centres, clamped at the edges. Fields and arguments are UNETR's; training and evaluation are the same.
    """

    IGNORES: ClassVar[Mapping[str, str]] = {
        **UNETR.IGNORES,
        **dict.fromkeys(("width", "dropout"), "the linear head does not use it; leave it out, or give --head unetr"),
    }

    outputs: int
    patch: int = 16
    start: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: tuple[jax.Array, ...], image: jax.Array, train: bool = False) -> jax.Array:
        """See UNETR."""
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        z = jnp.concatenate([_as_map(z, grid).astype(self.dtype) for z in tokens], -1)
        logits = _dense(self, z.shape[-1])(z).astype(jnp.float32)
        return resized(logits, (image.shape[1], image.shape[2]))


class Enlarge(nn.Module):
    """Transposed convolution with equal size and stride: every position becomes a square of `times` by `times`.

    kernel [C times times width]. Biases start at 0, as in ConvNorm, whose norm cancels them: random ones would only add
    compile time.
    """

    width: int
    times: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B h w C] to [B times*h times*w width]."""
        b, h, w, c = x.shape
        initial = layers.uniform(
            (self.width * self.times**2) ** -0.5
        )  # PyTorch's fan-in of a transposed convolution counts its outputs
        kernel = self.param("kernel", initial, (c, self.times, self.times, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        y = layers.product(x, kernel).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h * self.times, w * self.times, self.width) + bias.reshape(1, 1, 1, -1)


class ConvNorm(nn.Module):
    """3x3 convolution with bias, batch norm and ReLU: [B h w C] to [B h w width]; kernel [3 3 C width]."""

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
    """The output layer at every position, with PyTorch's initial values of a 1x1 convolution."""
    start = nn.initializers.constant(decoder.start)
    return layers.Dense(decoder.outputs, layers.uniform(fan_in**-0.5), start, decoder.dtype, name="out")


def _four(tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    if len(tokens) != LEVELS:
        raise UserError(f"UNETR reads {LEVELS} blocks, got {len(tokens)}")
    return tokens


def _as_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Reshape tokens [B N D] to [B rows columns D], without the class token if there is one."""
    rows, columns = grid
    extra = tokens.shape[1] - rows * columns
    if extra not in (0, 1):
        raise UserError(f"{tokens.shape[1]} tokens for a grid of {rows} x {columns} patches")
    return tokens[:, extra:].reshape(len(tokens), rows, columns, -1)


def resized(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear interpolation with half-pixel centres, clamped at the edges; unchanged if the size is right."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear", antialias=False).astype(x.dtype)


class Maps(Protocol):
    """Fields of an objective with a dense decoder: an encoder, a decoder that reads its `blocks`, and normalisation.

    blocks: of a ViT; () for a convolutional encoder, whose pyramid an FPN reads.
    frozen: the encoder is not trained.
    """

    @property
    def image(self) -> VisionEncoder: ...
    @property
    def decoder(self) -> UNETR | Linear | FPN: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    @property
    def frozen(self) -> bool: ...


def init(model: Maps, rng: jax.Array) -> tuple[Params, Extra]:
    """Initial parameters, and batch statistics if encoder or decoder have any. Raises UserError if the parts do not fit."""
    check(model)
    first, second = jax.random.split(rng)
    side = model.image.image_size
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    encoder = model.image.init(first, image)
    extra: Extra = {"image": encoder["batch_stats"]} if "batch_stats" in encoder else {}
    read = jax.eval_shape(lambda params: _read(model, params, extra, image), encoder["params"])
    decoder = dict(model.decoder.init(second, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), read), image))
    return {"image": encoder["params"], "decoder": decoder.pop("params")}, extra | decoder


def check(model: Maps) -> None:
    """Raise UserError if encoder and decoder do not fit: in kind, in patch size, or because a block is missing."""
    image, decoder = model.image, model.decoder
    if isinstance(image, Convolutional):
        if isinstance(decoder, UNETR | Linear):
            raise UserError(
                f"{type(decoder).__name__} reads the blocks of a ViT; a {type(image).__name__} needs an FPN"
            )
        return
    if not isinstance(decoder, UNETR | Linear):
        raise UserError("an FPN reads the maps of a convolutional encoder; a ViT needs a UNETR or Linear")
    if image.patch != decoder.patch:
        raise UserError(f"the encoder has patches of {image.patch}, the decoder of {decoder.patch}")
    if image.image_size % image.patch:
        raise UserError(f"patches of {image.patch} do not fill an image of {image.image_size} pixels")
    if wrong := [block for block in model.blocks if not 0 <= block < image.depth]:
        raise UserError(f"the decoder reads block {wrong[0]}, but the encoder has 0 to {image.depth - 1}")


def _read(
    model: Maps, params: Params, extra: Extra, image: jax.Array, rngs: dict[str, jax.Array] | None = None
) -> tuple[jax.Array, ...]:
    """What the decoder reads: tokens [B N D] of a ViT's blocks, or the pyramid of a convolutional encoder."""
    if isinstance(model.image, ViT):
        return chosen_layers(model.image, params, image, model.blocks, rngs)
    return apply_encoder(model.image, params, extra, image, rngs=rngs)[0]["pyramid"]


def _decoder_variables(params: Params, extra: Extra) -> dict[str, Any]:
    return {"params": params["decoder"], **{name: extra[name] for name in extra if name == "batch_stats"}}


def logits(model: Maps, params: Params, extra: Extra, image: Any) -> jax.Array:
    """Logits f32 [B h w K] of images [B h w 3], with running statistics and without dropout."""
    return decoded(model, params, extra, *encoded(model, params, extra, image))


def encoded(model: Maps, params: Params, extra: Extra, image: Any) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """What the decoder reads of images [B h w 3]: the maps of the encoder, and the normalised images."""
    image = normalize(image, model.mean, model.std, model.image.dtype)
    return _read(model, params["image"], extra, image), image


def decoded(model: Maps, params: Params, extra: Extra, maps: tuple[jax.Array, ...], image: jax.Array) -> jax.Array:
    """Logits f32 [B h w K] from what `encoded` returns."""
    return model.decoder.apply(_decoder_variables(params, extra), maps, image)  # type: ignore[return-value]


def training_logits(model: Maps, params: Params, extra: Extra, image: Any, rng: jax.Array) -> tuple[jax.Array, Extra]:
    """Logits with the decoder's batch statistics and dropout, and the updated running statistics.

    A frozen encoder runs as in evaluation and gets no gradient.
    """
    image = normalize(image, model.mean, model.std, model.image.dtype)
    drop, path = jax.random.split(rng)
    rngs = None if model.frozen or not model.image.drop_path else {"drop_path": path}
    read = _read(model, params["image"], extra, image, rngs)
    if model.frozen:
        read = jax.lax.stop_gradient(read)
    variables = _decoder_variables(params, extra)
    out, moved = model.decoder.apply(
        variables, read, image, train=True, mutable=["batch_stats"], rngs={"dropout": drop}
    )
    return out, extra | dict(moved)  # type: ignore[return-value]
