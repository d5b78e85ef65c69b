"""Local contrast and the random changes of photographs."""

import numpy as np
import pytest

from data_pipelines.images.contrast import clahe, graham
from data_pipelines.records import DataError
from data_pipelines.transforms.photographs import RandomBlur, RandomJPEG, photograph_changes
from data_pipelines.transforms.steps import Squash, apply, preprocess


def gradient(side=64):
    """A texture under light that falls from left to right."""
    light = np.linspace(200, 40, side)[None, :, None]
    texture = 1 + 0.1 * np.random.default_rng(0).standard_normal((side, side, 1))
    return np.broadcast_to(light * texture, (side, side, 3)).clip(11, 255).astype(np.uint8)


def sides(image):
    """By how much the left quarter of an image is brighter than the right one."""
    quarter = image.shape[1] // 4
    return abs(float(image[:, :quarter].mean()) - float(image[:, -quarter:].mean()))


def test_light_is_evened_out():
    image = gradient(128)
    out = graham(image)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert sides(out) < 0.1 * sides(image)


def test_the_limit_decides_how_much_clahe_evens_out():
    image = gradient(128)
    limited, full = (
        clahe(image),
        clahe(image, limit=256.0),
    )  # the largest possible count: plain equalisation of the tiles
    assert full.shape == image.shape and full.dtype == np.uint8
    assert sides(full) < 0.2 * sides(image) < sides(limited) < sides(image)


def test_a_frame_stays_grey():
    black = np.zeros((32, 32, 3), np.uint8)
    black[8:24, 8:24] = 120
    assert (graham(black)[0] == 128).all()


def test_preprocessing_says_what_is_evened_out():
    image = gradient()
    facts = {"image_size": 64, "contrast": "graham"}
    np.testing.assert_array_equal(preprocess(image, facts), graham(image))
    with pytest.raises(DataError, match="contrast must be one of none, clahe, graham"):
        Squash(64, contrast="more")


def test_changes_are_random_and_repeatable():
    example = {"image": gradient(), "eye": np.int32(0), "modality": np.int32(0)}
    steps = photograph_changes(48)
    one, same, other = (apply(steps, example, 0, position)["image"] for position in (1, 1, 2))
    assert one.shape == (48, 48, 3)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    for step in (RandomBlur(1.0), RandomJPEG(1.0)):
        assert (step({"image": gradient()}, np.random.default_rng(1))["image"] != gradient()).any()
        assert step.__class__(0.0)(example, np.random.default_rng(1)) is example
