"""Public data sets built from small trees in their publishers' layouts, read back as records."""

import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import datasets, pipeline
from data_pipelines.datasets import idrid, kermany_oct
from data_pipelines.datasets.layouts import label_table
from data_pipelines.images.decode import load
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Eyes, Visits
from data_pipelines.transforms.steps import Squash
from data_pipelines.transforms.views import SingleView

HEADER = "Image name,Retinopathy grade,Risk of macular edema ,,\n"  # as published: a space and empty columns


@dataclass(frozen=True)
class Table:
    """One split's folder and label file of IDRiD."""

    images: Path
    labels: Path

    def add(self, name, grade, oedema, picture):
        shutil.copy(picture, self.images / f"{name}.jpg")
        with self.labels.open("a") as file:
            file.write(f"{name},{grade},{oedema},,\n")


def idrid_table(root, split):
    images, labels = idrid.SPLITS[split]
    table = Table(root / idrid.IMAGES / images, root / idrid.TABLES / labels)
    table.images.mkdir(parents=True)
    table.labels.parent.mkdir(exist_ok=True)
    table.labels.write_text(HEADER)
    return table


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.full((12, 16, 3), (200, 90, 30), np.uint8)).save(path, quality=95)
    return path


@pytest.fixture
def idrid_folder(tmp_path, picture):
    root = tmp_path / "B. Disease Grading"
    train, test = idrid_table(root, "train"), idrid_table(root, "test")
    train.add("IDRiD_001", 3, 2, picture)
    train.add("IDRiD_002", 0, 0, picture)
    test.add("IDRiD_001", 4, 1, picture)
    return root


@pytest.fixture
def oct_folder(tmp_path, picture):
    root = tmp_path / "OCT2017"
    for split in ("train", "val", "test"):
        for code in kermany_oct.CODES:
            (root / split / code).mkdir(parents=True)
            shutil.copy(picture, root / split / code / f"{code}-12{len(split)}-1.jpeg")
    (root / "train" / "CNV" / ".DS_Store").write_text("left by a file manager")
    return root


def test_idrid_as_published(tmp_path, idrid_folder, picture):
    path = datasets.build("idrid", idrid_folder.parent, tmp_path / "data")
    assert [p.suffix for p in path.glob("*.array_record*")] == [".array_record-00000-of-00001"] * 2
    train = datasets.source("idrid", "train", tmp_path / "data")
    assert train.classes[3] == "severe nonproliferative diabetic retinopathy"
    records = {record.patient: record for record in train}
    assert sorted(records) == ["train/IDRiD_001", "train/IDRiD_002"]
    record = records["train/IDRiD_001"]
    assert record.targets == {"label": 3, "macular_edema_risk": 2}
    assert record.findings == ("severe nonproliferative diabetic retinopathy",)
    assert record.report.startswith("Severe nonproliferative diabetic retinopathy")
    (view,) = record.views
    assert (view.modality, view.eye, view.image) == ("CFP", "", picture.read_bytes())
    assert "IDRiD_001.jpg" in record.where and record.where.startswith("idrid train row ")
    (other,) = datasets.source("idrid", "test", tmp_path / "data")
    assert (other.patient, other.targets["label"]) == ("test/IDRiD_001", 4)


def test_kermany_oct_as_published(tmp_path, oct_folder):
    datasets.build("kermany_oct", oct_folder, tmp_path / "data")
    for split in ("train", "val", "test"):
        records = list(datasets.source("kermany_oct", split, tmp_path / "data"))
        assert sorted(record.targets["label"] for record in records) == [0, 1, 2, 3]
        assert {record.patient for record in records} == {f"12{len(split)}"}
        assert {record.views[0].modality for record in records} == {"OCT"}
        assert all(record.findings == (kermany_oct.CLASSES[record.targets["label"]],) for record in records)


def test_built_twice_is_the_same_and_needs_a_word(tmp_path, oct_folder):
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        datasets.build("kermany_oct", oct_folder, place)
    ours, theirs = (list(datasets.source("kermany_oct", "train", place)) for place in (first, second))
    assert ours == theirs
    with pytest.raises(DataError, match="already built; delete"):
        datasets.build("kermany_oct", oct_folder, first)


def test_source_pickles_without_its_files(tmp_path, oct_folder):
    datasets.build("kermany_oct", oct_folder, tmp_path)
    source = datasets.source("kermany_oct", "train", tmp_path)
    first = source[0]
    packed = pickle.dumps(source)
    assert len(packed) < 500 + len(str(tmp_path)) and pickle.loads(packed)[0] == first


