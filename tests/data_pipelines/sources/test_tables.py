"""The reader of tables: encodings, separators, Excel and Parquet; one error line for other or damaged files."""

import datetime

import pytest

from data_pipelines.records import DataError
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.flair import flair_frame, mm_retinal
from data_pipelines.sources.ret_clip import PatientCSV, open_pairs
from data_pipelines.sources.tables import read_named, read_rows

TEXT = "image,text,label\n0.png,左眼水肿,水肿\n1.png,正常,正常\n"


def rows(tmp_path, data, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [cells for _, _, cells in read_rows(path, **options)]


def failure(tmp_path, data, name="t.csv", **options):
    with pytest.raises(DataError) as caught:
        rows(tmp_path, data, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, written):
    assert rows(tmp_path, TEXT.encode(written))[1] == ["0.png", "左眼水肿", "水肿"]
    assert rows(tmp_path, TEXT.encode(written), encoding="utf-8")[2] == ["1.png", "正常", "正常"]


@pytest.mark.parametrize("written", ["gb18030", "utf-16-le", "big5", "utf-16-be"])
def test_other_encodings_are_asked_for_and_read(tmp_path, written):
    text = TEXT.replace("左眼水肿", "左眼").replace("水肿", "水")
    assert "add encoding=" in failure(tmp_path, text.encode(written))
    assert rows(tmp_path, text.encode(written), encoding=written)[1][1] == "左眼"


def test_an_encoding_that_is_wrong_or_unknown_is_an_error(tmp_path):
    assert failure(tmp_path, TEXT, encoding="gb18030") == "t.csv: is UTF-8, not gb18030; leave the option encoding out"
    for name in ("gb2313", "hex", "rot13", "utf-8\0"):
        assert "is unknown; expected such as gb18030" in failure(tmp_path, TEXT, encoding=name)
    assert "is not big5" in failure(tmp_path, b"image,text\n0.png,\xff\xff\n", encoding="big5")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a;b\n1,5;x\n", "t.csv"),
        ("a\tb\n1,5\tx\n", "t.csv"),
        ("a\tb\n1,5\tx\n", "t.tsv"),
        ("a|b\n1,5|x\n", "t.CSV"),
        ("sep=;\na;b\n1,5;x\n", "t.csv"),
        ('a,b\n"1,5",x\n', "t.TSV"),
        ("\ufeff a ; b \n 1,5 ;\u3000x\u200b\n", "t.csv"),
    ],
)
def test_the_separator_is_found_in_the_header(tmp_path, text, name):
    assert rows(tmp_path, text, name) == [["a", "b"], ["1,5", "x"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xd8\xff\xe0 photo", "is not a table, but a JPEG image"),
        (b"\x89PNG\r\n", "is not a table, but a PNG image"),
        (b"%PDF-1.4", "is not a table, but a PDF"),
        (b"\x1f\x8b\x08", "a compressed file; unpack it first"),
        (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls)"),
        (b"  <html><table>", "a web page or XML"),
        (b"PAR1 and nothing", "is not a Parquet table that can be read"),
        (b"image,text\n0.png,a\0b\n", "holds zero bytes"),
        (b"\n\n", "the file is empty"),
        (b"image,text\n0.png,a,b\n", "row 1 (line 2): has 3 fields, the header has 2; a text with a separator"),
        (b"image,text\n0.png\n", "row 1 (line 2): has 1 fields, the header has 2"),
        (b"image,text,,\n0.png,normal, but mild drusen,\n", "row 1 (line 2): 'but mild drusen' is in a column without"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, data, message):
    assert message in failure(tmp_path, data)


@pytest.mark.parametrize(
    "body",
    [
        '0.png,"left open\n1.png,drusen"\n',
        '0.png,"left open, at the disc\n1.png,drusen\n2.png,normal"\n',
        '0.png,"left open\n1.png,drusen\n',
        '0.png,"left open\n1.png,"drusen"\n',
    ],
)
def test_a_quotation_mark_left_open_never_swallows_rows(tmp_path, body):
    assert "row 1 (line 2): " in (message := failure(tmp_path, "image,text\n" + body))
    assert "is a quotation mark left open" in message


def test_texts_of_several_lines_are_read(tmp_path):
    text = 'image,text,label\n0.png,"drusen, soft\n2, 3 quadrants: blood, oedema",x\n,,\n1.png,b,y\n'
    found = rows(tmp_path, text)
    assert found[1][1] == "drusen, soft\n2, 3 quadrants: blood, oedema" and len(found) == 3
    assert rows(tmp_path, ",image\n0,a.png\n1,b.png\n")[2] == ["1", "b.png"]  # pandas' index has no name


def test_excel_is_read_like_a_csv(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    book = openpyxl.Workbook()
    for cells in (
        ["image", " label ", "day", None],
        ["0.png", 2.0, datetime.datetime(2024, 7, 31)],
        [None, None, None],
        ["1.png", -1, datetime.date(2024, 8, 1)],
    ):
        book.active.append(cells)
    book.save(tmp_path / "t.csv")  # a table is recognised by its content, not by its name
    assert [(line, cells) for _, line, cells in read_rows(tmp_path / "t.csv")] == [
        (1, ["image", "label", "day"]),
        (2, ["0.png", "2", "2024-07-31"]),
        (4, ["1.png", "-1", "2024-08-01"]),
    ]
    (tmp_path / "cut.xlsx").write_bytes((tmp_path / "t.csv").read_bytes()[:900])
    with pytest.raises(DataError, match="not an Excel table that can be read"):
        list(read_rows(tmp_path / "cut.xlsx"))


def test_parquet_is_read_like_a_csv(tmp_path, caplog):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    columns = {"image": ["0.png", "1.png"], "label": [1.0, None], "seen": [True, False], "raw": [b"a", b"b"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = [(line, cells) for _, line, cells in read_rows(tmp_path / "t.parquet")]
    assert found == [(0, ["image", "label", "seen"]), (0, ["0.png", "1", "True"]), (0, ["1.png", "", "False"])]
    assert "ignores raw, which are neither texts nor numbers" in caplog.text
    source = csv_source(tmp_path / "t.parquet", empty="keep")
    assert source[1].where == f"{tmp_path}/t.parquet row 2" and [int(r.targets["label"]) for r in source] == [1, -1]


def test_every_source_of_a_table_reads_it_the_same_way(tmp_path):
    semicolons = "patient;left;right;text\np1;0.png;1.png;左眼, 水肿\n".encode("gb18030")
    (tmp_path / "p.CSV").write_bytes(semicolons)
    with pytest.raises(DataError, match=r"p\.CSV: is not utf-8 .*add encoding=gb18030"):
        len(open_pairs(tmp_path / "p.CSV"))
    source = open_pairs(f"{tmp_path / 'p.CSV'},encoding=gb18030,images={tmp_path}")
    assert source == PatientCSV(tmp_path / "p.CSV", tmp_path, encoding="gb18030") and len(source) == 1
    for read, text in (
        (flair_frame, "image,categories\n0.png,['水肿']\n"),
        (mm_retinal, "image,caption\n0.png,水肿\n"),
    ):
        (tmp_path / "f.csv").write_bytes(text.encode("utf-16"))
        assert len(read(tmp_path / "f.csv", tmp_path)) == 1
        (tmp_path / "f.csv").write_bytes(text.encode("gb18030"))
        with pytest.raises(DataError, match="is not utf-8"):
            len(read(tmp_path / "f.csv", tmp_path))
        (tmp_path / "f.csv").write_text(f"{text}1.png,\"['left open']\n2.png,['drusen']\n")
        with pytest.raises(DataError, match=r"row 2 \(line 3\): .*is a quotation mark left open"):
            len(read(tmp_path / "f.csv", tmp_path))
    with pytest.raises(DataError, match=r"no column 'ID', it has id, text; is it 'id'\?"):
        (tmp_path / "n.csv").write_text("id,text\n1,a\n")
        list(read_named(tmp_path / "n.csv", "ID"))


def test_one_line_says_what_is_read_ignored_and_assumed(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("image,class,group,w,age,split\n0.png,x,p1,8,50,train\n1.png,y,p2,8,,test\n")
    source = csv_source(tmp_path / "t.csv", keep=("w",))
    assert [dict(record.attributes) for record in source] == [{"age": "50", "w": "8"}, {"age": "", "w": "8"}]
    assert source.column("split") == ["train", "test"] and source.column("site") is None
    assert [record.getMessage().split("t.csv: ")[1] for record in caplog.records] == [
        "reads image, age, split, w; ignores class (label=class reads it), group (patient=group reads it); "
        "assumes modality CFP, that each image is its own patient"
    ]
