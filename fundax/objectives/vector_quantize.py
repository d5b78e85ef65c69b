"""Vector-quantised autoencoder (VQ-VAE, arXiv:1711.00937), with which KeepFIT V2 compares the appearance of images.

KeepFIT V2 uses a frozen codebook of the VQGAN family, whose weights and training are not public. This one is our own:
the codebook is a moving average (appendix A.1 of the paper), and dead codes are re-initialised."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.encoders.layers import apply, l2_normalize
from fundax.encoders.pixels import normalize
from fundax.types import Batch, Extra, Metrics, Params, UserError

GRID = 4  # an appearance vector has the mean codes of GRID x GRID regions
_HALF = (0.5, 0.5, 0.5)


# Image size, widths of the levels, width and number of codes. base is our choice for 512 pixels.
SIZES = {
    "smoke": (32, (8, 8, 8), 8, 16),
    "tiny": (64, (32, 64, 128), 256, 256),
    "base": (512, (64, 128, 256, 256), 256, 16_384),
}


@dataclass(frozen=True)
class VectorQuantize:
    """loss = mean |x - y| + mean (x - y)^2 + commitment * mean (z - code)^2, for images x from -1 to 1.

    Every position of the encoder's map is replaced by the nearest of `codes` vectors, with a straight-through gradient.
    The codebook is in `extra`: a code is the moving average, with momentum `decay`, of the vectors assigned to it. Codes
    that are used less than `dead` times the average are re-initialised with vectors of the batch.
    """

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
        """Pixels per position of the map, along one side."""
        return 2 ** len(self.encoder.widths)

    @property
    def appearance(self) -> int:
        """Length of an appearance vector."""
        return GRID * GRID * self.encoder.embed

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]."""
        return {"image": jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.uint8)}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters {"encoder", "decoder"}, and the codebook in `extra`.

        No code has been used, so all count as dead: the first step initialises them with vectors of its batch.
        """
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
        """For `image`: codes i32 [B h w], quantized f32 [B h w D], appearance f32 [B A] of unit length, and rebuilt, the
        reconstruction f32 [B H W 3] from 0 to 1.
        """
        _, index, quantized = self._quantized(params, extra, batch["image"])
        rebuilt = self._rebuilt(params, quantized) / 2 + 0.5
        appearance = grid_means(quantized)
        return {"codes": index, "quantized": quantized, "appearance": appearance, "rebuilt": jnp.clip(rebuilt, 0, 1)}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Loss of `image`; the returned extra state has the updated codebook."""
        z, index, quantized = self._quantized(params, extra, batch["image"])
        straight = z + jax.lax.stop_gradient(quantized - z)
        target = normalize(batch["image"], _HALF, _HALF)
        error = self._rebuilt(params, straight) - target
        reconstruction = jnp.abs(error).mean() + jnp.square(error).mean()
        commitment = jnp.square(z - jax.lax.stop_gradient(quantized)).mean()
        vectors = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
        extra, used = self.update_codebook(extra, vectors, index.reshape(-1), rng)
        loss = reconstruction + self.commitment * commitment
        return loss, (extra, {"loss": loss, "reconstruction": reconstruction, "commitment": commitment} | used)

    def update_codebook(
        self, extra: Extra, vectors: jax.Array, index: jax.Array, rng: jax.Array
    ) -> tuple[Extra, Metrics]:
        """The codebook after vectors f32 [N D] were assigned to codes i32 [N], and metrics of its use."""
        chosen = jnp.zeros((self.codes,), jnp.float32).at[index].add(1.0)
        total = jnp.zeros((self.codes, vectors.shape[1]), jnp.float32).at[index].add(vectors)
        count = self.decay * extra["count"] + (1 - self.decay) * chosen
        summed = self.decay * extra["sum"] + (1 - self.decay) * total
        least = self.dead * len(vectors) / self.codes
        dead = count < least
        count = jnp.where(dead, 2 * least, count)  # enough to survive a few steps without being used
        drawn = vectors[jax.random.randint(rng, (self.codes,), 0, len(vectors))]
        summed = jnp.where(dead[:, None], drawn * count[:, None], summed)
        share = chosen / len(vectors)
        entropy = -(share * jnp.log(jnp.maximum(share, 1e-12))).sum()
        used = {"perplexity": jnp.exp(entropy), "codes_alive": 1 - dead.mean()}
        return {"codebook": summed / count[:, None], "count": count, "sum": summed}, used

    def _quantized(self, params: Params, extra: Extra, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Vectors f32 [B h w D] of the encoder, the nearest codes i32 [B h w], and their vectors."""
        pixels = normalize(image, _HALF, _HALF, self.encoder.dtype)
        z = apply(self.encoder, params["encoder"], pixels)
        book = extra["codebook"]
        # squared distances without |z|^2, which is the same for all codes
        distance = jnp.square(book).sum(1)[None, :] - 2 * z.reshape(-1, z.shape[-1]) @ book.T
        index = jnp.argmin(distance, axis=1).astype(jnp.int32).reshape(z.shape[:-1])
        return z, index, book[index]

    def _rebuilt(self, params: Params, quantized: jax.Array) -> jax.Array:
        return apply(self.decoder, params["decoder"], quantized)


def grid_means(fields: jax.Array, side: int = GRID) -> jax.Array:
    """Mean of a map [B h w D] over side x side regions, as unit vectors f32 [B side*side*D].

    Raises UserError if the map does not divide into the regions.
    """
    b, h, w, d = fields.shape
    if h % side or w % side:
        raise UserError(f"a map of {h} x {w} does not divide into {side} x {side} regions")
    means = fields.astype(jnp.float32).reshape(b, side, h // side, side, w // side, d).mean((2, 4))
    return l2_normalize(means.reshape(b, -1))


def vector_quantize(size: str, image_size: int = 0, dtype: str = "float32") -> VectorQuantize:
    """The model of a row of SIZES, or of other images than its own. Raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    side, widths, embed, codes = SIZES[size]
    encoder, decoder = ImageEncoder(widths, embed, dtype), ImageDecoder(widths, dtype)
    return VectorQuantize(encoder, decoder, image_size or side, codes=codes)
