"""CSV rows as records; what is missing is named."""

import csv
import gc
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError, View
from data_pipelines.sources.csv import csv_source
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
