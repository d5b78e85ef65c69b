"""Class folders as records; what is missing is named."""

import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError
from data_pipelines.sources.folders import image_folder
from data_pipelines.transforms.views import SingleView

PIXELS = np.full((4, 6, 3), 7, np.uint8)


def save(path, pixels=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_class_folders(tmp_path):
    for name in (
        "train/b/2.png",
        "train/b/10.JPG",
        "train/a/1.tif",
        "train/a/notes.txt",
        "val/b/1.png",
        "test/c/1.png",
    ):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    save(tmp_path / "train" / "b" / ".hidden.png")
    train, val = image_folder(tmp_path), image_folder(tmp_path, "val", modality="oct")
    assert train.classes == val.classes == ("a", "b", "c")  # all splits together: c has no training image
    assert [(r.patient, int(r.targets["label"])) for r in train] == [("a/1.tif", 0), ("b/10.JPG", 1), ("b/2.png", 1)]
    record = pickle.loads(pickle.dumps(val))[0]
    assert record.findings == ("b",) and record.views[0].modality == "OCT"
    assert record.where == f"{tmp_path}/val image 1"
    np.testing.assert_array_equal(SingleView()(record, np.random.default_rng(0))["image"], PIXELS)


def test_classes_of_a_folder_in_an_order_that_is_given(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    given = image_folder(tmp_path, "train", classes=("z", "a"))
    assert given.classes == ("z", "a") and given[0].targets["label"] == 1  # the absent class is no crash
    with pytest.raises(DataError, match=r"train/a: is not one of the classes x, y"):
        len(image_folder(tmp_path, "train", classes=("x", "y")))


def test_folders_that_are_missing_or_empty(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match=r"/val: no such folder, \S+ holds train$"):
        len(image_folder(tmp_path, "val"))
    with pytest.raises(DataError, match=r"gone/train: no such folder, \S+gone holds nothing$"):
        len(image_folder(tmp_path / "gone"))
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"test: no images \(.jpg, .jpeg, .png.*\) in folders \S+test/<class>/"):
        len(image_folder(tmp_path, "test"))
