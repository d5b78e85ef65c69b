"""Damage of a JPEG is an error, whatever harmless warning libjpeg gives first."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import load
from data_pipelines.records import DataError


@pytest.fixture(scope="module")
def jpeg():
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 255, 300)[:, None, None] + rng.normal(0, 9, (300, 400, 3))
    out = io.BytesIO()
    Image.fromarray(slope.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def harmless(jpeg):
    """Files that make libjpeg warn, although every pixel is there."""
    tables, end, version = jpeg.index(b"\xff\xdb"), jpeg.rindex(b"\xff\xd9"), jpeg.index(b"JFIF") + 5
    return {
        "bytes before a segment": jpeg[:tables] + bytes(3) + jpeg[tables:],
        "version of JFIF": jpeg[:version] + b"\2" + jpeg[version + 1 :],
        "padding before the end": jpeg[:end] + bytes(512) + jpeg[end:],
        "bytes after the end": jpeg + bytes(100),
    }


def test_harmless_warnings_pass(jpeg):
    for name, data in harmless(jpeg).items():
        np.testing.assert_array_equal(load(data), load(jpeg), err_msg=name)


def test_damage_behind_a_harmless_warning_is_found(jpeg):
    for name, data in {"nothing": jpeg, **harmless(jpeg)}.items():
        half = len(data) // 2
        for damaged in (data[:half] + bytes(4096) + data[half + 4096 :], data[:half], data[:half] + data[half + 99 :]):
            for scale in (None, 50):
                with pytest.raises(DataError, match="the image is damaged or cut short"):
                    load(damaged, scale)
                    pytest.fail(name)


def test_the_damaged_file_of_the_issue(shared_data):
    cases = shared_data.parent / "cases"
    with pytest.raises(DataError, match=r"damaged_middle\.jpg: the image is damaged or cut short"):
        load(cases / "damaged_middle.jpg")
    assert load(cases / "float_to_1.02.tif").max() == 255 and load(cases / "float_to_1.02.tif").mean() > 100