def test_built_data_set_through_the_pipeline(tmp_path, oct_folder):
    datasets.build("kermany_oct", oct_folder, tmp_path)
    source = datasets.source("kermany_oct", "train", tmp_path)
    (batch,) = pipeline.one_epoch(source, [SingleView(), Squash(8)], batch=4)()
    assert batch["image"].shape == (4, 8, 8, 3)
    np.testing.assert_allclose(batch["image"], np.broadcast_to([200, 90, 30], (4, 8, 8, 3)), atol=3)
    assert sorted(batch["label"].tolist()) == [0, 1, 2, 3]
    assert set(batch["text"]) == set(kermany_oct.CAPTIONS)


def remove_class(folder):
    shutil.rmtree(folder / "val" / "DME")


def misname(folder):
    image = folder / "test" / "DME" / "DME-124-1.jpeg"
    image.rename(image.with_name("CNV-124-1.jpeg"))


def truncate(folder):
    (folder / "test" / "DME" / "DME-124-1.jpeg").write_bytes(b"abc")


def postscript(folder):
    (folder / "test" / "DME" / "DME-124-1.jpeg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def bomb(folder):
    (folder / "test" / "DME" / "DME-124-1.jpeg").write_bytes(b"P5 20000 10000 255\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (bomb, r"DME-124-1\.jpeg has too many pixels \(Image size \(200000000 pixels\)"),
        (remove_class, r"expected CNV, DME, DRUSEN, NORMAL in .*val, found CNV/, DRUSEN/, NORMAL/$"),
        (misname, r"CNV-124-1\.jpeg is not named like DME-1234567-1\.jpeg"),
        (truncate, r"DME-124-1\.jpeg is not an image \(3 bytes\)"),
        (postscript, r"DME-124-1\.jpeg is not an image \(47 bytes\)"),
    ],
)
def test_broken_kermany_oct_writes_nothing(tmp_path, oct_folder, harm, message):
    harm(oct_folder)
    with pytest.raises(DataError, match=message):
        datasets.build("kermany_oct", oct_folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("IDRiD_002,0", "IDRiD_009,0", r"Training Labels\.csv row 2 \(line 3\): .*IDRiD_009\.jpg: no such image"),
        (
            "IDRiD_001,3",
            "IDRiD_001,5",
            r"row 1 \(line 2\): Retinopathy grade is '5', expected a whole number from 0 to 4",
        ),
        ("IDRiD_001,3", "IDRiD_001,", r"row 1 \(line 2\): Retinopathy grade is '', expected"),
        ("Retinopathy grade", "Grade", r"no column 'Retinopathy grade', it has Image name, Grade, Risk"),
    ],
)
def test_broken_idrid_names_the_row(tmp_path, idrid_folder, old, new, message):
    labels = idrid_folder / idrid.TABLES / idrid.SPLITS["train"][1]
    labels.write_text(labels.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        datasets.build("idrid", idrid_folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_wrong_folder_says_what_was_expected_and_found(tmp_path, picture):
    with pytest.raises(DataError, match=r"expected '1\. Original Images' .* or labels\.csv .*, found picture\.jpg$"):
        datasets.build("idrid", tmp_path, tmp_path / "data")


def test_a_failure_while_writing_leaves_nothing(tmp_path, oct_folder, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("data_pipelines.datasets.builder.example", fail)
    with pytest.raises(OSError, match="disk full"):
        datasets.build("kermany_oct", oct_folder, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    with pytest.raises(DataError, match="is not built"):
        datasets.source("kermany_oct", "train", tmp_path / "data")


def test_unknown_names(tmp_path, oct_folder):
    with pytest.raises(DataError, match=r"no data set 'idird'; there are idrid, kermany_oct"):
        datasets.build("idird", oct_folder, tmp_path)
    datasets.build("kermany_oct", oct_folder, tmp_path)
    with pytest.raises(DataError, match="kermany_oct has no split 'dev', only test, train, val"):
        len(datasets.source("kermany_oct", "dev", tmp_path))


def test_label_table_takes_classes_codes_and_numbers(tmp_path, picture):
    layout = label_table(kermany_oct.CLASSES, kermany_oct.CODES, "class", {})
    assert layout.rows(tmp_path) is None
    table = tmp_path / "labels.csv"
    table.write_text("image,label,split,patient\npicture.jpg,drusen,test,p1\npicture.jpg,CNV,,\npicture.jpg,3,,\n")
    found = [(row.split, row.label, row.patient) for row in layout.rows(tmp_path)]
    assert found == [("test", 2, "p1"), ("train", 0, "train/picture"), ("train", 3, "train/picture")]
    table.write_text("image,label\npicture.jpg,ERM\n")
    with pytest.raises(
        DataError, match=r"labels\.csv row 1 \(line 2\): label is 'ERM', expected one of CNV, DME, DRUSEN, NORMAL"
    ):
        layout.rows(tmp_path)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_entry_is_complete(name):
    entry = datasets.DATASETS[name]
    assert len(entry.classes) == len(entry.codes) == len(entry.captions) == len(set(entry.classes))
    assert all((entry.about, entry.licence, entry.citation, entry.homepage.startswith("https://"), entry.layouts))


def test_real_photographs_in_both_layouts(tmp_path, shared_data):
    flat = shared_data / "idrid"
    datasets.build("idrid", flat, tmp_path / "flat")
    ours = datasets.source("idrid", "train", tmp_path / "flat")
    some = [ours[index] for index in range(0, len(ours), 20)]
    root = tmp_path / "published"
    train = idrid_table(root, "train")
    idrid_table(root, "test").add("IDRiD_001", 0, 0, next((flat / "grading").rglob("*.jpg")))
    for record in some:
        name = Path(record.patient).name
        train.add(
            name, record.targets["label"], record.targets["macular_edema_risk"], flat / f"grading/train/{name}.jpg"
        )
    datasets.build("idrid", root, tmp_path / "as_published")
    theirs = {r.patient: r for r in datasets.source("idrid", "train", tmp_path / "as_published")}
    for record in some:
        again = theirs[record.patient]
        assert (again.views, again.targets, again.report) == (record.views, record.targets, record.report)
    assert load(some[0].views[0].image).shape == (510, 768, 3)


def test_no_tensorflow_and_no_words(tmp_path, oct_folder):
    code = (
        "import sys; from data_pipelines import datasets as e\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"e.build('kermany_oct', {str(oct_folder)!r}, {str(tmp_path / 'data')!r})\n"
        f"assert len(e.source('kermany_oct', 'train', {str(tmp_path / 'data')!r})[0].views[0].image) > 100\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("written", ["utf-8-sig", "utf-16"])
def test_label_tables_are_read_by_the_rules_of_all_tables(tmp_path, picture, written):
    folder = tmp_path / "own"
    (folder / "a").mkdir(parents=True)
    shutil.copy(picture, folder / "a" / "1.jpg")
    text = "image ;class;split\na\\1.jpg;drusen ;NaN\n;;\na/1.jpg;normal;test\n"
    (folder / "labels.csv").write_bytes(text.encode(written))
    rows = kermany_oct.KERMANY_OCT.rows(folder)
    assert [(row.image, row.label, row.split) for row in rows] == [
        (folder / "a" / "1.jpg", 2, "train"),
        (folder / "a" / "1.jpg", 3, "test"),
    ]
    (folder / "labels.csv").write_bytes("image,class\na/1.jpg,正常\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"labels\.csv: is not utf-8 .*or save it as UTF-8"):
        kermany_oct.KERMANY_OCT.rows(folder)


def test_visits_are_built_whole(tmp_path):
    """The same patients, views, texts, targets and attributes, in the same order, and readable without our code."""
    source = Visits(2, 0, visits=2, size=16)
    built = datasets.source("visits", "train", datasets.build_visits(source, tmp_path).parents[2])
    assert len(built) == len(source) == 4 and tuple(built.classes) == tuple(source.classes)
    for theirs, ours in zip(source, pickle.loads(pickle.dumps(built)), strict=True):
        for name in ("patient", "day", "report", "findings", "attributes", "eye_reports"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert targets_of(ours) == targets_of(theirs)
        for view, wanted in zip(ours.views, theirs.views, strict=True):
            assert (view.modality, view.eye, view.report) == (wanted.modality, wanted.eye, wanted.report)
            np.testing.assert_array_equal(load(view.image), wanted.image)
            assert targets_of(view) == targets_of(wanted)
    with pytest.raises(DataError, match=r"visits is already built; delete .*visits/1.0.0"):
        datasets.build_visits(source, tmp_path)
    with pytest.raises(DataError, match="visits has no split 'test', only train"):
        datasets.source("visits", "test", tmp_path)
    masked = Eyes(1, size=16, masks=True)
    with pytest.raises(DataError, match=r"target 'mask.*' is not a number; launch.py data convert stores masks"):
        datasets.build_visits(masked, tmp_path / "masks")
    assert not list((tmp_path / "masks").rglob("*.array_record*"))


def targets_of(given):
    return {name: (np.asarray(value).dtype, repr(np.asarray(value))) for name, value in given.targets.items()}
