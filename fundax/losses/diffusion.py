"""The arithmetic of continuous-time diffusion: noise levels, noising, and the steps back (arXiv:2107.00630, appendix A).

A level is the log of the signal-to-noise ratio, l = log(alpha^2 / sigma^2), with alpha^2 + sigma^2 = 1. Images are f32
in [-1, 1]; levels are f32 [B] or (). The form is that of github.com/lucidrains/imagen-pytorch, which VisionFM uses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LAST = 0.999  # times are drawn from [0, LAST); beyond it nothing of the image is left


def cosine_level(time: jax.Array, offset: float = 0.008) -> jax.Array:
    """l(t) = -log(cos((t + s) / (1 + s) pi / 2)^-2 - 1), t in [0, 1], any shape; -2 log tan of that angle.

    Source: arXiv:2102.09672, eq. 17, in continuous time.
    """
    angle = (time + offset) / (1 + offset) * (jnp.pi / 2)
    return -jnp.log(jnp.cos(angle) ** -2 - 1)


def linear_level(time: jax.Array) -> jax.Array:
    """l(t) = -log(expm1(1e-4 + 10 t^2)): the schedule by which a cascade noises its low-resolution image."""
    return -jnp.log(jnp.expm1(1e-4 + 10 * time**2))


def signal_and_noise(level: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma of a level, each of its shape: alpha^2 = sigmoid(l), sigma^2 = sigmoid(-l)."""
    return jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))


def noised(clean: jax.Array, noise: jax.Array, level: jax.Array) -> jax.Array:
    """q(x_t | x_0): alpha x_0 + sigma e, [B ...] at levels [B]."""
    alpha, sigma = (_like(part, clean) for part in signal_and_noise(level))
    return alpha * clean + sigma * noise


def denoised(x: jax.Array, noise: jax.Array, level: jax.Array) -> jax.Array:
    """x_0 where `noise` is what is in x, [B ...]: (x - sigma e) / alpha; the inverse of `noised`."""
    alpha, sigma = (_like(part, x) for part in signal_and_noise(level))
    return (x - sigma * noise) / alpha


def noise_of_velocity(x: jax.Array, velocity: jax.Array, level: jax.Array) -> jax.Array:
    """e of v = alpha e - sigma x_0, [B ...]: sigma x + alpha v (arXiv:2202.00512, appendix D)."""
    alpha, sigma = (_like(part, x) for part in signal_and_noise(level))
    return sigma * x + alpha * velocity


def posterior(x: jax.Array, clean: jax.Array, level: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [B ...] and variance [B 1 ..] of q(x_s | x_t, x_0), s before t: `after` is the level at s, above `level`.

    c = 1 - exp(l_t - l_s); mean alpha_s ((1 - c) x / alpha_t + c x_0), variance sigma_s^2 c (arXiv:2107.00630, eq. 33).
    """
    share = -jnp.expm1(level - after)
    alpha, _ = signal_and_noise(level)
    alpha_after, sigma_after = signal_and_noise(after)
    share, alpha, alpha_after, sigma_after = (_like(part, x) for part in (share, alpha, alpha_after, sigma_after))
    return alpha_after * (x * (1 - share) / alpha + share * clean), sigma_after**2 * share


def ddpm_step(x: jax.Array, clean: jax.Array, noise: jax.Array, level: jax.Array, after: jax.Array) -> jax.Array:
    """A draw from the posterior, [B ...], with `noise` standard normal (arXiv:2006.11239, algorithm 2)."""
    mean, variance = posterior(x, clean, level, after)
    return mean + jnp.sqrt(variance) * noise


def ddim_step(x: jax.Array, clean: jax.Array, level: jax.Array, after: jax.Array) -> jax.Array:
    """The same noise at another level, [B ...]: no chance enters (arXiv:2010.02502, eq. 12 with no sigma)."""
    alpha, sigma = (_like(part, x) for part in signal_and_noise(level))
    return noised(clean, (x - alpha * clean) / sigma, after)


def thresholded(clean: jax.Array, percentile: float = 95.0) -> jax.Array:
    """Dynamic thresholding (arXiv:2205.11487, section 2.3), [B ...]: clipped to +-s and divided by s, s >= 1.

    s is the percentile of |x_0| in each image.
    """
    flat = jnp.abs(clean.reshape(len(clean), -1))
    bound = _like(jnp.maximum(jnp.percentile(flat, percentile, axis=1), 1.0), clean)
    return jnp.clip(clean, -bound, bound) / bound


def min_snr(level: jax.Array, most: float) -> jax.Array:
    """The weight min(SNR, gamma) / SNR of an error of predicted noise, of the level's shape (arXiv:2303.09556, eq. 7)."""
    return jnp.minimum(1.0, most * jnp.exp(-level))


def walk(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    key: jax.Array,
    steps: int,
    sampler: str,
    percentile: float = 95.0,
) -> jax.Array:
    """From noise [B h w C] to images in [-1, 1] in `steps` equal steps of time, as one scan.

    predict: (x [B h w C], level [B]) to noise [B h w C]. sampler: "ddpm" draws noise on the way, all but in the last
    step, from `key`, a key for each image [B]; "ddim" draws none. The walk begins at LAST, where training ends.
    """
    times = jnp.linspace(LAST, 0.0, steps + 1)
    levels = cosine_level(times)

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        level, after, number = at
        here = jnp.broadcast_to(level, (len(x),))
        clean = thresholded(denoised(x, predict(x, here), here), percentile)
        if sampler == "ddim":
            return ddim_step(x, clean, level, after), None
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), x.shape[1:]))
        noise = jnp.where(number < steps - 1, draw(key), 0.0)
        return ddpm_step(x, clean, noise, level, after), None

    x, _ = jax.lax.scan(step, start, (levels[:-1], levels[1:], jnp.arange(steps)))
    return jnp.clip(x, -1.0, 1.0)


def _like(part: jax.Array, x: jax.Array) -> jax.Array:
    """[B] or () as an array of as many axes as x."""
    return part.reshape(*part.shape, *(1,) * (x.ndim - part.ndim))
