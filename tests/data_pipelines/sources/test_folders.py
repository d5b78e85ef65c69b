"""Class folders as records; what is missing is named."""

import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import ReadOptions
from data_pipelines.records import DataError
from data_pipelines.sources.folders import image_folder, parts_of
from data_pipelines.sources.splits import split_by
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
    assert given.classes == ("z", "a") and given[0].targets["label"] == 1  # a class without images does not crash
    with pytest.raises(DataError, match=r"train/a: is not one of the classes x, y"):
        len(image_folder(tmp_path, "train", classes=("x", "y")))


def test_folders_that_are_missing_or_empty(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match=r"/val: no such folder, \S+ holds train$"):
        len(image_folder(tmp_path, "val"))
    with pytest.raises(DataError, match=r"gone: no such folder$"):
        len(image_folder(tmp_path / "gone"))
    (tmp_path / "test" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"test: no images \(.jpg, .jpeg, .*\) in folders \S+test/<class>/"):
        len(image_folder(tmp_path, "test"))


def test_a_class_without_images_is_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "b" / "scan.png")
    (tmp_path / "train" / "b" / "scan.png").rename(tmp_path / "train" / "b" / "scan.dcm")
    with pytest.raises(DataError, match=r"train/b: a class without images \(.*\); it holds 1 \.dcm$"):
        len(image_folder(tmp_path))


def test_every_image_below_a_class_is_read_and_its_subfolder_is_the_patient(tmp_path, caplog):
    for name in (
        "AMD/p001/left.jpg",
        "AMD/p001/visit2/right.jfif",
        "AMD/p002/1.JPE",
        "AMD/lone.Png",
        "normal/p003/1.webp",
    ):
        save(tmp_path / "train" / name, PIXELS) if name[-3:] not in ("fif", "JPE") else None
        if name[-3:] in ("fif", "JPE"):
            (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS).save(tmp_path / "train" / name, "JPEG")
    for name in ("AMD/notes.txt", "AMD/p001/scan.dcm", "AMD/Thumbs.db", "AMD/._lone.Png", "AMD/@eaDir/lone.Png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "train" / "AMD" / "p002" / "loop").symlink_to(tmp_path / "train" / "AMD")
    source = image_folder(tmp_path)
    assert [r.patient for r in source] == source.patients() == ["AMD/lone.Png", "p001", "p001", "p002", "p003"]
    assert [int(r.targets["label"]) for r in source] == [0, 0, 0, 0, 1]
    np.testing.assert_array_equal(SingleView()(source[0], np.random.default_rng(0))["image"], PIXELS)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"{tmp_path}/train: 2 files are not images and are passed over (1 .txt, 1 .dcm)",
        f"{tmp_path}/train: 4 images are in 3 subfolders of the classes; each subfolder is taken as one patient",
    ] or messages[0].endswith("(1 .dcm, 1 .txt)")
    parts = split_by(source, "patient", {"a": 0.5, "b": 0.5})
    assert not {r.patient for r in parts["a"]} & {r.patient for r in parts["b"]}


def test_folders_that_programs_make_are_never_classes(tmp_path):
    for name in ("DR", "normal", "__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN"):
        save(tmp_path / "train" / name / "1.png")
    save(tmp_path / "__MACOSX" / "train" / "1.png")
    source = image_folder(tmp_path)
    assert source.classes == ("DR", "normal") and len(source) == 2
    assert parts_of(tmp_path) == {"train": [tmp_path / "train"]}


def test_numbers_are_ordered_as_numbers_and_negative_ones_are_not_classes(tmp_path, caplog):
    for name in ("0", "1", "10", "2", "-1"):
        save(tmp_path / "train" / name / "1.png")
    assert image_folder(tmp_path).classes == ("0", "1", "2", "10") and len(image_folder(tmp_path)) == 4
    assert "negative number are not labelled and are passed over: -1" in caplog.text
    for name in ("b", "B1", "a10", "a9"):
        save(tmp_path / "words" / name / "1.png")
    assert image_folder(tmp_path / "words").classes == ("B1", "a9", "a10", "b")


@pytest.mark.parametrize("place", ["train", "val"])
def test_two_spellings_of_a_class_are_an_error(tmp_path, place):
    save(tmp_path / "train" / "Normal" / "1.png")
    save(tmp_path / place / "normal" / "1.png")
    with pytest.raises(DataError, match="the folders 'Normal' and 'normal' are two spellings of one class; rename one"):
        len(image_folder(tmp_path))


def test_parts_by_any_of_their_names(tmp_path, caplog):
    for name in ("Train/a/1.png", "Train/b/1.png", "valid/a/2.png", "dev/b/3.png", "TEST/a/4.png", "extra/a/5.png"):
        save(tmp_path / name)
    found = parts_of(tmp_path)
    assert {part: [folder.name for folder in folders] for part, folders in found.items()} == {
        "train": ["Train"],
        "val": ["dev", "valid"],
        "test": ["TEST"],
    }
    assert "ignored folders, because they are not parts of the data: extra" in caplog.text
    rows = {part: len(image_folder(tmp_path, part)) for part in ("", "train", "val", "validation", "test", "all")}
    assert rows == {"": 2, "train": 2, "val": 2, "validation": 2, "test": 1, "all": 5}
    assert len(image_folder(tmp_path, "extra")) == 1 and image_folder(tmp_path, "test").classes == ("a", "b")


def test_classes_without_parts(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        save(tmp_path / name)
    source = image_folder(tmp_path, classes=("b", "a"))
    assert parts_of(tmp_path) == {} and [r.findings for r in source] == [("b",), ("a",)]
    assert [r.patient for r in source] == ["b/1.png", "a/1.png"]
    save(tmp_path / "test" / "1.png")
    with pytest.raises(DataError, match="holds the part test and also a, b; expected either"):
        len(image_folder(tmp_path))
    (tmp_path / "test").rename(tmp_path / "a" / "loose")
    (tmp_path / "flat").mkdir()
    save(tmp_path / "flat" / "1.png")
    (tmp_path / "flat" / "labels.csv").write_text("image\n1.png\n")
    with pytest.raises(
        DataError, match=r"flat: has 1 images and no folders of classes; .*give its table: \S+labels.csv"
    ):
        len(image_folder(tmp_path / "flat"))


def test_the_depth_of_a_folder(tmp_path):
    deep = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)
    save(tmp_path / "train" / "a" / "1.png", deep)
    with pytest.raises(DataError, match=r"1\.png: 16-bit grey with the largest value 4095"):
        SingleView()(image_folder(tmp_path)[0], np.random.default_rng(0))
    source = pickle.loads(pickle.dumps(image_folder(tmp_path, reading=ReadOptions(depth=12))))
    np.testing.assert_array_equal(SingleView()(source[0], np.random.default_rng(0))["image"][..., 0], deep >> 4)
