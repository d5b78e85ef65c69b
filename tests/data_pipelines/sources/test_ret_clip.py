"""RET-CLIP's three data layouts as the original code writes them, and a pickle that would run code."""

import base64
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.records import DataError
from data_pipelines.sources.ret_clip import PairedFiles, PairedLMDB, PatientCSV, open_pairs, plain_tuple
from data_pipelines.transforms.views import PairedEyes

LEFT, RIGHT = (
    b"\xff\xd8 left \xfb\xff",
    b"\xff\xd8 right",
)  # base64 with - and _
REPORTS = (("双眼正常眼底", ["p1", "p2"]), ("left eye: drusen", ["p2"]))


def encoded(image: bytes) -> str:
    return base64.urlsafe_b64encode(image).decode()


@pytest.fixture
def paired(tmp_path):
    images, texts = tmp_path / "train_imgs.tsv", tmp_path / "train_texts.jsonl"
    images.write_text(f"p1\t{encoded(LEFT)}\t{encoded(RIGHT)}\np2\t\t{encoded(RIGHT)}\n")
    rows = [{"text_id": i, "text": text, "image_ids": ids} for i, (text, ids) in enumerate(REPORTS)]
    texts.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return PairedFiles(images, texts)


def write_lmdb(root, pairs: list[bytes], images: dict[str, bytes]):
    lmdb = pytest.importorskip("lmdb", reason="lmdb of the extra `test` is not installed")
    for name, count, rows in (
        ("pairs", "num_samples", {str(i): row for i, row in enumerate(pairs)}),
        ("imgs", "num_images", images),
    ):
        (root / name).mkdir(parents=True)
        with lmdb.open(str(root / name), map_size=1 << 20) as environment, environment.begin(write=True) as t:
            for key, value in rows.items():
                t.put(key.encode(), value)
            t.put(count.encode(), str(len(rows)).encode())
    return PairedLMDB(root)


def test_paired_files_give_one_record_per_report_and_patient(paired):
    records = [paired[i] for i in range(len(paired))]
    assert [(r.patient, r.report) for r in records] == [
        ("p1", "双眼正常眼底"),
        ("p2", "双眼正常眼底"),
        ("p2", "left eye: drusen"),
    ]
    assert [(v.eye, v.image) for v in records[0].views] == [("left", LEFT), ("right", RIGHT)]
    assert [(v.eye, v.image) for v in records[1].views] == [("right", RIGHT)]
    assert pickle.loads(pickle.dumps(paired))[2] == records[2]


def test_paired_files_name_the_line_that_is_wrong(paired):
    paired.texts.write_text('{"text_id": 0, "text": "x", "image_ids": ["p9"]}\n')
    with pytest.raises(DataError, match=r"train_texts.jsonl, line 1: patient p9 is not in"):
        len(paired)
    paired.texts.write_text('\n{"text": "x"}\n')
    with pytest.raises(DataError, match="line 2: expected"):
        len(paired)
    paired.images.write_text("p1\tonly\n")
    with pytest.raises(DataError, match=r"train_imgs.tsv, line 1: expected 3 tab-separated columns.*found 2"):
        len(paired)
    paired.images.write_text("p1\ta\tb\np1\ta\tb\n")
    with pytest.raises(DataError, match="line 2: patient p1 occurs twice"):
        len(paired)
    paired.images.write_bytes("p1\ta\tb\nMüller\ta\tb\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train_imgs.tsv, line 2: the patient b'M\\xfcller' is not UTF-8"):
        len(paired)


def test_bad_base64_and_a_patient_without_images_are_named(paired):
    paired.images.write_text(f"p1\tnot base64!\t{encoded(RIGHT)}\np2\t\t\n")
    with pytest.raises(DataError, match="patient p1, left eye: expected an image in URL-safe base64"):
        paired[0]
    with pytest.raises(DataError, match="patient p2: expected an image of at least one eye"):
        paired[1]


def test_lmdb_of_the_original(tmp_path):
    pairs = [pickle.dumps(("p1", 7, "双眼正常眼底")), pickle.dumps((12, 8, "drusen"))]
    images = {k: pickle.dumps((encoded(LEFT), encoded(RIGHT))) for k in ("p1", "12")}
    source = write_lmdb(tmp_path / "train", pairs, images)
    assert len(source) == 2
    assert [(v.eye, v.image) for v in source[0].views] == [("left", LEFT), ("right", RIGHT)]
    assert (source[1].patient, source[1].report) == ("12", "drusen")
    assert pickle.loads(pickle.dumps(source))[0].report == "双眼正常眼底"
    with pytest.raises(DataError, match="no key '2'"):
        source[2]


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_its_code_does_not_run(tmp_path, protocol):
    victim = tmp_path / "was_here"
    hostile = pickle.dumps(("p1", 0, RunsCode(victim)), protocol)
    source = write_lmdb(tmp_path / "train", [hostile], {})
    with pytest.raises(DataError, match=r"pairs, key 0: refused a pickle that names (posix|nt|os)\.mkdir"):
        source[0]
    assert not victim.exists()
    pickle.loads(hostile)
    assert victim.exists()  # the pickle was a live one


