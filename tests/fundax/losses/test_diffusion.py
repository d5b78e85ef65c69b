"""Identities of the noise levels, the posterior by Bayes' rule, and the walk back with a perfect predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.losses import diffusion as noising

RNG = np.random.default_rng(0)


def test_cosine_levels_by_hand():
    # the angle of t = (1 + s) / 2 - s is 45 degrees, where signal and noise are equal; that of t = (1 + s) / 3 - s is 30
    # degrees, where alpha^2 / sigma^2 = 3
    np.testing.assert_allclose(noising.cosine_logsnr(jnp.float32(0.496)), 0.0, atol=1e-5)
    np.testing.assert_allclose(noising.cosine_logsnr(jnp.float32(0.328)), np.log(3), rtol=1e-4)
    levels = noising.cosine_logsnr(jnp.linspace(0, noising.LAST, 50))
    assert np.isfinite(levels).all() and (np.diff(levels) < 0).all()


def test_the_level_is_the_log_of_signal_to_noise_and_variance_is_kept():
    for schedule in (noising.cosine_logsnr, noising.linear_logsnr):
        level = schedule(jnp.linspace(0.05, 0.95, 19))
        alpha, sigma = noising.signal_and_noise(level)
        np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(19), rtol=1e-5)
        np.testing.assert_allclose(np.log(alpha**2 / sigma**2), level, rtol=1e-4, atol=1e-5)
    # expm1(1e-4 + 10 * 0.04) = 0.49197, so the low-resolution image of level 0.2 has SNR 2.0327
    np.testing.assert_allclose(jnp.exp(noising.linear_logsnr(jnp.float32(0.2))), 2.0327, rtol=1e-4)


def test_noising_has_its_mean_and_variance_and_goes_back():
    clean = jnp.full((20_000, 1), 0.5)
    level = jnp.full(20_000, np.log(3), jnp.float32)  # alpha^2 = 3/4
    noise = jnp.asarray(RNG.standard_normal((20_000, 1)), jnp.float32)
    x = noising.q_sample(clean, noise, level)
    np.testing.assert_allclose([x.mean(), x.var()], [0.5 * 0.75**0.5, 0.25], rtol=0.03)
    np.testing.assert_allclose(noising.predict_x0(x, noise, level), clean, rtol=1e-5)


def test_velocity_by_hand():
    clean, noise, level = jnp.array([[0.5]]), jnp.array([[-2.0]]), jnp.array([np.log(3)], jnp.float32)
    velocity = jnp.array([[0.75**0.5 * -2.0 - 0.5 * 0.5]])  # alpha^2 = 3/4, sigma = 1/2
    x = noising.q_sample(clean, noise, level)
    np.testing.assert_allclose(noising.noise_of_velocity(x, velocity, level), noise, rtol=1e-5)


def test_the_posterior_by_hand():
    # Bayes: x_s ~ N(as c, ss^2) and x_t | x_s ~ N(a x_s, v), a = at / as, v = st^2 - a^2 ss^2
    before, after = jnp.float32(-1.0), jnp.float32(0.5)  # levels at t and at s < t
    x, clean = jnp.array([[0.3]]), jnp.array([[-0.7]])
    (at, st), (as_, ss) = (map(float, noising.signal_and_noise(level)) for level in (before, after))
    a = at / as_
    v = st**2 - a**2 * ss**2
    precision = 1 / ss**2 + a**2 / v
    mean = (as_ * -0.7 / ss**2 + a * 0.3 / v) / precision
    got_mean, got_variance = noising.posterior(x, clean, before, after)
    np.testing.assert_allclose(got_mean[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(got_variance, [[1 / precision]], rtol=1e-5)
    np.testing.assert_allclose(noising.ddpm_step(x, clean, jnp.array([[2.0]]), before, after)[0, 0],
                               mean + 2 * precision**-0.5, rtol=1e-5)  # fmt: skip


def test_ddim_keeps_the_noise():
    clean, noise = (jnp.asarray(RNG.standard_normal((2, 3)), jnp.float32) for _ in range(2))
    before, after = jnp.full(2, -1.0), jnp.full(2, 0.5)
    moved = noising.ddim_step(noising.q_sample(clean, noise, before), clean, before, after)
    np.testing.assert_allclose(moved, noising.q_sample(clean, noise, after), rtol=1e-4, atol=1e-6)


def test_dynamic_threshold_by_hand():
    wide = jnp.arange(-10.0, 11.0)[None]  # 21 values; |x| at 95 % is 9.5 + 0.5 = 10
    np.testing.assert_allclose(noising.dynamic_threshold(wide)[0], np.arange(-10, 11) / 10.0, rtol=1e-6)
    narrow = jnp.array([[-0.5, 0.25]])
    np.testing.assert_array_equal(noising.dynamic_threshold(narrow), narrow)  # s is never below 1
    np.testing.assert_allclose(noising.dynamic_threshold(jnp.array([[0.0, 2.0, 4.0]]), 50.0), [[0.0, 1.0, 1.0]])


def test_min_snr_weights_by_hand():
    np.testing.assert_allclose(noising.min_snr(jnp.log(jnp.array([1.0, 5.0, 20.0])), 5.0), [1, 1, 0.25], rtol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_predictor_that_knows_the_image_walks_back_to_it(sampler):
    image = jnp.asarray(RNG.uniform(-0.9, 0.9, (1, 2, 2, 3)), jnp.float32)

    def perfect(x, level):
        alpha, sigma = (part[:, None, None, None] for part in noising.signal_and_noise(level))
        return (x - alpha * image) / sigma

    start, keys = jnp.asarray(RNG.standard_normal(image.shape), jnp.float32), jax.random.split(jax.random.key(0), 1)
    walk = jax.jit(lambda key: noising.sample_loop(perfect, start, key, 20, sampler))
    np.testing.assert_allclose(walk(keys), image, atol=0.03)  # sigma of time 0 is 0.0125
    same = np.array_equal(walk(keys), walk(jax.random.split(jax.random.key(1), 1)))
    assert same == (sampler == "ddim"), "DDIM leaves nothing to chance"
