"""Noise tiles, circle tables and streams: exact numbers, wrapping, bounds."""

import numpy as np
import pytest

from data_pipelines.synthetic.noise import TILE, cos_sin, grain, stream, texture, tile

KINDS = ("white", "cloud", "grain", "choroid", "folds", "speckle")


def test_circle_table() -> None:
    c, s = cos_sin(np.array([0.0, 0.25, 0.5, -0.25, 1.125]))
    np.testing.assert_array_equal(c, [1.0, 0.0, -1.0, 0.0, 0.707107])
    np.testing.assert_array_equal(s, [0.0, 1.0, 0.0, -1.0, 0.707107])


def test_streams_are_keyed() -> None:
    assert stream(1, 2).random() == stream(1, 2).random() != stream(2, 1).random()
    # PCG64 seeded by SeedSequence([0]): a fixed number of the generator's specification
    assert stream(0).random() == np.random.Generator(np.random.PCG64([0])).random()


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_use_their_range_and_repeat(kind: str) -> None:
    t = tile(kind)
    assert t.shape == (2 * TILE, 2 * TILE) and t.dtype == np.uint8
    assert t.min() == 0 and t.max() == 255
    np.testing.assert_array_equal(t[:TILE, :TILE], t[TILE:, TILE:])


def test_smooth_tiles_wrap_without_a_seam() -> None:
    t = tile("cloud").astype(int)
    seam = np.abs(t[:, TILE] - t[:, TILE - 1]).max()
    assert seam <= np.abs(np.diff(t[:, : TILE - 1], axis=1)).max()


def test_texture_is_anchored_and_bounded() -> None:
    one = texture("cloud", 32, 10, 20, 64)
    np.testing.assert_array_equal(one, texture("cloud", 32, 10 + TILE, 20 - TILE, 64))
    assert one.dtype == np.float32 and 0 <= one.min() < one.max() <= 1
    # the same retina at twice the pixels shows the same texture
    fine = texture("cloud", 64, 10, 20, 64).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(fine - one).max() < 0.06


def test_grain_covers_sizes_beyond_a_tile() -> None:
    assert grain("white", 7, 9, stream(1)).shape == (7, 9)
    assert grain("speckle", 700, 520, stream(1)).shape == (700, 520)
