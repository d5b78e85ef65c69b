import jax
import numpy as np
import pytest

from fundax.optim import constant, cooldown, cosine

SCHEDULES = {
    "const_base1e6_warm0": constant(1e-6),
    "const_base1e3_warm10": constant(1e-3, 10),
    "cosine_base1e3_warm10": cosine(1e-3, 100, 10),
    "cooldown_base1e3_warm10_cd30_p2_end1e5": cooldown(1e-3, 100, 10, cool=30, power=2.0, end=1e-5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_has_the_peers_rate(golden, name):
    theirs = np.load(golden / "openclip" / "schedule_posembed.npz")[name]
    ours = np.asarray([SCHEDULES[name](np.int32(step)) for step in range(100)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    traced = jax.vmap(SCHEDULES[name])(np.arange(100, dtype=np.int32))
    np.testing.assert_allclose(traced, theirs, rtol=1e-6)
