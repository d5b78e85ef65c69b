"""Diffusion models of images in continuous time (arXiv:2006.11239), as VisionFM's synthetic images.

A U-Net is trained to predict the noise, and samples are drawn with a moving average of its weights. VisionFM uses
github.com/lucidrains/imagen-pytorch: a base model of small images and a super-resolution model, both without text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fundax.encoders.layers import apply
from fundax.encoders.unet import UNet
from fundax.losses import diffusion as noising
from fundax.optim import ema_update
from fundax.types import Batch, Extra, Metrics, Params, UserError

PROBED = (0.2, 0.4, 0.6, 0.8)  # times at which `forward` evaluates the error
SAMPLERS = ("ddim", "ddpm")


# The two stages of a cascade: pixels, U-Nets, the prediction target and the threshold. base has VisionFM's two
# U-Nets, imagen-pytorch's BaseUnet64 (at dim 256) and SRUnet256; small is between.
SIZES: dict[str, tuple[tuple[int, int], tuple[UNet, UNet], Literal["noise", "velocity"], float]] = {
    "smoke": ((8, 16), (UNet(8, (1,), (1,), (True,), heads=2), UNet(8, (1,), (1,), (True,), heads=2)), "noise", 95.0),
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
    """Mean squared error of the noise predicted at random times. Parameters are the U-Net's; `extra` is their average.

    low_size: makes this the super-resolution stage of a cascade, which also sees the image at this size, with noise.
    modalities, findings: number of modalities and findings that the model is conditioned on, by `modality` i32 [B] and
        `findings` f32 [B F] of the batch.
    drop_condition: fraction of training images without condition, for classifier-free guidance (arXiv:2207.12598).
    momentum: momentum of the moving average; at an early step at most (1 + step) / (10 + step).
    min_snr: gamma of the min-SNR weighting (arXiv:2303.09556); 0 to disable. It is unknown whether VisionFM uses it.
    predicts: output of the U-Net, and what the loss compares. With "velocity" (alpha noise - sigma x_0,
        arXiv:2202.00512) x_0 follows without dividing by alpha, so a small model keeps its colours at high noise.
    threshold: percentile of dynamic thresholding when sampling; 0 only clips to the range of images.
    """

    unet: UNet
    size: int
    low_size: int = 0
    modalities: int = 0
    findings: int = 0
    drop_condition: float = 0.1
    momentum: float = 0.999
    min_snr: float = 0.0
    predicts: Literal["noise", "velocity"] = "noise"
    threshold: float = 95.0

    def __post_init__(self) -> None:
        if self.low_size and (self.size % self.low_size or self.low_size == self.size):
            raise UserError(f"size {self.size} is not a multiple of the low-resolution size {self.low_size}")
        if self.unet.low != bool(self.low_size) or self.unet.condition != self.condition_width:
            raise UserError(
                f"the UNet has low={self.unet.low}, condition={self.unet.condition}; this Diffusion needs "
                f"low={bool(self.low_size)}, condition={self.condition_width}"
            )

    @property
    def condition_width(self) -> int:
        """Width of the condition: one-hot modality, findings and a constant 1; 0 if there is none."""
        # the constant tells a dropped condition, all zeros, from an image without findings
        return self.modalities + self.findings + 1 if self.modalities or self.findings else 0

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3]; modality i32 [B] and findings f32 [B F] if the model is conditioned on them."""
        shapes: dict[str, Any] = {"image": ((self.size, self.size, 3), jnp.uint8)}
        if self.modalities:
            shapes["modality"] = ((), jnp.int32)
        if self.findings:
            shapes["findings"] = ((self.findings,), jnp.float32)
        return {key: jax.ShapeDtypeStruct((batch, *shape), dtype) for key, (shape, dtype) in shapes.items()}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial U-Net, and a copy of it as the average."""
        x = jnp.zeros((1, self.size, self.size, 3))
        low = (x, jnp.zeros(1)) if self.low_size else ()
        condition = jnp.zeros((1, self.condition_width)) if self.condition_width else None
        params = {"unet": self.unet.init(rng, x, jnp.zeros(1), condition, *low)["params"]}
        return params, {"average": jax.tree.map(jnp.copy, params)}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Outputs of the averaged weights, depending on the keys of the batch.

        For `image` u8 [B h w 3]: noise_error f32 [B 4], the mean squared error at the times PROBED with fixed noise.
        For `seed` i32 [B]: sample u8 [B h w 3], one image per seed (DDIM, 50 steps); a super-resolution stage also needs
        `low`.
        """
        out = {}
        if "image" in batch:
            x0, condition = pixels(batch["image"]), self._condition(batch)

            def error(time: jax.Array) -> jax.Array:
                keys = jax.random.split(jax.random.fold_in(jax.random.key(0), jnp.int32(1000 * time)))
                noise, logsnr = jax.random.normal(keys[0], x0.shape), jnp.full(len(x0), noising.cosine_logsnr(time))
                low = self._low(x0, keys[1], jnp.full(len(x0), 0.2)) if self.low_size else ()
                predicted = self._noise(extra["average"], noising.q_sample(x0, noise, logsnr), logsnr, condition, *low)
                return ((predicted - noise) ** 2).mean((1, 2, 3))

            out["noise_error"] = jax.lax.map(error, jnp.asarray(PROBED)).T
        if "seed" in batch:
            out["sample"] = self.sample(extra, batch)
        return out

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean over images of the (weighted) squared error; the average includes the parameters of this step."""
        average = ema_update(extra["average"], params, self.momentum_at(step))
        keys = jax.random.split(rng, 5)
        x0 = pixels(batch["image"])
        logsnr = noising.cosine_logsnr(jax.random.uniform(keys[0], (len(x0),), maxval=noising.LAST))
        noise = jax.random.normal(keys[1], x0.shape)
        condition = self._condition(batch)
        if condition is not None:
            kept = jax.random.bernoulli(keys[2], 1 - self.drop_condition, (len(x0), 1))
            condition = condition * kept
        low = ()
        if self.low_size:
            low = self._low(x0, keys[3], jax.random.uniform(keys[4], (len(x0),), maxval=noising.LAST))
        predicted = self._noise(params, noising.q_sample(x0, noise, logsnr), logsnr, condition, *low)
        error = ((predicted - noise) ** 2).mean((1, 2, 3))  # [B]
        weight = noising.min_snr(logsnr, self.min_snr) if self.min_snr else jnp.ones_like(error)
        if self.predicts == "velocity":  # an error of the noise is alpha times that of the velocity
            weight = weight / noising.signal_and_noise(logsnr)[0] ** 2
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
        """Sample images u8 [B h w 3], one for each `seed` i32 [B] of the batch, independent of the other seeds.

        Args:
            extra: the averaged weights.
            batch: `seed`; `modality` and `findings` if the model is conditioned on them; `low` u8 [B l l 3] for a
                super-resolution stage.
            steps, sampler: see losses.sample_loop.
            guidance: classifier-free guidance scale (arXiv:2207.12598, equation 6); 1 disables it.
            low_noise: time whose noise is added to `low`.

        Raises UserError for an unknown sampler and for missing keys.
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
            logsnr = jnp.full(len(seeds), noising.linear_logsnr(jnp.float32(low_noise)))
            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2**31 - 2), (self.size, self.size, 3)))
            low = (noising.q_sample(_enlarged(pixels(batch["low"]), self.size), noise(keys), logsnr), logsnr)
        predict = partial(self._guided, extra["average"], condition, low, guidance)
        x = noising.sample_loop(predict, draw(keys), keys, steps, sampler, self.threshold)
        return jnp.round((x + 1) * 127.5).astype(jnp.uint8)

    def momentum_at(self, step: jax.Array | int) -> jax.Array:
        """Momentum f32 () of the average at a step: 0 at the first, so that it starts as a copy."""
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step < 1, 0.0, jnp.minimum(self.momentum, (1 + step) / (10 + step)))

    def _guided(
        self, params: Params, condition: jax.Array | None, low: Any, guidance: float, x: jax.Array, logsnr: jax.Array
    ) -> jax.Array:
        conditional = self._noise(params, x, logsnr, condition, *low)
        if condition is None or guidance == 1.0:
            return conditional
        unconditional = self._noise(params, x, logsnr, jnp.zeros_like(condition), *low)
        return unconditional + guidance * (conditional - unconditional)

    def _noise(self, params: Params, x: jax.Array, logsnr: jax.Array, *given: Any) -> jax.Array:
        out = apply(self.unet, params["unet"], x, logsnr, *given)
        return out if self.predicts == "noise" else noising.noise_of_velocity(x, out, logsnr)

    def _low(self, x0: jax.Array, key: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The image reduced to `low_size` and enlarged again, with noise, and its logsnr."""
        b, factor = len(x0), self.size // self.low_size
        small = x0.reshape(b, self.low_size, factor, self.low_size, factor, 3).mean((2, 4))
        logsnr = noising.linear_logsnr(time)
        return noising.q_sample(_enlarged(small, self.size), jax.random.normal(key, x0.shape), logsnr), logsnr

    def _condition(self, batch: Mapping[str, Any]) -> jax.Array | None:
        if not self.condition_width:
            return None
        parts = []
        if self.modalities:
            parts.append(jax.nn.one_hot(_required(batch, "modality"), self.modalities))
        if self.findings:
            parts.append(jnp.asarray(_required(batch, "findings"), jnp.float32))
        return jnp.concatenate([*parts, jnp.ones((len(parts[0]), 1))], axis=1)


def pixels(image: Any) -> jax.Array:
    """Scale images u8 [... 3] to f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def _enlarged(image: jax.Array, size: int) -> jax.Array:
    factor = size // image.shape[1]
    return image.repeat(factor, axis=1).repeat(factor, axis=2)


def _required(batch: Mapping[str, Any], key: str) -> Any:
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
