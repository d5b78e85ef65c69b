"""Visits from long tables, wide tables and DICOM folders: the same visits are the same records and batches."""

import csv
import datetime
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.convert import Sizing, convert
from data_pipelines.images.decode import load
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.records import DataError, Record
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.shards import array_records
from data_pipelines.sources.splits import split
from data_pipelines.synthetic.sources import Visits
from data_pipelines.synthetic.tables import write_visits
from data_pipelines.words import named

COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    source = Visits(COUNT // 2, seed=5, visits=2, size=24, missing=0.4, conditions=("normal", "glaucoma"))
    return write_visits(source, tmp_path_factory.mktemp("visits") / "eyes", COUNT)


@pytest.fixture(scope="module")
def dicom(folder) -> Path:
    """The same images as DICOM files, whose tags say what the long table says."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    out = folder.parent / "dicom"
    with (folder / "images.csv").open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            write_dicom(pydicom, folder / row["image"], out / f"{number % 3}" / f"{number:04d}", row)
    return out


def write_dicom(pydicom, image: Path, path: Path, row: dict[str, str]) -> None:
    pixels = np.asarray(Image.open(image))
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    file.SOPClassUID, file.SOPInstanceUID = (
        file.file_meta.MediaStorageSOPClassUID,
        file.file_meta.MediaStorageSOPInstanceUID,
    )
    file.PatientID, file.StudyDate = row["patient"], row["date"].replace("-", "")
    file.Modality, file.ImageLaterality = {"OCT": "OPT"}.get(row["modality"], "OP"), row["eye"][0].upper()
    if row["modality"] == "FFA":
        file.SeriesDescription = "Fluorescein angiography"
    file.ImageComments, file.StudyComments = row["text"], row["report"]
    file.RequestedProcedureDescription = row["eye_report"][:64]
    file.ContentDescription, file.AdmittingDiagnosesDescription = row["label"], row["visit_label"]
    file.PatientAge, file.PatientSex, file.ManufacturerModelName = (
        f"{row['age']:0>3}Y",
        row["sex"][0].upper(),
        row["device"],
    )
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *pixels.shape[:2], 3, "RGB"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.PlanarConfiguration, file.PixelData = 0, pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


TAGS = "label=ContentDescription,visit_label=AdmittingDiagnosesDescription,eye_report=RequestedProcedureDescription"


class Everything:
    """A first step that keeps all of a visit as arrays and texts of fixed sizes."""

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, object]:
        views = [load(view.image) for view in example.views]
        padded = np.zeros((6, 24, 24, 3), np.uint8)
        padded[: len(views)] = views
        words = [f"{v.modality} {v.eye} {v.report} {v.targets['label']}" for v in example.views]
        text = "|".join([example.patient, example.report, *words, *example.findings, str(sorted(example.attributes))])
        eyes = "|".join(f"{side} {text[:64].strip()}" for side, text in sorted(example.eye_reports.items()))
        labels = {name: np.int32(example.targets[name]) for name in ("label", "label_left", "label_right")}
        digest = np.frombuffer(f"{text}{eyes}".encode().ljust(4000)[:4000], np.uint8)
        return {"views": padded, "words": digest, "day": np.int64(example.day), **labels}


def test_long_wide_and_dicom_give_the_same_batches(folder, dicom):
    words = (f"{folder}/images.csv,visits=true", f"{folder}/visits.csv,visits=true", f"{dicom},visits=true,{TAGS}")
    sources = [named(word).source for word in words]
    assert [len(source) for source in sources] == [COUNT] * 3
    assert all(source.classes == ("glaucoma", "normal") for source in sources)
    passes = [list(one_epoch(source, (Everything(),), batch=4)()) for source in sources]
    streams = [train(source, (Everything(),), batch=3, seed=5)() for source in sources]
    streamed = [[next(stream) for _ in range(3)] for stream in streams]
    for first, *others in (*zip(*passes, strict=True), *zip(*streamed, strict=True)):
        for other in others:
            assert first.keys() == other.keys()
            for name in first:
                assert np.asarray(first[name]).tobytes() == np.asarray(other[name]).tobytes(), name
    assert sources[2][0].attributes["sex"] == "F" and sources[0][0].attributes["sex"] == "female"
    assert sources[2][0].attributes["age"] == sources[0][0].attributes["age"]


def test_a_table_holds_what_the_synthetic_visits_are(folder):
    drawn = Visits(COUNT // 2, seed=5, visits=2, size=24, conditions=("normal", "glaucoma"))
    for table in ("images.csv", "visits.csv"):
        source = named(f"{folder}/{table},visits=true,classes=normal+glaucoma").source
        for k in range(COUNT):
            ours, theirs = source[k], drawn[k]
            assert (ours.patient, ours.report, ours.eye_reports) == (theirs.patient, theirs.report, theirs.eye_reports)
            assert ours.attributes == theirs.attributes
            views = {(v.modality, v.eye): v for v in theirs.views}
            assert len(views) == len(ours.views)
            for view in ours.views:
                other = views[view.modality, view.eye]
                np.testing.assert_array_equal(load(view.image), other.image)
                assert (view.report, view.targets["label"]) == (other.report, other.targets["label"])
            for name in ("label", "label_left", "label_right"):
                assert ours.targets[name] == theirs.targets[name]


def table(tmp_path: Path, text: str, name: str = "t.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return f"{tmp_path / name},visits=true"


LONG = """image,patient,eye,date,modality,label
a.png,p,L,2024-01-01,oct,x
b.png,q,R,2024-01-01,CFP,y
c.png,p,R,2024-01-03,CFP,x
d.png,p,L,2024-01-03,CFP,z
e.png,p,L,2024-01-07,FFA,
"""


def stems(source) -> list[list[str]]:
    return [[Path(str(view.image)).stem for view in source[k].views] for k in range(len(source))]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [["a"], ["b"], ["d", "c"], ["e"]]),
        (",days=2", [["d", "c", "a"], ["b"], ["e"]]),
        (",days=4", [["d", "c", "a"], ["b"], ["e"]]),  # the 7th is 6 days after the first image
        (",days=6", [["d", "c", "e", "a"], ["b"]]),
        (",by_eye=true", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        (",by_eye=true,days=2", [["d", "a"], ["b"], ["c"], ["e"]]),
    ],
)
def test_images_are_grouped_by_patient_day_and_eye(tmp_path, options, expected):
    source = named(table(tmp_path, LONG) + options).source
    assert stems(source) == expected
    assert source[0].day == datetime.date(2024, 1, 1).toordinal()


def test_labels_of_eyes_and_visits_are_those_that_images_share(tmp_path):
    source = named(table(tmp_path, LONG) + ",days=2").source
    first = source[0]
    assert [int(view.targets["label"]) for view in first.views] == [2, 0, 0]
    assert {name: int(value) for name, value in first.targets.items()} == {
        "label": -1,
        "label_left": -1,
        "label_right": 0,
    }
    assert int(source[2].targets["label"]) == -1  # its only image is not labelled
    several = "image,patient,A,B\na,p,1,0\nb,p,0,\n"
    findings = named(table(tmp_path, several) + ",label=A+B,empty=keep").source[0]
    np.testing.assert_array_equal(findings.targets["label"], np.array([1, 0], np.float32))
    assert findings.findings == ("A",)


def test_a_wide_table_maps_its_columns(tmp_path):
    text = "id,OD photo,OS photo,oct_OS_2,oct_os,findings,diagnosis\n7,r.png,l.png,o2.png,o1.png,healthy,normal\n"
    text += "8,,l8.png,,,,\n"
    word = table(tmp_path, text) + ",patient=id,cfp_right=OD photo,cfp_left=OS photo,report=findings,label=diagnosis"
    source = named(word).source
    assert stems(source) == [["l", "r", "o1", "o2"], ["l8"]]
    assert [view.eye for view in source[0].views] == ["left", "right", "left", "left"]
    assert source[0].report == "healthy" and source[0].targets["label"] == 0 and source[1].targets["label"] == -1
    assert pickle.loads(pickle.dumps(source))[1].patient == "8"
    with pytest.raises(DataError, match=r"t\.csv row 1 \(line 2\): the row has no image"):
        len(named(table(tmp_path, "patient,cfp_left\np,\n")).source)


def test_reports_and_attributes_of_a_visit_are_joined(tmp_path):
    text = "image,patient,modality,report,device,sex,smoker\na,p,CFP,One.,X,F,yes\nb,p,OCT,Two.,Y,F,yes\nc,p,OCT,One.,Y,,yes\n"
    record = named(table(tmp_path, text) + ",keep=smoker").source[0]
    assert record.report == "One. Two." and record.attributes == {"sex": "F", "device": "X + Y", "smoker": "yes"}
    assert record.where.endswith("t.csv rows 1, 2, 3 (from line 2)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,modality\na,CFP\n", r"visits need a column patient; map it with t\.csv,patient=THEIRS"),
        ("patient,photo\np,a\n", r"no column image, and no column of a view such as cfp_left .*cfp_left=THEIRS"),
        ("image,patient,modality\na,p,OCTA\n", r"row 1 \(line 2\): modality 'OCTA' is not one of .*declare=OCTA"),
        ("image,patient,date\na,p,\n", r"row 1 \(line 2\): day is empty"),
    ],
)
def test_errors_of_a_table(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        len(named(table(tmp_path, text)).source)


def test_warning_that_a_repeated_text_looks_like_a_report(tmp_path, caplog):
    len(named(table(tmp_path, "image,patient,text\na,p,same\nb,p,same\n")).source)
    assert "text=,report=text reads it as the visit's" in caplog.text


def test_visits_stay_whole_in_splits_and_shards(folder, tmp_path):
    source = named(f"{folder}/images.csv,visits=true").source
    parts = split(source, {"train": 0.5, "val": 0.5})
    patients = [{part[k].patient for k in range(len(part))} for part in parts.values()]
    assert not patients[0] & patients[1] and sum(map(len, parts.values())) == COUNT
    shards = array_records(convert(source, tmp_path / "shards", Sizing(12, "png"), shard=3))
    assert len(shards) == COUNT
    for k in range(COUNT):
        ours, theirs = shards[k], source[k]
        assert [(v.modality, v.eye, v.report, v.targets) for v in ours.views] == [
            (v.modality, v.eye, v.report, v.targets) for v in theirs.views
        ]
        assert (ours.report, ours.eye_reports, ours.attributes, ours.targets) == (
            theirs.report,
            theirs.eye_reports,
            theirs.attributes,
            theirs.targets,
        )
        assert load(ours.views[0].image).shape == (12, 12, 3)


def test_columns_and_rows_are_read_alike(tmp_path, monkeypatch):
    """A chunk with an unusual cell is read row by row; the result is the same."""
    text = "image,patient,day,label,text,sex\n" + "".join(
        f"{k}\\x.png,{k % 3}.0,{k % 2 + 20240101},{'ab'[k % 2]},té {k},{'F' if k % 2 else 'NA'}\n" for k in range(9)
    )
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    whole = csv_source(tmp_path / "t.csv")
    fast = [whole[k] for k in range(len(whole))]
    monkeypatch.setattr("data_pipelines.sources.csv_table._Builder.add_columns", lambda self, rows: False)
    slow = csv_source(tmp_path / "t.csv")
    assert fast == [slow[k] for k in range(len(slow))] and fast[0].patient == "0"