@pytest.mark.parametrize("value", [["p"], {"a": 1}, None, 1.5, True, ("p", [1]), bytearray(b"x"), {1}])
def test_other_types_are_refused(value):
    with pytest.raises(DataError, match="here: refused"):
        plain_tuple(pickle.dumps(value, 5), "here")


def test_damaged_or_misshapen_rows_are_named(tmp_path):
    with pytest.raises(DataError, match="here: expected a pickled tuple, found damaged data"):
        plain_tuple(pickle.dumps(("p1", 0, "text"))[:-3], "here")
    source = write_lmdb(tmp_path / "train", [pickle.dumps(("p1", "text"))], {})
    with pytest.raises(DataError, match=r"expected a tuple \(patient, text_id, text\)"):
        source[0]
    with pytest.raises(DataError, match="no LMDB file"):
        len(PairedLMDB(tmp_path / "absent"))


def test_a_path_says_which_layout_it_is(paired, tmp_path):
    assert open_pairs(paired.images) == paired
    assert open_pairs(tmp_path / "x.csv", tmp_path) == PatientCSV(tmp_path / "x.csv", tmp_path)
    for name in ("imgs", "pairs"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert open_pairs(tmp_path / "train") == PairedLMDB(tmp_path / "train")
    with pytest.raises(DataError, match=r"expected a table \(\.csv"):
        open_pairs(tmp_path)


def test_a_missing_eye_reaches_the_batch_as_absent(tmp_path):
    Image.fromarray(np.full((6, 4, 3), 9, np.uint8)).save(tmp_path / "r.png")
    (tmp_path / "patients.csv").write_text("patient,left,right,text\np2,,r.png,drusen\n")
    example = PairedEyes()(PatientCSV(tmp_path / "patients.csv")[0], np.random.default_rng(0))
    assert (bool(example["left_present"]), bool(example["right_present"])) == (False, True)
    assert example["left"].shape == example["right"].shape == (6, 4, 3)
    assert example["text"] == "drusen"


def test_csv_of_patients(tmp_path):
    for name in ("l.png", "r.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    table = tmp_path / "patients.csv"
    rows = (
        "patient,left,right,text",
        'p1,l.png,r.png,"two lines,\nof text"',
        "p2,,r.png,双眼",
        "p3,l.png,gone.png,x",
    )
    table.write_text("\n".join(rows), encoding="utf-8-sig")
    source = PatientCSV(table)
    assert len(source) == 3
    assert source[0].report == "two lines,\nof text"
    assert [v.eye for v in source[0].views] == ["left", "right"]
    assert [(v.eye, v.image) for v in source[1].views] == [("right", tmp_path / "r.png")]
    with pytest.raises(DataError, match=r"row 3 \(line 5\): .*gone\.png: no such image file"):
        source[2]
    for bad, message in {
        "p4,,,x": "expected an image of at least one eye",
        "p4,-,NaN,x": "expected an image of at least one eye",
        "p5,l.png,r.png,": r"the report is empty \(''\)",
        "p6,l.png,r.png,NaN": r"the report is empty \('NaN'\)",
        "p7,l.png,r.png,None": r"the report is empty \('None'\)",
        ",l.png,r.png,x": "the patient is empty",
    }.items():
        table.write_text("\n".join([*rows, bad]), encoding="utf-8")
        with pytest.raises(DataError, match=r"row 4 \(line 6\): " + message):
            len(PatientCSV(table))
        assert len(PatientCSV(table, empty="drop")) == 3
    with pytest.raises(DataError, match="has no column 'left_eye'"):
        len(PatientCSV(table, columns=(("left", "left_eye"),)))
    table.write_text("patient,left,right,text\np1,l.png,r.png,normal, but mild drusen\n")
    with pytest.raises(DataError, match=r"row 1 \(line 2\): has 5 fields, the header has 4"):
        len(PatientCSV(table))
    table.write_text('patient,left,right,text\np1,l.png,r.png,"left open\np2,l.png,r.png,drusen\n')
    with pytest.raises(DataError, match=r"row 1 \(line 2\): unexpected end of data; is a quotation mark left open"):
        len(PatientCSV(table))
