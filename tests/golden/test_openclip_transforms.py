"""open_clip's preprocessing and MM-Fundus-CLIP's --extra-aug, pixel by pixel. Sizes and constants come from the files."""

import ast
import json
import re

import numpy as np
import pytest

from data_pipelines.geometry import Crop, Resize, Rotate
from data_pipelines.transforms import steps as transforms

pytestmark = pytest.mark.vectors("openclip")


@pytest.fixture(scope="module")
def vectors(golden):
    with np.load(golden / "openclip" / "preprocess.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def steps(golden):
    """The original's train transforms, as it printed them: name -> arguments."""
    printed = json.loads((golden / "openclip" / "tokenizer_and_transform.json").read_text())[
        "train_transform_extra_aug"
    ]
    found = [re.fullmatch(r"(\w+)\((.*)\)", step) for step in printed]
    return {match.group(1): match.group(2) for match in found if match}


def argument(text, name):
    return ast.literal_eval(re.search(name + r"=([\[(].*?[\])])", text).group(1))


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_resize(vectors, steps, mode):
    mean, std = (np.asarray(argument(steps["Normalize"], name), np.float32) for name in ("mean", "std"))
    names = [name for name in vectors if re.fullmatch(mode + r"\d+", name)]
    assert names
    for name in names:
        size = int(name.removeprefix(mode))
        image = transforms.preprocess(
            vectors["uint8"], {"image_size": size, "resize": mode, "interpolation": "bicubic"}
        )
        normal = ((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(normal, vectors[name], rtol=0, atol=1e-6)


def test_rotation(vectors):
    names = [name for name in vectors if name.startswith("affine_rot")]
    assert names
    for name in names:
        degrees = float(re.match(r"affine_rot([-\d.]+)_", name).group(1))
        np.testing.assert_array_equal(Rotate(degrees).pixels(vectors["uint8"]), vectors[name])


def test_resized_crop(vectors):
    names = [name for name in vectors if name.startswith("resized_crop")]
    assert names
    for name in names:
        top, left, high, wide, size = map(int, re.findall(r"(?:top|left|h|w|to)(\d+)", name))
        box = Crop(top, left, high, wide).pixels(vectors["uint8"])
        np.testing.assert_array_equal(Resize(size, size, "bicubic").pixels(box), vectors[name])


def test_jitter_in_order(vectors):
    names = [name for name in vectors if name.startswith(("brightness", "contrast"))]
    assert names
    for name in names:
        image = vectors["uint8"]
        for part in name.split("_then_"):
            what, factor = re.fullmatch(r"([a-z]+)([\d.]+)", part).groups()
            image = transforms.adjust(image, what, float(factor))
        np.testing.assert_array_equal(image, vectors[name])


def test_extra_aug_has_the_originals_steps_in_its_order(steps):
    order = [name for name in steps if name not in ("ToTensor", "Normalize")]
    size = argument(steps["RandomResizedCrop"], "size")[0]
    affine, crop, jitter = ours = transforms.extra_aug(size)
    assert [type(step).__name__ for step in ours] == order
    assert [-affine.degrees, affine.degrees] == argument(steps["RandomAffine"], "degrees")
    assert crop.size == size and crop.interpolation in steps["RandomResizedCrop"]
    assert crop.scale == argument(steps["RandomResizedCrop"], "scale")
    np.testing.assert_allclose(crop.ratio, argument(steps["RandomResizedCrop"], "ratio"), atol=5e-5)  # 4 digits printed
    assert (1 - jitter.brightness, 1 + jitter.brightness) == argument(steps["ColorJitter"], "brightness")
    assert (1 - jitter.contrast, 1 + jitter.contrast) == argument(steps["ColorJitter"], "contrast")
    assert "saturation=None, hue=None" in steps["ColorJitter"] and jitter.saturation == 0
