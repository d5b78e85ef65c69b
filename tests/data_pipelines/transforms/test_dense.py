"""Masks and points move with their image; errors name file and row."""

import csv

import numpy as np
import pytest
from PIL import Image

from data_pipelines.geometry import Affine, FlipRows, Rotate, Transpose, move
from data_pipelines.open import named
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Drawn, Eyes
from data_pipelines.transforms.dense import Prepared, RandomCrop, RandomMove, Ready, RightAngles
from data_pipelines.transforms.steps import Flip
from fundax.evals.original_grid import original_points


def spot(at=(9, 4), size=(16, 24)):
    """A red pixel (x, y) in black, with its mask, its channels and its point."""
    image = np.zeros((*size, 3), np.uint8)
    image[at[1], at[0], 0] = 255
    mask = (image[..., 0] > 0).astype(np.int32)
    frame = np.array([[0, 0], [1000, 0], [0, 1000]], np.float32)
    return {"image": image, "mask": mask, "fov": mask.copy(), "points": np.array([at], np.float32), "frame": frame}


def where(array):
    y, x = np.argwhere(array)[0]
    return [x, y]


@pytest.mark.parametrize("moved", [FlipRows(), Transpose(), Affine(0, 1, 3, -2), Affine(90), Affine(180), Rotate(90)])
def test_everything_moves_together(moved):
    example = spot(size=(24, 24))
    example["mask"] = np.stack([example["mask"], 0 * example["mask"]], -1)
    out = move(example, "image", (moved,))
    point = out["points"][0].tolist()
    assert where(out["image"][..., 0] > 128) == where(out["mask"][..., 0]) == where(out["fov"]) == pytest.approx(point)
    back = original_points(out["points"][None], out["frame"][None])[0, 0]
    np.testing.assert_allclose(back, [9, 4], atol=1e-3)


def test_a_magnified_image_keeps_its_point():
    out = move(spot((12, 9), (25, 25)), "image", (Affine(0, 2.0),))
    ys, xs = np.nonzero(out["image"][..., 0] > 100)
    assert out["points"][0].tolist() == [12, 6] and abs(xs.mean() - 12) < 0.6 and abs(ys.mean() - 6) < 0.6


def test_random_steps_are_functions_of_their_draws():
    rng = lambda: np.random.default_rng(3)  # noqa: E731
    for step in (RandomCrop(8), RightAngles(), RandomMove(probability=1.0)):
        one, two = (step(spot(size=(24, 24)), rng()) for _ in range(2))
        np.testing.assert_array_equal(one["image"], two["image"])
    assert RandomCrop(8)(spot(), rng())["mask"].shape == (8, 8)
    with pytest.raises(DataError, match="a crop of 32 pixels does not fit in an image of 24 x 16"):
        RandomCrop(32)(spot(), rng())


def test_left_and_right_landmarks_change_places_in_a_mirror():
    example = spot() | {"points": np.array([[1, 1], [20, 2], [5, 5]], np.float32)}
    out = Flip(1.0, ("left_angle", "right_angle", "fovea"))(example, np.random.default_rng(0))
    np.testing.assert_array_equal(out["points"], [[3, 2], [22, 1], [18, 5]])
    with pytest.raises(DataError, match="'left_angle' becomes 'right_angle'"):
        Flip(1.0, ("left_angle", "fovea", "disc"))(example, np.random.default_rng(0))


def test_synthetic_structures():
    eyes = Eyes(2, size=32, masks=True)
    record = Drawn(eyes, ("disc", "cup"))[0]
    both = Drawn(eyes, ("disc", "cup", "drusen"), overlapping=True)[0].targets["mask"]
    mask = record.targets["mask"]
    assert (
        both.shape == (32, 32, 3) and both[..., 0].sum() == (mask > 0).sum() and both[..., 1].sum() == (mask == 2).sum()
    )
    assert record.targets["value"][0] == pytest.approx(2 * np.sqrt((mask > 0).sum() / np.pi))
    with pytest.raises(DataError, match="no structure 'dics'; expected some of vessel, artery"):
        Drawn(eyes, ("dics",))[0]


