import pytest
from PIL import Image

from data_pipelines.open import named
from data_pipelines.records import DataError
from data_pipelines.synthetic.sources import Eyes


@pytest.fixture
def csdi(tmp_path):
    folder = tmp_path / "csdi"
    (folder / "images").mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{k}.png")
    rows = [
        f"{k}.png;an eye {k};{grade};{part}" for k, (grade, part) in enumerate([("a", "x"), ("b", "y"), ("b", "x")])
    ]
    (folder / "labels.csv").write_text("\n".join(["file;report;grade;part", *rows]))
    return folder / "labels.csv"


def test_a_csv_with_its_own_columns(csdi):
    word = f"{csdi},image=images/{{file}},text=report,label=grade,sep=semicolon,only=part:x,modality=oct,weight=2"
    found = named(word)
    assert (found.name, found.weight, len(found.source)) == ("csdi", 2.0, 2)
    record = found.source[1]
    assert record.report == "an eye 2" and record.targets["label"] == 1 and record.views[0].modality == "OCT"


def test_defaults_hold_where_a_csv_says_nothing_else(csdi):
    defaults = {"text": "grade", "image": "file", "images": str(csdi.parent / "images"), "sep": ";"}
    assert named(str(csdi), defaults).source[0].report == "a"
    assert named(f"{csdi},text=report", defaults).source[0].report == "an eye 0"


def test_a_folder_of_classes(tmp_path):
    (tmp_path / "eyes" / "test" / "glaucoma").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "eyes" / "test" / "glaucoma" / "a.png")
    found = named(f"{tmp_path / 'eyes'},split=test,name=mine")
    assert found.name == "mine" and found.source[0].findings == ("glaucoma",)


def test_synthetic_eyes():
    assert named("synthetic,n=5,size=32,language=zh").source == Eyes(n=5, size=32, language="zh")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nothing.csv", "no such file; expected a CSV, an image folder, tfds:NAME, array_record:FOLDER or synthetic"),
        ("synthetic,m=3", "unknown option 'm'; expected one of n, start"),
        ("synthetic,n=many", "n='many' is not a number"),
        ("synthetic,n", "'n' is not an option; expected NAME=VALUE"),
        ("tfds:idird", "no data set 'idird'"),
    ],
)
def test_mistakes(word, message):
    with pytest.raises(DataError, match=message):
        named(word)
