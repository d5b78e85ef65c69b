"""FLAIR's preprocessing of images, every array of it."""

import json

import numpy as np
import pytest

from data_pipelines.canvas import flair_pixels, foreground

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


def test_the_lit_region(arrays):
    image = arrays["crop_in"].transpose(1, 2, 0)
    box = foreground(image)
    np.testing.assert_array_equal(box.pixels(image), arrays["crop_out"].transpose(1, 2, 0))


def close(ours, theirs, name=""):
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), rtol=0, atol=TOLERANCE, err_msg=name)
