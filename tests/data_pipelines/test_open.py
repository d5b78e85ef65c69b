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


def test_a_path_and_an_option_with_commas(csdi):
    other = csdi.parent / "a, b v2.csv"
    other.write_text(csdi.read_text())
    assert len(named(f"{other},image=images/{{file}},text=report,sep=semicolon").source) == 3
    word = f'{other},image=images/{{file}},sep=semicolon,"text={{report}}, grade {{grade}}"'
    assert named(word).source[0].report == "an eye 0, grade a"


def test_an_empty_option_leaves_a_column_out(csdi):
    word = f"{csdi},image=images/{{file}},text=report,sep=semicolon,label=grade"
    assert named(word).source.classes == ("a", "b") and named(f"{word},label=").source.classes == ()


def test_an_image_is_no_table(csdi):
    with pytest.raises(DataError, match=r"0\.png: is an image; expected a table"):
        named(str(csdi.parent / "images" / "0.png"))


def test_folders_take_classes_and_how_images_are_read(tmp_path):
    for name in ("mild", "no"):
        (tmp_path / "eyes" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "eyes" / name / "a.png")
    found = named(f"{tmp_path}/eyes,classes=no+mild,orientation=stored").source
    assert found.classes == ("no", "mild") and found[0].findings == ("no",)
    renamed = named(f"{tmp_path}/eyes,classes=no:healthy+mild:mild retinopathy").source
    assert renamed.classes == ("healthy", "mild retinopathy") and [renamed[k].targets["label"] for k in (0, 1)] == [
        1,
        0,
    ]


def test_lists_of_visionfm_without_a_header(tmp_path):
    (tmp_path / "training_labels.txt").write_text("training/1.jpg;3\ntraining/2.jpg;0\n")
    found = named(f"{tmp_path}/training_labels.txt").source
    assert found.classes == ("0", "1", "2", "3") and found[0].targets["label"] == 3
    assert found[1].views[0].image == tmp_path / "training/2.jpg"
    (tmp_path / "training.txt").write_text("a.png, 1, 365\nb.png, 0, 12\n")
    record = named(f"{tmp_path}/training.txt,images={tmp_path}/photos").source[0]
    assert record.targets["label"] == 1 and record.targets["value"].tolist() == [365]
    (tmp_path / "many.txt").write_text("a.png;1,0,0\nb.png;0,1,1\n")
    assert named(f"{tmp_path}/many.txt").source[1].targets["label"].tolist() == [0, 1, 1]
    (tmp_path / "bad.txt").write_text("a.png;1\nb.png\n")
    with pytest.raises(DataError, match=r"bad\.txt, line 2: 'b\.png' is not path;3"):
        named(f"{tmp_path}/bad.txt").source[0]
