"""Position tables resized as each peer resizes its own."""

import numpy as np
import pytest

from fundax.encoders.positions import aligned_corners, antialiased, resize_positions


@pytest.mark.parametrize(("peer", "rule"), [("openclip", antialiased), ("retclip", aligned_corners)])
@pytest.mark.parametrize("way", ["up", "down"])
def test_peers_resize(golden, peer, rule, way):
    with np.load(golden / peer / "schedule_posembed.npz") as vectors:
        before, after = vectors[f"pos_{way}_in"], vectors[f"pos_{way}_out"]
    np.testing.assert_allclose(resize_positions(before, len(after), rule), after, rtol=2e-5, atol=2e-6)
