"""Between the image a model sees and the original, there and back."""

import numpy as np

from fundax.evals.original_grid import UNIT, original_map, original_points


def seen(points, frame):
    """By hand: origin + x / 1000 of the way to the second point + y / 1000 of the way to the third."""
    return frame[0] + points[..., :1] * (frame[1] - frame[0]) / UNIT + points[..., 1:] * (frame[2] - frame[0]) / UNIT


def test_points_go_back():
    frame = np.array([[10.0, -4.0], [510.0, 96.0], [-90.0, 396.0]], np.float32)
    points = np.array([[0.0, 0.0], [33.5, 12.0]])
    np.testing.assert_allclose(original_points(seen(points, frame)[None], frame[None])[0], points, atol=1e-3)


def test_a_map_at_half_size_goes_back():
    """Half the size: the original's pixel x lies at (x + .5) / 2 - .5 = -0.25 + x / 2."""
    frame = np.array([[-0.25, -0.25], [499.75, -0.25], [-0.25, 499.75]], np.float32)
    small = np.array([[0.0, 4.0], [8.0, 12.0]], np.float32)[..., None]
    large = original_map(small, frame, (4, 4))[..., 0]
    np.testing.assert_allclose(large[0], [0, 1, 3, 4], atol=1e-5)  # weights 0, 1/4, 3/4, 1 between 0 and 4
    np.testing.assert_allclose(large[:, 0], [0, 2, 6, 8], atol=1e-5)
    mirrored = original_map(small, frame * [-1, 1] + [[1, 0]], (4, 4))[..., 0]
    np.testing.assert_allclose(mirrored, large[:, ::-1], atol=1e-5)


def test_what_was_cropped_away_is_empty():
    """A crop of 2 x 2 from (1, 0) of an image of 2 rows and 4 columns: nothing is known left and right of it."""
    frame = np.array([[-1.0, 0.0], [999.0, 0.0], [-1.0, 1000.0]], np.float32)
    found = original_map(np.ones((2, 2, 1), np.float32), frame, (2, 4))[..., 0]
    np.testing.assert_array_equal(found, [[0, 1, 1, 0], [0, 1, 1, 0]])
