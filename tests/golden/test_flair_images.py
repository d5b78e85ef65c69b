"""FLAIR's preprocessing of images, every array of it."""

import json

import numpy as np
import pytest

from data_pipelines.geometry import fitted
from data_pipelines.transforms.flair import (
    FlairAugment,
    adjust_colors,
    flair_pixels,
    rotate_and_scale,
)
from data_pipelines.transforms.steps import apply

pytestmark = pytest.mark.vectors("flair")
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def arrays(golden):
    return dict(np.load(golden / "flair" / "preprocess.npz"))


@pytest.fixture(scope="module")
def size(golden):
    return json.loads((golden / "flair" / "config.json").read_text())["preprocess_size"]


def test_every_image(arrays, size):
    names = [key.removesuffix("_uint8") for key in arrays if key.endswith("_uint8")]
    assert names
    for name in names:
        close(flair_pixels(arrays[f"{name}_uint8"], size), arrays[f"{name}_out{size}"], name)
        if f"{name}_out{size}_noantialias" in arrays:
            old = flair_pixels(arrays[f"{name}_uint8"], size, antialias=False)
            close(old, arrays[f"{name}_out{size}_noantialias"], name)


def test_the_image_of_the_whole_model(golden):
    arrays = dict(np.load(golden / "flair" / "e2e_io.npz"))
    expected = arrays["preprocessed"][0]
    close(flair_pixels(arrays["image_uint8"], expected.shape[-1]), expected)


def test_the_training_path_and_squashing(arrays, size):
    """Which of the images they are of, the vectors leave open: one of them it must be."""
    images = [x for key, x in arrays.items() if key.endswith("_uint8")]
    for name, canvas in (("train_path", True), ("nocanvas", False)):
        expected = arrays[f"{name}_out{size}"].transpose(1, 2, 0)
        nearest = min(np.abs(flair_pixels(image, size, canvas=canvas) - expected).max() for image in images)
        assert nearest <= TOLERANCE, name


def test_the_long_side_is_whole(arrays):
    lost = [side for side in range(16, 4097) if max(fitted(side, 1 + side // 2, 512)) == 511]
    np.testing.assert_array_equal(lost, arrays["sizes_with_511_at_512"])


def test_mirror_affine_and_jitter(golden):
    given = dict(np.load(golden / "flair" / "augment_kornia.npz"))
    for i, image in enumerate(given["x"].transpose(0, 2, 3, 1)):
        np.testing.assert_array_equal(image[:, ::-1], given["flip_y"][i].transpose(1, 2, 0))
        moved = rotate_and_scale(image, given["affine_param_angle"][i], given["affine_param_scale"][i, 0])
        np.testing.assert_allclose(moved, given["affine_y"][i].transpose(1, 2, 0), rtol=0, atol=9e-6)
        factors = (float(given[f"jitter_param_{name}_factor"][i]) for name in ("brightness", "contrast"))
        changed = adjust_colors(image, *factors, given["jitter_param_order"])
        np.testing.assert_allclose(changed, given["jitter_y"][i].transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_the_step_draws_a_quarter_of_each():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    out = [apply((FlairAugment(),), {"image": image}, 0, place)["image"] for place in range(200)]
    same = sum(np.array_equal(image, one) for one in out)
    assert 85 <= same <= 140  # (3/4)^2 of them
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in out)


def close(ours, theirs, name=""):
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), rtol=0, atol=TOLERANCE, err_msg=name)
