"""Diffusion of images (arXiv:2006.11239, in continuous time): a U-Net predicts the noise; its averaged weights draw.

VisionFM makes its synthetic images this way, with github.com/lucidrains/imagen-pytorch: a base model of small images and
a super-resolution model that is conditioned on them, both without text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fundax.encoders.unet import UNet
from fundax.losses import diffusion as noising
from fundax.types import Batch, Extra, Metrics, Params, UserError

PROBED = (0.2, 0.4, 0.6, 0.8)  # times at which `forward` measures the error


SAMPLERS = ("ddim", "ddpm")


# Of the two stages of a cascade: pixels, U-Nets, and what they predict with which threshold. base has VisionFM's two
# U-Nets, imagen-pytorch's BaseUnet64 (at dim 256) and SRUnet256; small is between.
SIZES: dict[str, tuple[tuple[int, int], tuple[UNet, UNet], Literal["noise", "velocity"], float]] = {
    "smoke": ((8, 16), (UNet(8, (1,), (1,), (True,), heads=2),) * 2, "noise", 95.0),
    "tiny": (
        (32, 64),
        (
            UNet(32, (1, 2, 4), (1, 1, 1), (False, True, True)),
            UNet(16, (1, 2, 4), (1, 1, 1), (False, False, True)),
        ),
        "velocity",
        0.0,
    ),
    "small": ((64, 128), (UNet(64), UNet(64)), "noise", 95.0),
    "base": (
        (64, 256),
        (
            UNet(256, (1, 2, 3, 4), (3, 3, 3, 3), (False, True, True, True), heads=8),
            UNet(128, (1, 2, 4, 8), (2, 4, 8, 8), (False, False, False, True), heads=8),
        ),
        "noise",
        95.0,
    ),
}


@dataclass(frozen=True)
class Diffusion:
    """Predict the noise at a random time, mean squared error; params is the U-Net, extra its running average.

    With `low_size` the model is the super-resolution stage of a cascade: it sees the image at that size, noised at a
    random time too. With `modalities` or `findings` (how many there are) it is conditioned on the batch's `modality`
    i32 [B] and `findings` f32 [B F], which `drop_condition` of the images do without: classifier-free guidance
    (arXiv:2207.12598). `min_snr` > 0 weighs errors as arXiv:2303.09556 does; VisionFM's version of the library may not.

    predicts: what the U-Net gives. From "velocity" (alpha e - sigma x_0, arXiv:2202.00512) the image follows without a
        division by alpha, so that a small model keeps its colours where there is almost only noise; its squared error is
        the loss then.
    threshold: percentile of the dynamic thresholding of sampled images; 0 clips them to their range.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)  # and what the model is conditioned on; see spec

    unet: UNet
    size: int
    low_size: int = 0
    modalities: int = 0
    findings: int = 0
    drop_condition: float = 0.1
    momentum: float = 0.999  # of the running average, which early steps move faster: at most (1 + step) / (10 + step)
    min_snr: float = 0.0
    predicts: Literal["noise", "velocity"] = "noise"
    threshold: float = 95.0

    def __post_init__(self) -> None:
        if self.low_size and (self.size % self.low_size or self.low_size == self.size):
            raise UserError(f"size {self.size} is no multiple of the low-resolution size {self.low_size}")
        if self.unet.low != bool(self.low_size) or self.unet.condition != self.condition_width:
            raise UserError(
                f"the UNet has low={self.unet.low}, condition={self.unet.condition}; this Diffusion needs "
                f"low={bool(self.low_size)}, condition={self.condition_width}"
            )

    @property
    def condition_width(self) -> int:
        """Of the vector that the U-Net is given: modality, findings, and a 1; 0 where there is no condition."""
        return self.modalities + self.findings + 1 if self.modalities or self.findings else 0

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]; modality i32 [B] and findings f32 [B F] where the model is conditioned on them."""
        shapes: dict[str, Any] = {"image": ((self.size, self.size, 3), jnp.uint8)}
        if self.modalities:
            shapes["modality"] = ((), jnp.int32)
        if self.findings:
            shapes["findings"] = ((self.findings,), jnp.float32)
        return {key: jax.ShapeDtypeStruct((batch, *shape), dtype) for key, (shape, dtype) in shapes.items()}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """A fresh U-Net, and an average that is its copy."""
        x = jnp.zeros((1, self.size, self.size, 3))
        low = (x, jnp.zeros(1)) if self.low_size else ()
        condition = jnp.zeros((1, self.condition_width)) if self.condition_width else None
        params = {"unet": self.unet.init(rng, x, jnp.zeros(1), condition, *low)["params"]}
        return params, {"average": jax.tree.map(jnp.copy, params)}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Of the averaged weights, for the keys the batch has.

        `image` u8 [B h w 3] to `noise_error` f32 [B 4], the mean squared error at PROBED times under fixed noise;
        `seed` i32 [B] to `sample` u8 [B h w 3], an image for each seed (DDIM, 50 steps; a cascade's second stage needs
        `low` too).
        """
        del params
        out = {}
        if "image" in batch:
            clean, condition = pixels(batch["image"]), self._condition(batch)

            def error(time: jax.Array) -> jax.Array:
                keys = jax.random.split(jax.random.fold_in(jax.random.key(0), jnp.int32(1000 * time)))
                noise, level = jax.random.normal(keys[0], clean.shape), jnp.full(len(clean), noising.cosine_level(time))
                low = self._lowered(clean, keys[1], jnp.full(len(clean), 0.2)) if self.low_size else ()
                found = self._noise(extra["average"], noising.noised(clean, noise, level), level, condition, *low)
                return ((found - noise) ** 2).mean((1, 2, 3))

            out["noise_error"] = jax.lax.map(error, jnp.asarray(PROBED)).T
        if "seed" in batch:
            out["sample"] = self.sample(extra, batch)
        return out

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean over images of the (weighted) squared error; the average has been moved to the params of this step."""
        average = ema_update(extra["average"], params, self.momentum_at(step))
        keys = jax.random.split(rng, 5)
        clean = pixels(batch["image"])
        level = noising.cosine_level(jax.random.uniform(keys[0], (len(clean),), maxval=noising.LAST))
        noise = jax.random.normal(keys[1], clean.shape)
        condition = self._condition(batch)
        if condition is not None:
            kept = jax.random.bernoulli(keys[2], 1 - self.drop_condition, (len(clean), 1))
            condition = condition * kept
        low = ()
        if self.low_size:
            low = self._lowered(clean, keys[3], jax.random.uniform(keys[4], (len(clean),), maxval=noising.LAST))
        found = self._noise(params, noising.noised(clean, noise, level), level, condition, *low)
        error = ((found - noise) ** 2).mean((1, 2, 3))  # [B]
        weight = noising.min_snr(level, self.min_snr) if self.min_snr else jnp.ones_like(error)
        if self.predicts == "velocity":  # an error of e is alpha times one of the velocity
            weight = weight / noising.signal_and_noise(level)[0] ** 2
        return (weight * error).mean(), ({"average": average}, {"noise_error": error.mean()})

    def sample(
        self,
        extra: Extra,
        batch: Mapping[str, Any],
        steps: int = 50,
        sampler: Literal["ddim", "ddpm"] = "ddim",
        guidance: float = 1.0,
        low_noise: float = 0.2,
    ) -> jax.Array:
        """u8 [B h w 3], an image for each of the batch's `seed` i32 [B]; a seed's image does not depend on the others.

        The batch has `modality` and `findings` of a conditioned model, and `low` u8 [B l l 3] of a super-resolution
        stage, which is noised at the time `low_noise`. guidance: 1 is the model as it is; more exaggerates the condition
        (arXiv:2207.12598, eq. 6). Raises UserError for an unknown sampler, or keys that are missing.
        """
        if sampler not in SAMPLERS or steps < 1:
            raise UserError(f"sampler {sampler!r} with {steps} steps; expected {' or '.join(SAMPLERS)}, steps >= 1")
        if bool(self.low_size) != ("low" in batch):
            raise UserError(f"this model takes {'a' if self.low_size else 'no'} low-resolution image under 'low'")
        seeds = jnp.asarray(batch["seed"])
        keys = jax.vmap(jax.random.key)(seeds)
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2**31 - 1), (self.size, self.size, 3)))
        condition, low = self._condition(batch), ()
        if self.low_size:
            level = jnp.full(len(seeds), noising.linear_level(jnp.float32(low_noise)))
            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2**31 - 2), (self.size, self.size, 3)))
            low = (noising.noised(_enlarged(pixels(batch["low"]), self.size), noise(keys), level), level)
        predict = partial(self._guided, extra["average"], condition, low, guidance)
        x = noising.walk(predict, draw(keys), keys, steps, sampler, self.threshold)
        return jnp.round((x + 1) * 127.5).astype(jnp.uint8)

    def momentum_at(self, step: jax.Array | int) -> jax.Array:
        """f32 (), by which the average is kept when the params of this step arrive; 0 at the first."""
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < 1, 0.0, jnp.minimum(self.momentum, (1 + step) / (10 + step)))

    def _guided(
        self, params: Params, condition: jax.Array | None, low: Any, guidance: float, x: jax.Array, level: jax.Array
    ) -> jax.Array:
        found = self._noise(params, x, level, condition, *low)
        if condition is None or guidance == 1.0:
            return found
        without = self._noise(params, x, level, jnp.zeros_like(condition), *low)
        return without + guidance * (found - without)

    def _noise(self, params: Params, x: jax.Array, level: jax.Array, *given: Any) -> jax.Array:
        out: Any = self.unet.apply({"params": params["unet"]}, x, level, *given)
        return out if self.predicts == "noise" else noising.noise_of_velocity(x, out, level)

    def _lowered(self, clean: jax.Array, key: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The image at the low size, enlarged again and noised, and its level."""
        b, factor = len(clean), self.size // self.low_size
        small = clean.reshape(b, self.low_size, factor, self.low_size, factor, 3).mean((2, 4))
        level = noising.linear_level(time)
        return noising.noised(_enlarged(small, self.size), jax.random.normal(key, clean.shape), level), level

    def _condition(self, batch: Mapping[str, Any]) -> jax.Array | None:
        if not self.condition_width:
            return None
        parts = []
        if self.modalities:
            parts.append(jax.nn.one_hot(_asked(batch, "modality"), self.modalities))
        if self.findings:
            parts.append(jnp.asarray(_asked(batch, "findings"), jnp.float32))
        return jnp.concatenate([*parts, jnp.ones((len(parts[0]), 1))], axis=1)


