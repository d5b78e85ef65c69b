"""Position tables resized as each original resizes its own."""

import numpy as np
import pytest

from fundax.encoders.positions import aligned_corners, antialiased, resize_positions

RULES = [("openclip", antialiased), ("retclip", aligned_corners)]


@pytest.mark.parametrize(
    ("original", "rule"), [pytest.param(*rule, marks=pytest.mark.vectors(rule[0])) for rule in RULES]
)
@pytest.mark.parametrize("way", ["up", "down"])
def test_resized_as_the_original_code_does(golden, original, rule, way):
    with np.load(golden / original / "schedule_posembed.npz") as vectors:
        before, after = vectors[f"pos_{way}_in"], vectors[f"pos_{way}_out"]
    np.testing.assert_allclose(resize_positions(before, len(after), rule), after, rtol=2e-5, atol=2e-6)
