"""Sources: CSV rows, class folders and wrapped objects as records; what is missing is named."""

import csv
import gc
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.csv import csv_source, image_folder, wrap
from data_pipelines.transforms.steps import Squash, apply
from data_pipelines.transforms.views import SingleView

PIXELS = np.full((4, 6, 3), 7, np.uint8)


def write_csv(tmp_path, rows, header="image,text"):
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return tmp_path / "labels.csv"


def save(path, pixels=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_csv_becomes_records(tmp_path):
    source = csv_source(write_csv(tmp_path, ["a.png,drusen,1", "b.png,normal,0"], "image,text,label"), "pictures")
    assert source.schema.path.name == "labels.csv"  # nothing is read yet: the folder does not exist
    with pytest.raises(DataError, match="pictures: no such image folder"):
        len(source)
    source = csv_source(tmp_path / "labels.csv")
    record = source[-1]
    assert record == source[1] and record.patient == "b.png" and record.day == 0
    assert record.views == (View(tmp_path / "b.png", "CFP", ""),)
    assert (record.report, record.findings, record.targets) == ("normal", ("0",), {"label": 0})
    assert record.where == f"{tmp_path}/labels.csv row 2 (line 3)"
    for outside in (2, -3):
        with pytest.raises(IndexError, match=f"row {outside} of 2"):
            source[outside]


def test_a_missing_file_in_row_7_is_named(tmp_path):
    source = csv_source(write_csv(tmp_path, [f"{k}.png,text {k}" for k in range(1, 10)]))
    for k in range(1, 10):
        if k != 7:
            save(tmp_path / f"{k}.png")
    steps = (SingleView(), Squash(8))
    assert apply(steps, source[5], 0, 5)["image"].shape == (8, 8, 3)
    with pytest.raises(DataError) as caught:
        apply(steps, source[6], 0, 6)
    assert str(caught.value) == f"{tmp_path}/labels.csv row 7 (line 8): {tmp_path}/7.png: no such image file"
    (tmp_path / "7.png").write_bytes(b"\x89PN")
    with pytest.raises(DataError, match=r"labels.csv row 7 \(line 8\): \S+7.png: not an image, it has only 3 bytes$"):
        apply(steps, source[6], 0, 6)


def test_the_index_of_many_rows_is_small_and_travels_light(tmp_path, monkeypatch):
    rows = 10_000
    path = write_csv(
        tmp_path,
        (f"images/{k:08d}.jpg,finding {k},{k % 5},{'LR'[k % 2]},p{k // 2}" for k in range(rows)),
        "image,text,label,eye,patient",
    )
    source = csv_source(path)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    assert len(source) == rows
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.collect()
    assert len(gc.get_objects()) - objects < 1000  # not one object a row
    # 19 + 13 + 6 bytes of text, 8 of offset for each of the three, 2 codes, 8 of place
    assert held < rows * 85
    monkeypatch.setattr("data_pipelines.sources.columns.SPILL", 5_000)
    large = pickle.dumps(csv_source(path))
    assert len(large) < 5000  # names of files, not the index
    other = pickle.loads(large)
    path.unlink()  # a worker does not parse the file again
    record = other[9_999]
    assert record == source[9_999]
    assert (record.patient, record.views[0].eye, record.targets["label"]) == ("p4999", "right", 4)


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
        ((None, "text"), "image must be an array, bytes, a path or a Pillow image, not NoneType"),
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


REAL = {  # folder: columns, rows of the file, arguments
    "csdi": {"columns": {"text": "text_zh", "patient": "group", "label": "severity"}},
    "hrf": {"columns": {"text": "{diagnosis}", "label": "category"}, "classes": ("h", "dr", "g")},
    "idrid": {"columns": {"text": "retinopathy_name", "label": "retinopathy_grade"}, "only": {"split": "train"}},
    "kermany_oct_samples": {"columns": {"text": "class", "label": "class"}, "modality": "OCT"},
    "chase_db1": {"columns": {"patient": "subject", "mask": "vessel_mask_observer1"}},
}


@pytest.mark.parametrize("folder", REAL)
def test_real_tables_and_photographs(shared_data, folder):
    path = shared_data / folder / "labels.csv"
    source = csv_source(path, **REAL[folder])
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(source) == len(rows)
    template = REAL[folder]["columns"].get("text", "").strip("{}")
    for k in (0, len(rows) // 2, len(rows) - 1):
        assert source[k].report == rows[k].get(template, "")
    targets = ("mask",) if folder == "chase_db1" else ("label",)
    steps = (SingleView(size_hint=64, prompt="{modality}: {text}", targets=targets), Squash(64))
    example = apply(steps, source[len(source) - 1], 0, 0)
    assert example["image"].shape == (64, 64, 3) and 20 < example["image"].mean() < 200
    if folder == "chase_db1":
        assert source[1].views[0].eye == "right" and example["mask"].shape == (64, 64)
        assert 0.02 < (example["mask"] > 0).mean() < 0.15
    else:
        starts = "optical coherence" if folder == "kermany_oct_samples" else "color fundus photograph: "
        assert example["text"].startswith(starts) and 0 <= example["label"] < len(source.classes)


def test_the_published_table_of_rfmid(shared_data):
    path = shared_data / "rfmid_labels_only" / "labels.csv"
    names = path.read_text(encoding="utf-8-sig").split("\n", 1)[0].strip().split(",")[2:]
    source = csv_source(path, columns={"image": "{ID}.png", "label": names})
    assert len(source) == 1920 and source.classes == tuple(names)
    assert source[0].findings == ("DR",) and source[0].targets["label"].shape == (45,)