@pytest.fixture
def table(tmp_path):
    """A CSV of 4 x 4 images with a mask, a field of view and a point; values of the masks are given by row."""

    def write(masks, points=None, size=(4, 4)):
        rows = []
        for i, values in enumerate(masks):
            Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(tmp_path / f"{i}.png")
            Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / f"f{i}.png")
            if values is not None:
                Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(tmp_path / f"m{i}.png")
            x, y = points[i] if points else (1, 2)
            rows.append(
                {
                    "image": f"{i}.png",
                    "mask": f"m{i}.png",
                    "b": "",
                    "fov": f"f{i}.png",
                    "a_x": x,
                    "a_y": y,
                    "who": i // 2,
                }
            )
        with (tmp_path / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return f"{tmp_path}/t.csv"

    return write


def test_a_csv_of_masks_and_points(table):
    source = named(table([[0, 1, 2], [255, 0]]), {"mask": "mask", "points": "a", "patient": "who"}).source
    record = Prepared(source, 8, classes=("disc", "cup"), landmarks=("a",))[0]
    out = Ready(("mask", "fov", "truth", "truth_fov", "points", "frame"))(record, np.random.default_rng(0))
    assert out["mask"].shape == (8, 8) and out["truth"].shape == (4, 4) and out["truth_fov"].all()
    np.testing.assert_allclose(out["points"], [[2.5, 4.5]])  # the middle of pixel (1, 2) at twice the size
    np.testing.assert_allclose(original_points(out["points"][None], out["frame"][None])[0], [[1, 2]], atol=1e-3)
    one = Prepared(source, 8, classes=("vessel",))[1].targets["truth"]
    assert set(np.unique(one)) == {0, 1}  # 255 of a single structure
    several = named(table([[0, 1]]), {"mask": "mask+b"}).source
    assert Prepared(several, 4, classes=("a", "b"), overlapping=True)[0].targets["truth"].sum((0, 1)).tolist() == [8, 0]


def test_warning_about_a_structure_that_covers_most_of_an_image(table, caplog):
    source = named(table([[255], [255]]), {"mask": "mask"}).source
    for row in range(2):
        assert Prepared(source, 8, classes=("vessel",))[row].targets["truth"].all()
    (message,) = [line for line in (record.getMessage() for record in caplog.records) if "vessel covers" in line]
    assert message.endswith(
        "m0.png: vessel covers 100 % of the image; if it is drawn in black, use values=0:vessel,255:background"
    )


def test_warning_about_landmarks_of_a_turned_image(table, tmp_path, caplog):
    source, exif = named(table([[0], [0]]), {"points": "a"}).source, Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(tmp_path / "0.png", exif=exif)
    Prepared(source, 4, landmarks=("a",))[0]
    assert (
        "0.png: the image is rotated according to its EXIF orientation 3, and its landmarks are read as" in caplog.text
    )


def test_mistakes_are_named_by_file_and_row(table, tmp_path):
    def message(masks, points=None, size=(4, 4), row=1, **fields):
        source = named(table(masks, points, size), {"mask": "mask", "points": "a"}).source
        with pytest.raises(DataError) as error:
            Prepared(source, 8, **fields)[row]
        return str(error.value)

    at, three = f"{tmp_path}/t.csv row 2 (line 3): ", {"classes": ("disc", "cup")}
    assert (
        message([[0], [7]], **three)
        == f"{at}mask {tmp_path}/m1.png has the value 7; expected 0 to 2 for background, disc, cup, "
        "or a mapping such as values=0:background,7:cup"
    )
    assert message([[0], [0]], size=(3, 4), **three) == f"{at}mask {tmp_path}/m1.png is 4 x 3 pixels, its image 4 x 4"
    (tmp_path / "m1.png").unlink()
    assert message([[0], None], **three) == f"{at}{tmp_path}/m1.png: no such image file"
    nan = [(1, 1), ("", 2)]
    assert message([[0], [0]], nan, landmarks=("a",)).startswith(f"{at}landmark a is missing (nan, 2.0)")
    assert (
        message([[0], [0]], [(1, 1), (9, 2)], landmarks=("a",))
        == f"{at}landmark a at (9, 2) is outside its image of 4 x 4"
    )
    assert "2 masks for 1 classes" not in message([[0], [7]], classes=("vessel",))
    allowed = named(table([[0], [0]], nan), {"points": "a"}).source
    assert np.isnan(Prepared(allowed, 8, landmarks=("a",), missing="allowed")[1].targets["points"]).any()
