"""Continuous-time diffusion: noise schedules, the forward process q and the DDPM and DDIM samplers.

The noise level is the log signal-to-noise ratio, logsnr = log(alpha^2 / sigma^2), with alpha^2 + sigma^2 = 1
(arXiv:2107.00630, appendix A). Images are f32 in [-1, 1]; logsnr is f32 [B] or (). The parametrisation is that of
github.com/lucidrains/imagen-pytorch, which VisionFM uses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LAST = 0.999  # times are drawn from [0, LAST); later images are pure noise


def cosine_logsnr(time: jax.Array, offset: float = 0.008) -> jax.Array:
    """Cosine schedule: logsnr(t) = -log(cos((t + s) / (1 + s) pi / 2)^-2 - 1), t in [0, 1] of any shape.

    Source: arXiv:2102.09672, equation 17, in continuous time.
    """
    angle = (time + offset) / (1 + offset) * (jnp.pi / 2)
    return -jnp.log(jnp.cos(angle) ** -2 - 1)


def linear_logsnr(time: jax.Array) -> jax.Array:
    """Linear schedule: logsnr(t) = -log(expm1(1e-4 + 10 t^2)), which cascades use for the low-resolution image."""
    return -jnp.log(jnp.expm1(1e-4 + 10 * time**2))


def signal_and_noise(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma, in the shape of logsnr: alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def q_sample(x0: jax.Array, noise: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Sample x_t from q(x_t | x_0): alpha x_0 + sigma noise. # [B ...], logsnr [B]"""
    alpha, sigma = (_like(part, x0) for part in signal_and_noise(logsnr))
    return alpha * x0 + sigma * noise


def predict_x0(x: jax.Array, noise: jax.Array, logsnr: jax.Array) -> jax.Array:
    """x_0 from x_t and its noise: (x_t - sigma noise) / alpha, the inverse of q_sample. # [B ...]"""
    alpha, sigma = (_like(part, x) for part in signal_and_noise(logsnr))
    return (x - sigma * noise) / alpha


def noise_of_velocity(x: jax.Array, velocity: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Noise from x_t and the velocity v = alpha noise - sigma x_0: sigma x_t + alpha v. # [B ...]

    Source: arXiv:2202.00512, appendix D.
    """
    alpha, sigma = (_like(part, x) for part in signal_and_noise(logsnr))
    return sigma * x + alpha * velocity


def posterior(x: jax.Array, x0: jax.Array, logsnr: jax.Array, next_logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [B ...] and variance [B 1 ..] of q(x_s | x_t, x_0) at an earlier time s, where logsnr is next_logsnr.

    c = 1 - exp(logsnr_t - logsnr_s); the mean is alpha_s ((1 - c) x_t / alpha_t + c x_0) and the variance sigma_s^2 c.
    Source: arXiv:2107.00630, equation 33.
    """
    c = -jnp.expm1(logsnr - next_logsnr)
    alpha, _ = signal_and_noise(logsnr)
    next_alpha, next_sigma = signal_and_noise(next_logsnr)
    c, alpha, next_alpha, next_sigma = (_like(part, x) for part in (c, alpha, next_alpha, next_sigma))
    return next_alpha * (x * (1 - c) / alpha + c * x0), next_sigma**2 * c


def ddpm_step(x: jax.Array, x0: jax.Array, noise: jax.Array, logsnr: jax.Array, next_logsnr: jax.Array) -> jax.Array:
    """Sample from the posterior, given standard normal `noise` (arXiv:2006.11239, algorithm 2). # [B ...]"""
    mean, variance = posterior(x, x0, logsnr, next_logsnr)
    return mean + jnp.sqrt(variance) * noise


def ddim_step(x: jax.Array, x0: jax.Array, logsnr: jax.Array, next_logsnr: jax.Array) -> jax.Array:
    """Deterministic step: the same noise at the next level (arXiv:2010.02502, equation 12 with sigma 0). # [B ...]"""
    alpha, sigma = (_like(part, x) for part in signal_and_noise(logsnr))
    return q_sample(x0, (x - alpha * x0) / sigma, next_logsnr)


def dynamic_threshold(x0: jax.Array, percentile: float = 95.0) -> jax.Array:
    """Dynamic thresholding (arXiv:2205.11487, section 2.3): clip to [-s, s] and divide by s. # [B ...]

    s is the given percentile of |x_0| in each image, and at least 1.
    """
    flat = jnp.abs(x0.reshape(len(x0), -1))
    bound = _like(jnp.maximum(jnp.percentile(flat, percentile, axis=1), 1.0), x0)
    return jnp.clip(x0, -bound, bound) / bound


def min_snr(logsnr: jax.Array, gamma: float) -> jax.Array:
    """Min-SNR weight of a noise-prediction error, min(SNR, gamma) / SNR (arXiv:2303.09556, equation 7)."""
    return jnp.minimum(1.0, gamma * jnp.exp(-logsnr))


def sample_loop(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    key: jax.Array,
    steps: int,
    sampler: str,
    percentile: float = 95.0,
) -> jax.Array:
    """Turn noise [B h w C] into images in [-1, 1] in `steps` equal steps of time, as one scan.

    Args:
        predict: maps (x [B h w C], logsnr [B]) to the predicted noise [B h w C].
        start: standard normal noise; sampling starts at time LAST, the end of the training range.
        key: one key per image [B], used by "ddpm".
        steps: number of steps.
        sampler: "ddpm" adds noise in every step except the last; "ddim" adds no noise.
        percentile: percentile of dynamic_threshold, applied to every predicted x_0.
    """
    times = jnp.linspace(LAST, 0.0, steps + 1)
    logsnrs = cosine_logsnr(times)

    def step(x: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        logsnr, next_logsnr, number = at
        each = jnp.broadcast_to(logsnr, (len(x),))
        x0 = dynamic_threshold(predict_x0(x, predict(x, each), each), percentile)
        if sampler == "ddim":
            return ddim_step(x, x0, logsnr, next_logsnr), None
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), x.shape[1:]))
        noise = jnp.where(number < steps - 1, draw(key), 0.0)
        return ddpm_step(x, x0, noise, logsnr, next_logsnr), None

    x, _ = jax.lax.scan(step, start, (logsnrs[:-1], logsnrs[1:], jnp.arange(steps)))
    return jnp.clip(x, -1.0, 1.0)


def _like(part: jax.Array, x: jax.Array) -> jax.Array:
    """Append axes of length 1 to `part`, [B] or (), up to the number of axes of x."""
    return part.reshape(*part.shape, *(1,) * (x.ndim - part.ndim))
