"""Every move takes the image, the mask and the points to the same place."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.geometry import Crop, Mirror, Resize, Rotate, move, resize_moves

HEIGHT, WIDTH = 48, 64


def marked(points):
    """Black, with a white 5 x 5 spot (3 in the mask) at each (x, y)."""
    image, mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.int32)
    for x, y in np.asarray(points, int):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        mask[y - 2 : y + 3, x - 2 : x + 3] = 3
    return {"image": image, "mask": mask, "points": np.asarray(points, np.float32), "text": "kept"}


def centre(pixels):
    weight = pixels / pixels.sum()
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()])


@pytest.mark.parametrize(
    "moves",
    [
        (Crop(10, 5, 30, 50),),
        (Crop(-7, -9, 70, 90),),
        (Resize(96, 96),),
        (Resize(24, 40),),
        (Rotate(17.3),),
        (Rotate(-30.0),),
        (Mirror(),),
        resize_moves((HEIGHT, WIDTH), 40, "shortest"),
        resize_moves((HEIGHT, WIDTH), 40, "longest"),
        resize_moves((HEIGHT, WIDTH), 40, "canvas"),
        resize_moves((HEIGHT, WIDTH), 40, "shortest", resize_to=46),
        (Rotate(20), Crop(2, 3, 44, 60), Resize(56, 56), Mirror()),
    ],
    ids=str,
)
@pytest.mark.parametrize("point", [(30, 24), (36, 28)])
def test_image_mask_and_points_stay_together(moves, point):
    before = marked([point])
    after = move(before, "image", moves)
    assert after["image"].shape[:2] == after["mask"].shape and after["image"].dtype == np.uint8
    assert set(np.unique(after["mask"])) == {0, 3} and after["mask"].dtype == np.int32
    assert after["points"].dtype == np.float32
    np.testing.assert_allclose(after["points"][0], centre(after["image"][..., 0].astype(float)), atol=0.25)
    np.testing.assert_allclose(after["points"][0], centre((after["mask"] > 0).astype(float)), atol=0.5)
    assert before["points"][0, 0] == point[0] and after["text"] == "kept"  # the input is left as it was


def test_points_by_hand():
    point = np.array([[0.0, 0.0], [63.0, 47.0]], np.float32)
    size = (HEIGHT, WIDTH)
    np.testing.assert_array_equal(Mirror().points(point, size), [[63, 0], [0, 47]])
    # halving: pixel 0 covers -0.5..0.5 and becomes -0.5..0, whose middle is -0.25
    np.testing.assert_array_equal(Resize(24, 32).points(point, size), [[-0.25, -0.25], [31.25, 23.25]])
    np.testing.assert_array_equal(Crop(1, 2, 9, 9).points(point, size), [[-2, -1], [61, 46]])
    square = np.array([[0.0, 0.0]], np.float32)
    np.testing.assert_allclose(Rotate(90).points(square, (10, 10)), [[9, 0]], atol=1e-6)  # clockwise


def test_rotation_by_a_quarter_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(Rotate(90).pixels(image), np.rot90(image, -1))
    np.testing.assert_array_equal(Rotate(180).pixels(image), image[::-1, ::-1])


def test_points_that_nobody_knows_stay_unknown():
    example = marked([(20, 20)]) | {"points": np.full((1, 2), np.nan, np.float32)}
    after = move(example, "image", (Rotate(10), Mirror(), Resize(9, 9), Crop(1, 1, 4, 4)))
    assert np.isnan(after["points"]).all()


def test_mask_and_points_belong_to_image_alone():
    example = {"left": np.zeros((4, 6, 3), np.uint8), "mask": np.ones((4, 6), np.int32)}
    after = move(example, "left", (Resize(2, 2),))
    assert after["left"].shape == (2, 2, 3) and after["mask"].shape == (4, 6)


def test_crop_beyond_the_image_is_black():
    image = np.full((4, 4, 3), 9, np.uint8)
    np.testing.assert_array_equal(Crop(-1, 2, 3, 4).pixels(image)[..., 0], [[0, 0, 0, 0], [9, 9, 0, 0], [9, 9, 0, 0]])
    assert Crop(10, 10, 2, 2).pixels(image).sum() == 0
    assert Crop(-9, -9, 2, 2).pixels(image).sum() == 0


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_is_pillows(interpolation):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    how = getattr(Image.Resampling, interpolation.upper())
    want = np.asarray(Image.fromarray(image).resize((20, 30), how))
    np.testing.assert_array_equal(Resize(30, 20, interpolation).pixels(image), want)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (7, 500), (33, 33), (1, 9)])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest", "canvas"])
def test_every_size_becomes_the_square_asked_for(size, mode):
    image = np.full((*size, 3), 200, np.uint8)
    for step in resize_moves(size, 28, mode):
        image = step.pixels(image)
    assert image.shape == (28, 28, 3)
    assert (image == 0).any() == (mode in ("longest", "canvas") and size[0] != size[1])


@pytest.mark.parametrize("side", range(16, 200))
def test_a_square_fills_the_canvas(side):
    assert resize_moves((side, side), 170, "canvas") == (Resize(170, 170),)


def test_a_resize_of_another_size_than_the_crop():
    assert resize_moves((60, 90), 28, "shortest", resize_to=32) == (Resize(32, 48), Crop(2, 10, 28, 28))
    assert resize_moves((60, 90), 28, "squash", resize_to=32) == (Resize(32, 32), Crop(2, 2, 28, 28))
    assert resize_moves((60, 90), 28, "shortest", resize_to=21) == (Resize(21, 31), Crop(-3, 2, 28, 28))
