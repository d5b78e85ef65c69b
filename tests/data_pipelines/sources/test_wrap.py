"""Wrapped objects as records; what is wrong is named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.wrap import wrap

PIXELS = np.full((4, 6, 3), 7, np.uint8)


def test_wrapped_items_of_every_kind():
    row = {
        "image": PIXELS,
        "caption": "drusen",
        "label": "AMD",
        "eye": "OS",
        "modality": "uwf",
        "day": 3,
        "patient": 12,
    }
    items = [
        Record("p", (View(PIXELS),)),
        (PIXELS, "a text"),
        (Path("a.png"), 1),
        row | {"caption": "x", "points": [[1, 2]]},
        {"image": Image.fromarray(PIXELS), "caption": ""},
        {"image": {"bytes": b"abc", "path": None}, "caption": None, "label": [1.0, 0.0]},
    ]
    source = wrap(items[:3], classes=("normal", "AMD"))
    assert len(source) == 3 and source[0].where == "list row 1" and source[0].patient == "p"
    assert source[1].report == "a text" and source[1].views[0].image is PIXELS
    assert source[2].findings == ("AMD",) and source[2].views[0].image == Path("a.png")
    mapped = wrap(items[3:], {"text": "caption"}, classes=("normal", "AMD"))
    assert (mapped[0].report, mapped[0].patient, mapped[0].day) == ("x", "12", 3)
    assert (mapped[0].views[0].eye, mapped[0].views[0].modality) == ("left", "UWF")
    assert mapped[0].targets["points"] == [[1, 2]] and mapped[0].targets["label"] == 1
    np.testing.assert_array_equal(mapped[1].views[0].image, PIXELS)
    assert mapped[2].views[0].image == b"abc" and mapped[2].findings == ("normal",)
    assert pickle.loads(pickle.dumps(mapped))[0].report == "x"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"picture": PIXELS}, "has no image, only picture"),
        (3, r"an item must be a Record, a mapping or \(image, text\), not int"),
        ((3, "text"), "image must be an array, bytes, a path or a Pillow image, not int"),
        ((None, "text"), "image is empty"),
        (("", "text"), "image is empty"),
        ((PIXELS, float("nan")), r"\(image, nan\): expected a text or a label"),
        ((PIXELS, None), r"\(image, None\): expected a text or a label"),
        ({"image": PIXELS, "text": b"normal"}, "text must be a text, not bytes b'normal'"),
        ({"image": PIXELS, "text": ["a", "b"]}, r"text must be a text, not list \['a', 'b'\]"),
        ({"image": PIXELS, "patient": float("nan")}, r"patient is empty \(nan\)"),
        ({"image": PIXELS, "patient": None}, r"patient is empty \(None\)"),
        ({"image": PIXELS, "patient": 1.5}, "patient must be a text or a whole number, not float"),
        ({"image": PIXELS, "day": None}, r"day is empty \(None\)"),
        ({"image": PIXELS, "day": "soon"}, "day: 'soon' is neither"),
        ({"image": PIXELS, "eye": 1}, "eye must be a text, not int 1"),
        ({"image": PIXELS, "value": "old"}, "value 'old' is not a number"),
        ({"image": PIXELS, "label": [1, -1]}, r"label \[1, -1\]: several labels are each 0, 1 or NaN"),
        ({"image": PIXELS, "label": [1, 0.5]}, r"label \[1.0, 0.5\]: several labels are each 0, 1 or NaN"),
        ({"image": PIXELS, "label": ["a", "b"]}, r"label \[.a., .b.\] is not a list of numbers"),
        ({"image": PIXELS, "label": b"AMD"}, "label b'AMD' is not a class number"),
        ((PIXELS, 0.5), "label 0.5 is not a class number"),
        ((PIXELS, 7), "label 7 is beyond the 2 classes"),
        ({"image": PIXELS, "label": "AMDD"}, "label 'AMDD' is not one of the classes normal, AMD; did you mean 'AMD'"),
        ({"image": PIXELS, "eye": "third"}, "eye 'third' is not left or right"),
        ({"image": PIXELS, "modality": "x-ray"}, "modality 'x-ray' is not one of CFP"),
    ],
)
def test_wrapped_items_that_are_wrong(item, message):
    with pytest.raises(DataError, match="^list row 1: " + message):
        wrap([item], classes=("normal", "AMD"))[0]


def test_wrapped_mapping_without_a_mapped_column():
    with pytest.raises(DataError, match="list row 1: has no caption, only image, text"):
        wrap([{"image": PIXELS, "text": "x"}], {"text": "caption"})[0]


class NAType:
    """Named like pandas.NA."""


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float32("nan"), NAType(), "nan", " NULL ", "-"])
def test_what_is_missing_is_empty_and_never_a_word(nothing):
    item = {"image": PIXELS, "text": nothing, "eye": nothing, "modality": nothing, "age": nothing}
    record = wrap([item], modality="OCT")[0]
    assert (record.report, record.views[0].eye, record.views[0].modality) == ("", "", "OCT")
    assert record.attributes == {"age": ""} and wrap([item | {"age": 50}])[0].attributes == {"age": "50"}


def test_labels_and_days_follow_the_rules_of_a_table():
    def first(**item):
        return wrap([{"image": PIXELS, **item}], classes=("normal", "AMD"))[0]

    assert [int(first(label=x).targets["label"]) for x in ("NORMAL ", -1, -9, "-1", float("nan"))] == [
        0,
        -1,
        -1,
        -1,
        -1,
    ]
    assert first(label=-1).findings == ()
    np.testing.assert_array_equal(first(label=[1, None]).targets["label"], [1, np.nan])
    assert {first(day=x).day for x in ("2024-07-31", 20240731, np.datetime64("2024-07-31"))} == {739098}
    assert first(day=12.0).day == 12 and first(patient=12.0).patient == "12"
    with pytest.raises(DataError, match="'A' and 'a' are the same class"):
        wrap([], classes=("A", "a"))


def test_a_pillow_image_that_cannot_be_read_names_its_row(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 900, np.uint16))
    with pytest.raises(DataError, match=r"^list row 1: a Pillow image: 16-bit grey with the largest value 900"):
        wrap([{"image": deep}])[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert wrap([{"image": opened}])[0].views[0].image.shape == (6, 4, 3)
