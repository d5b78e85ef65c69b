"""The sheet of best and worst cases, and the overlays on it."""

import numpy as np
import pytest
from PIL import Image

from fundax.evals.kinds import Cases
from fundax.evals.pictures import COLOURS, masks_over, points_over
from fundax.results.cases import sheet
from fundax.results.finished import draw_run
from fundax.types import UserError


def test_overlays_by_hand():
    """A black photograph: the mask is 65 % of its colour; a ring of 1/24 of the side about the truth, a cross on the guess."""
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1), bool)
    mask[:4] = True
    out = masks_over(image, mask, ~mask, side=8)
    assert out.shape == (8, 32, 3) and not out[:, :8].any() and (out[:, 8:12] == 255).all()
    np.testing.assert_array_equal(out[0, 12], np.round(0.65 * np.array(COLOURS[0])))
    assert not out[0, 24].any() and out[7, 24].any() and not out[7, 12].any()
    marked = points_over(image, np.array([[2, 2], [np.nan, 1]]), np.array([[5, 5], [1, 1]]), side=96)[:, 100:]
    at = lambda x, y: tuple(marked[y, x])  # noqa: E731  the point (2, 2) of 8 is (29.5, 29.5) of 96
    assert (
        at(30 + 4, 30) == COLOURS[0]
        and at(30, 30) == (0, 0, 0)
        and at(65, 65) == COLOURS[0]
        and at(17, 17) == COLOURS[1]
    )
    with pytest.raises(UserError, match=r"expected an image u8 \[H W 3\], got float32"):
        masks_over(image.astype(np.float32), mask, mask)


def test_the_sheet_is_drawn_of_what_an_evaluation_kept(tmp_path):
    (tmp_path / "evals").mkdir()
    pictures = np.full((3, 20, 60, 3), 90, np.uint8)
    kept = {"pictures": pictures, "picture_index": np.array([4, 0, 2]), "picture_score": np.array([0.1, 0.5, 0.9])}
    kept |= {"index": np.arange(5), "dice": np.linspace(0, 1, 5)}
    np.savez(tmp_path / "evals" / "val.npz", **kept)
    np.savez(tmp_path / "evals" / "other.npz", pictures=pictures)
    (path,) = draw_run(tmp_path)
    with Image.open(path) as drawn:
        assert path.name == "val_cases.png" and drawn.size[0] > 1000
    with pytest.raises(UserError, match=r"expected \[T h w 3\]"):
        sheet(Cases(pictures=pictures[0], picture_row=np.array([0])), None, tmp_path / "x.png")
