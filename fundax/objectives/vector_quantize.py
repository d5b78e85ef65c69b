"""A vector-quantised autoencoder of eyes (arXiv:1711.00937): what KeepFIT V2 compares appearances by.

V2's successor uses a frozen codebook of the VQGAN family; its weights and its training are not public, so this one is
ours, trained on eyes: a codebook by moving averages (appendix A.1 of the paper), unused codes brought back to life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.encoders.layers import l2_normalize
from fundax.encoders.pixels import normalize
from fundax.types import Batch, Extra, Metrics, Params, UserError

GRID = 4  # an appearance is the mean of GRID x GRID fields


_HALF = (0.5, 0.5, 0.5)


# Image size, widths of the levels, width and number of codes. base is our choice for 512 pixels.
SIZES = {
    "smoke": (32, (8, 8, 8), 8, 16),
    "tiny": (64, (32, 64, 128), 256, 256),
    "base": (512, (64, 128, 256, 256), 256, 16_384),
}


@dataclass(frozen=True)
class VectorQuantize:
    """loss = mean |x - y| + mean (x - y)^2 + commitment * mean (z - code)^2, in images from -1 to 1.

    A field of the map takes the nearest of `codes` vectors; gradients pass it as if it had not (straight through).
    `extra` holds the codebook: every code is the moving average (`decay`) of the vectors that chose it. A code chosen
    less than `dead` times as often as it would be if all were alike is put on a vector drawn from the batch.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)

    encoder: ImageEncoder
    decoder: ImageDecoder
    image_size: int = 512
    codes: int = 16_384
    decay: float = 0.99
    commitment: float = 0.25
    dead: float = 0.02

    def __post_init__(self) -> None:
        smallest = GRID * self.factor
        if self.image_size % smallest:
            raise UserError(f"VectorQuantize: image_size is {self.image_size}; expected a multiple of {smallest}")

    @property
    def factor(self) -> int:
        """Pixels along the side of a field."""
        return 2 ** len(self.encoder.widths)

    @property
    def appearance(self) -> int:
        """Length of an appearance vector."""
        return GRID * GRID * self.encoder.embed

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]."""
        return {"image": jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.uint8)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Parameters {"encoder", "decoder"}, and in `extra` the codebook; no code has been chosen, so all are dead: the
        first step puts them on vectors of its batch."""
        keys = jax.random.split(rng, 3)
        width = self.encoder.embed
        pixels = normalize(batch["image"][:1], _HALF, _HALF, self.encoder.dtype)
        params = {
            "encoder": self.encoder.init(keys[0], pixels)["params"],
            "decoder": self.decoder.init(keys[1], jnp.zeros((1, 1, 1, width), jnp.float32))["params"],
        }
        vectors = jax.random.normal(keys[2], (self.codes, width), jnp.float32)
        zeros = jnp.zeros((self.codes,), jnp.float32)
        return params, {"codebook": vectors, "count": zeros, "sum": jnp.zeros_like(vectors)}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """For `image`: codes i32 [B h w], quantized f32 [B h w D], appearance f32 [B A] of unit length, and rebuilt,
        f32 [B H W 3] from 0 to 1.
        """
        _, index, quantized = self._quantized(params, extra, batch["image"])
        rebuilt = self._rebuilt(params, quantized) / 2 + 0.5
        appearance = grid_means(quantized)
        return {"codes": index, "quantized": quantized, "appearance": appearance, "rebuilt": jnp.clip(rebuilt, 0, 1)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Needs `image`; the codebook in the extra state it returns has moved."""
        del step
        z, index, quantized = self._quantized(params, extra, batch["image"])
        straight = z + jax.lax.stop_gradient(quantized - z)
        target = normalize(batch["image"], _HALF, _HALF)
        error = self._rebuilt(params, straight) - target
        rebuilding = jnp.abs(error).mean() + jnp.square(error).mean()
        apart = jnp.square(z - jax.lax.stop_gradient(quantized)).mean()
        vectors = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
        extra, used = self.moved(extra, vectors, index.reshape(-1), rng)
        loss = rebuilding + self.commitment * apart
        return loss, (extra, {"loss": loss, "rebuilding": rebuilding, "commitment": apart} | used)

    def moved(self, extra: Extra, vectors: jax.Array, index: jax.Array, rng: jax.Array) -> tuple[Extra, Metrics]:
        """The codebook after vectors f32 [N D] have chosen codes i32 [N], and how it was used."""
        chosen = jnp.zeros((self.codes,), jnp.float32).at[index].add(1.0)
        total = jnp.zeros((self.codes, vectors.shape[1]), jnp.float32).at[index].add(vectors)
        count = self.decay * extra["count"] + (1 - self.decay) * chosen
        summed = self.decay * extra["sum"] + (1 - self.decay) * total
        least = self.dead * len(vectors) / self.codes
        dead = count < least
        count = jnp.where(dead, 2 * least, count)  # it lives some steps before it may die again
        drawn = vectors[jax.random.randint(rng, (self.codes,), 0, len(vectors))]
        summed = jnp.where(dead[:, None], drawn * count[:, None], summed)
        share = chosen / len(vectors)
        entropy = -(share * jnp.log(jnp.maximum(share, 1e-12))).sum()
        used = {"perplexity": jnp.exp(entropy), "codes_alive": 1 - dead.mean()}
        return {"codebook": summed / count[:, None], "count": count, "sum": summed}, used

    def _quantized(self, params: Params, extra: Extra, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Vectors f32 [B h w D], the nearest codes i32 [B h w], and these codes' vectors."""
        pixels = normalize(image, _HALF, _HALF, self.encoder.dtype)
        z: Any = self.encoder.apply({"params": params["encoder"]}, pixels)
        book = extra["codebook"]
        # |z|^2 is the same for all codes
        distance = jnp.square(book).sum(1)[None, :] - 2 * z.reshape(-1, z.shape[-1]) @ book.T
        index = jnp.argmin(distance, axis=1).astype(jnp.int32).reshape(z.shape[:-1])
        return z, index, book[index]

    def _rebuilt(self, params: Params, quantized: jax.Array) -> jax.Array:
        found: Any = self.decoder.apply({"params": params["decoder"]}, quantized)
        return found


def grid_means(fields: jax.Array, side: int = GRID) -> jax.Array:
    """A map [B h w D] to means over side x side fields, one vector f32 [B side*side*D] of unit length.

    Raises UserError where the map does not divide.
    """
    b, h, w, d = fields.shape
    if h % side or w % side:
        raise UserError(f"a map of {h} x {w} does not divide into {side} x {side} fields")
    means = fields.astype(jnp.float32).reshape(b, side, h // side, side, w // side, d).mean((2, 4))
    return l2_normalize(means.reshape(b, -1))


def vector_quantize(size: str, image_size: int = 0, dtype: str = "float32") -> VectorQuantize:
    """The model of a row of SIZES, or of other images than its own. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    side, widths, embed, codes = SIZES[size]
    encoder, decoder = ImageEncoder(widths, embed, dtype), ImageDecoder(widths, dtype)
    return VectorQuantize(encoder, decoder, image_size or side, codes=codes)
