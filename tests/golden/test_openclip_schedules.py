"""open_clip's schedules: every curve of the file, whose names say what it is, at every step."""

import re

import jax
import numpy as np
import pytest

from fundax.optim import Schedule, constant, cooldown, cosine

pytestmark = pytest.mark.vectors("openclip")

NUMBER = r"([\d.]+(?:e\d+)?)"  # 1e3 is 1e-3: a name holds no minus
NAME = re.compile(rf"(const|cosine|cooldown)_base{NUMBER}_warm(\d+)(?:_cd(\d+)_p([\d.]+)_end{NUMBER})?(?:_steps(\d+))?")


def schedule_of(name: str, length: int) -> Schedule:
    """cooldown_base1e3_warm10_cd30_p2_end1e5: to 1e-3 in 10 steps, and over the last 30 to 1e-5 by a square."""
    kind, base, warmup, cool, power, end, steps = NAME.fullmatch(name).groups()
    peak, warmup, steps = rate(base), int(warmup), int(steps or length)
    if kind == "const":
        return constant(peak, warmup)
    if kind == "cosine":
        return cosine(peak, steps, warmup)
    return cooldown(peak, steps, warmup, cool=int(cool), power=float(power), end=rate(end))


def rate(text: str) -> float:
    return float(text.replace("e", "e-"))


def test_every_step_of_every_curve_has_the_originals_rate(golden):
    with np.load(golden / "openclip" / "schedule_posembed.npz") as file:
        curves = {name: file[name] for name in file.files if not name.startswith("pos_")}
    assert curves
    for name, theirs in curves.items():
        schedule = schedule_of(name, len(theirs))
        ours = np.asarray([schedule(np.int32(step)) for step in range(len(theirs))])
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)
        traced = jax.vmap(schedule)(np.arange(len(theirs), dtype=np.int32))
        np.testing.assert_allclose(traced, theirs, rtol=1e-6, err_msg=name)