def pixels(image: Any) -> jax.Array:
    """u8 [... 3] to f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def ema_update(average: Params, params: Params, momentum: jax.Array | float) -> Params:
    """The running average moved towards the params: m a + (1 - m) p; equal values stay equal."""
    params = jax.tree.map(jax.lax.stop_gradient, params)
    return jax.tree.map(lambda a, p: p + momentum * (a - p), average, params)


def _enlarged(image: jax.Array, size: int) -> jax.Array:
    factor = size // image.shape[1]
    return image.repeat(factor, axis=1).repeat(factor, axis=2)


def _asked(batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        raise UserError(f"this model is conditioned on {key!r}, which the batch does not have")
    return batch[key]


def diffusion(
    size: str, *, enlarge: bool = False, modalities: int = 0, findings: int = 0, dtype: str = "float32", **fields: Any
) -> Diffusion:
    """A stage of a row of SIZES: the base model, or (`enlarge`) the super-resolution model. `fields` are Diffusion's.

    Raises UserError for an unknown size.
    """
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    sides, unets, predicts, threshold = SIZES[size]
    condition = modalities + findings + 1 if modalities or findings else 0
    unet = unets[enlarge].clone(condition=condition, low=enlarge, dtype=dtype)
    low = sides[0] if enlarge else 0
    return Diffusion(unet, sides[enlarge], low, modalities, findings, predicts=predicts, threshold=threshold, **fields)
