"""FLAIR's schedule and chain by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax.optim import flair_adamw, flair_schedule


def test_the_rate_hardly_falls_in_the_epochs_that_are_trained():
    schedule = flair_schedule(1e-4, steps_per_epoch=10)
    assert schedule(0) == pytest.approx(1e-5) and schedule(9) == pytest.approx(1e-4)
    assert schedule(159) == pytest.approx(0.9451e-4, rel=1e-4)
    assert flair_schedule(1e-4, 10, horizon=16)(159) < 1e-7


def test_one_step_decays_everything_and_keeps_the_scale_in_bounds():
    params = {"norm": {"bias": jnp.ones(2)}, "log_scale": jnp.float32(4.6052)}
    tx = flair_adamw(0.1, steps_per_epoch=1, weight_decay=0.5)
    grads = {"norm": {"bias": jnp.zeros(2)}, "log_scale": jnp.float32(-1.0)}
    updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["norm"]["bias"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert float(after["log_scale"]) <= 4.6052
