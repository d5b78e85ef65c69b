"""Drawing primitives against areas and positions worked out by hand."""

import numpy as np
import pytest

from data_pipelines.synthetic.raster import Frame, blots, ellipse, lines

FRAME = Frame(64, 2.0, 0.0, 0.0)  # two pixels per degree, the fovea in the middle


def test_frame_maps_degrees_to_pixels() -> None:
    x, y = FRAME.pixels(np.array([0.0, 3.0]), np.array([0.0, -2.0]))
    np.testing.assert_allclose(x, [31.5, 37.5])
    np.testing.assert_allclose(y, [31.5, 27.5])
    assert FRAME.squared(3.0, -2.0)[27, 37] == pytest.approx(0.0625 + 0.0625)


def test_ellipse_has_its_area_and_centre() -> None:
    cover = ellipse(FRAME, 4.0, -3.0, 5.0, 3.0)
    assert cover.sum() == pytest.approx(np.pi * 10 * 6, rel=0.03)
    rows, columns = np.mgrid[:64, :64]
    assert (cover * columns).sum() / cover.sum() == pytest.approx(31.5 + 8, abs=0.01)
    assert (cover * rows).sum() / cover.sum() == pytest.approx(31.5 - 6, abs=0.01)


def test_blots_of_all_sizes_and_turns() -> None:
    marks = np.array([[0, 0, 4.0, 1.0, 0.0, 1.0], [10, 10, 0.05, 0.05, 1, 0], [-10, -10, 1.5, 1.5, 1, 0]])
    cover = blots(FRAME, marks, soft=0.1)
    rows, columns = np.nonzero(cover[22:42, 22:42] > 0.5)
    assert np.ptp(rows) == 15 and np.ptp(columns) == 3  # turned by a quarter: tall
    assert cover[50:53, 50:53].max() > 0.3  # far smaller than a pixel, and still there
    assert (cover[2:22, 2:22]).sum() == pytest.approx(np.pi * 9, rel=0.1)
    assert blots(FRAME, marks[:0]).sum() == 0


def test_blots_beyond_the_border_are_cut() -> None:
    cover = blots(FRAME, np.array([[-16.0, 0, 2.0, 2.0, 1, 0], [90.0, 0, 2, 2, 1, 0]]), soft=0.1)
    assert cover[31, 0] == 1.0 and cover[:, 10:].sum() == 0


def test_ragged_blots_keep_about_their_size() -> None:
    even, ragged = (blots(FRAME, np.array([[0, 0, 6.0, 6.0, 1, 0]]), 0.1, rough) for rough in (0.0, 0.9))
    assert 0.5 < ragged.sum() / even.sum() < 1.6 and np.abs(ragged - even).max() > 0.5


def test_lines_are_as_wide_as_they_say() -> None:
    wide = np.array([[-10.0, 0, 10, 0, 2.0, 2.0]])
    thin = np.array([[-10.0, 5, 10, 5, 0.25, 0.25]])
    one, two = lines(FRAME, [wide, thin])
    assert one[:, 32].sum() == pytest.approx(4.0, abs=0.3)  # two degrees are four pixels
    assert two[:, 20:44].sum() / 24 == pytest.approx(0.5, abs=0.2)  # half a pixel
    assert one[:, 5].sum() == 0 and lines(FRAME, [wide + 500])[0].sum() == 0
    assert lines(FRAME, [np.array([[0.0, 0, 5, 0, 0.05, 0.05]])]).sum() == 0  # too thin to be seen
