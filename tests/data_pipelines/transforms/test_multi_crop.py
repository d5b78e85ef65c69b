"""Crops for self-distillation: shapes, the order of operations, and what each of them does to pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.records import DataError
from data_pipelines.transforms.multi_crop import (
    FIRST,
    LOCAL,
    OTHER,
    Colours,
    MultiCrop,
    Ratio,
    adjust_hue,
    published_colours,
)
from data_pipelines.transforms.steps import stream

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
STILL = Colours(jitter=0, grey=0, blur=0, solarize=0)


def test_shapes_and_reproducibility():
    step = MultiCrop(size=32, patch=8, local_crops=3, local_size=16, ratio_masked=Ratio(((0.5, 0.0),)), mask="random")
    one, two = (step({"image": IMAGE, "modality": np.int32(2)}, stream(0, 5, "MultiCrop", 0)) for _ in range(2))
    assert {k: v.shape for k, v in one.items()} == {
        "global": (2, 32, 32, 3), "local": (3, 16, 16, 3), "masked": (2, 4, 4), "modality": ()}  # fmt: skip
    assert one["global"].dtype == np.uint8 and (one["masked"].sum((1, 2)) == 8).all()
    assert all(np.array_equal(one[k], two[k]) for k in one)
    other = step({"image": IMAGE}, stream(0, 6, "MultiCrop", 0))
    assert not np.array_equal(one["global"], other["global"])


def test_each_crop_has_its_own_colours():
    """Solarisation is the other global crops' alone, blur always the first's (the original's numbers)."""
    first, other, small = MultiCrop().colours
    assert (first.blur, other.blur, small.blur) == (1.0, 0.1, 0.5)
    assert (first.solarize, other.solarize, small.solarize) == (0.0, 0.2, 0.0)
    whole = MultiCrop(8, 4, local_crops=1, local_size=4, scale=(1, 1), ratio=(1, 1), colours=(STILL,) * 3)
    inverted = replace(whole, colours=(STILL, replace(STILL, solarize=1), STILL))
    image = np.full((8, 8, 3), 200, np.uint8)
    out = inverted({"image": image}, np.random.default_rng(0))
    assert (out["global"][0] == 200).all() and (out["global"][1] == 55).all() and (out["local"] == 200).all()


def test_order_is_jitter_grey_blur_solarize():
    picture = Image.fromarray(IMAGE)
    out = Colours(jitter=0, grey=1, blur=0, solarize=1)(picture, np.random.default_rng(0))
    grey = np.round(IMAGE @ np.array([0.299, 0.587, 0.114]))
    ours = np.asarray(out)
    assert (ours[..., 0] == ours[..., 1]).all() and (ours[..., 1] == ours[..., 2]).all()
    expected = np.where(grey >= 128, 255 - grey, grey)
    apart = (np.abs(grey - 127.5) > 1.5) & (np.abs(ours[..., 0] - expected) > 1)
    assert not apart.any()
    blurred = np.asarray(Colours(jitter=0, grey=0, blur=1, solarize=1, radii=(2, 2))(picture, np.random.default_rng(0)))
    soft = Colours(jitter=0, grey=0, blur=1, solarize=0, radii=(2, 2))(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(blurred, np.asarray(ImageOps.solarize(soft, 128)))


def test_jitter_keeps_to_its_spans():
    grey = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    values = {int(np.asarray(Colours(1.0, (0.4, 0, 0, 0), 0, 0)(grey, np.random.default_rng(i)))[0, 0, 0])
              for i in range(40)}  # fmt: skip
    assert 60 <= min(values) < 75 and 125 < max(values) <= 140


def test_hue_turns():
    red = Image.fromarray(np.array([[[255, 0, 0]]], np.uint8))
    assert (
        np.asarray(adjust_hue(red, 1 / 3)).tolist() == [[[0, 255, 3]]]
        or np.asarray(adjust_hue(red, 1 / 3))[0, 0, 1] == 255
    )
    np.testing.assert_array_equal(np.asarray(adjust_hue(red, 0.0)), np.asarray(red))
    back = adjust_hue(adjust_hue(red, 0.1), -0.1)
    assert np.abs(np.asarray(back).astype(int) - [255, 0, 0]).max() <= 8  # steps of 1/256 of a turn


def test_mistakes_are_named():
    with pytest.raises(DataError, match="local_size=100 is not a multiple of the patch, 16"):
        MultiCrop(local_size=100)


def test_published_blur_goes_with_the_size():
    assert published_colours(224) == (FIRST, OTHER, LOCAL)
    first, other, small = published_colours(56)
    assert first.radii == other.radii == small.radii == (0.025, 0.5)
    assert (first.blur, other.solarize, small.blur) == (1.0, 0.2, 0.5)
