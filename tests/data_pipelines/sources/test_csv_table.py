"""Errors in a user's CSV are one line each; unusual but valid files are read."""

import pytest

from data_pipelines.records import DataError
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.labels import Classes, class_names
from data_pipelines.sources.tables import where


def source(tmp_path, text, written="utf-8", **arguments):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(written))
    return csv_source(path, **arguments)


def failure(tmp_path, text, **arguments):
    """The one line, without the folder."""
    with pytest.raises(DataError) as caught:
        len(source(tmp_path, text, **arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def test_byte_order_mark_quotes_newlines_commas_and_chinese(tmp_path):
    text = '\ufeffimage,text\r\na.png,"two\nlines, ""quoted"""\r\n\r\nb.png,左眼黄斑水肿\r\n'
    rows = source(tmp_path, text)
    assert [row.report for row in (rows[0], rows[1])] == ['two\nlines, "quoted"', "左眼黄斑水肿"]
    assert [row.where.split("labels.csv ")[1] for row in (rows[0], rows[1])] == ["row 1 (line 2)", "row 2 (line 5)"]
    assert rows[0].views[0].image == tmp_path / "a.png"


def test_rows_count_from_one_and_lines_as_an_editor_does(tmp_path):
    assert where("x.csv", 7, 8) == "x.csv row 7 (line 8)"
    message = failure(tmp_path, 'image,text\na,"x\ny"\n\nb,\n')
    assert (
        message == "labels.csv row 2 (line 5): text is empty (''); fill it in, or leave such rows out with empty=drop"
    )


NOTHING = ("", "  ", "nan", "NaN", "NULL", "N/A", "None", "#N/A", "-", "—", ".", "NaT")
REQUIRED = ("text", "image", "label", "patient")
# "none" is a usual name of a grade: see test_labels
GAPS = [(word, column) for column in REQUIRED for word in NOTHING if (word, column) != ("None", "label")]


@pytest.mark.parametrize(("nothing", "column"), GAPS)
def test_empty_fields_are_named_or_dropped(tmp_path, caplog, nothing, column):
    row = {"image": "a.png", "text": "x", "label": "0", "patient": "p"}
    bad = row | {column: nothing}
    text = "\n".join(",".join(r) for r in (row, row.values(), bad.values(), row.values()))
    assert failure(tmp_path, text).startswith(f"labels.csv row 2 (line 3): {column} is empty (")
    kept = source(tmp_path, text, empty="drop")
    assert len(kept) == 2 and kept[1].where.endswith("row 3 (line 4)")
    assert f"left out 1 of 3 rows with empty fields ({column} 1)" in caplog.text


def test_missing_columns_are_named_with_a_way_out(tmp_path):
    header = "image,caption_en,grade\na,b,c\n"
    assert failure(tmp_path, header, require=("text",)) == (
        "labels.csv: has no column 'text' (our 'text'), only image, caption_en, grade; "
        "map it with labels.csv,text=THEIRS"
    )
    assert failure(tmp_path, header, columns={"text": "caption"}).endswith(
        "has no column 'caption' (our 'text'), only image, caption_en, grade; map it with labels.csv,text=caption_en"
    )
    assert failure(tmp_path, "Image ID,text\na,b\n").endswith("map it with labels.csv,image=Image ID")
    assert failure(tmp_path, "image;text,x\na;b,c\n").endswith("only image;text, x; is the separator sep=semicolon?")
    assert "has no column 'nr' (our 'image')" in failure(tmp_path, header, columns={"image": "{nr}.png"})
    assert failure(tmp_path, "image,text,text\na,b,c\n") == "labels.csv: column 'text' occurs 2 times"
    with pytest.raises(DataError, match="columns: 'caption' is not one of our names image, text"):
        source(tmp_path, header, columns={"caption": "caption_en"})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file$"):
        len(csv_source(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match=r"cannot be opened \(Is a directory\)"):
        len(csv_source(tmp_path, image_dir=tmp_path))
    with pytest.raises(DataError, match=r"nowhere: no such image folder"):
        len(source(tmp_path, "image\na\n", image_dir=tmp_path / "nowhere"))
    assert failure(tmp_path, "") == "labels.csv: the file is empty, its first line should name columns"
    assert failure(tmp_path, "image,text\n") == "labels.csv: has no rows"
    assert failure(tmp_path, "image,text\na,b\nc\n") == "labels.csv row 2 (line 3): has 1 fields, the header has 2"
    open_quote = failure(tmp_path, 'image,text\na,b\nb,"open\nc,d\n')
    assert open_quote.startswith("labels.csv row 2 (line 3): unexpected end of data; is a quotation mark left open")


def test_other_encodings_are_asked_for(tmp_path):
    text = "image,text\na.png,眼底照片\n"
    with pytest.raises(DataError, match=r"is not utf-8 \(.*add encoding=gb18030 \(Excel in Chinese\)"):
        len(source(tmp_path, text, "gb18030"))
    assert source(tmp_path, text, "gb18030", encoding="gb18030")[0].report == "眼底照片"


def test_classes_are_numbers_as_they_are_or_sorted_names(tmp_path):
    names = source(tmp_path, "image,label\na,mild\nb,Normal\nc,mild\n")
    assert names.classes == ("Normal", "mild") and [int(r.targets["label"]) for r in names] == [1, 0, 1]
    assert names[0].findings == ("mild",)
    gap = source(tmp_path, "image,label\na,4\nb,0.0\nc,10\n")  # as pandas writes integers of a column with a NaN
    assert gap.classes == tuple(map(str, range(11))) and [int(r.targets["label"]) for r in gap] == [4, 0, 10]
    given = source(tmp_path, "image,label\na,PDR\nb,0\n", classes=("No DR", "PDR", "absent"))
    assert [int(r.targets["label"]) for r in given] == [1, 0] and len(given.classes) == 3
    assert failure(tmp_path, "image,label\na,0\nb,PRD\n", classes=("No DR", "PDR")) == (
        "labels.csv row 2 (line 3): label 'PRD' is not one of the classes No DR, PDR; did you mean 'PDR'?"
    )
    assert (
        failure(tmp_path, "image,label\na,999999\n")
        == "labels.csv: label 999999 is not a class number (1 different numbers)"
    )
    assert Classes(("2", "1")).index("2") == 0 and class_names({"b": 1, "a": 1}, "t.csv") == ("a", "b")


def test_other_columns_are_read_or_refused(tmp_path):
    header = "image,modality,eye,patient,day"
    row = source(tmp_path, header + "\na,fundus,OD,p1,2024-01-02\nb,,,p2,2024/1/31\n", modality="oct")
    assert (row[0].views[0].modality, row[0].views[0].eye, row[0].patient) == ("CFP", "right", "p1")
    assert (row[1].views[0].modality, row[1].views[0].eye, row[1].day) == ("OCT", "", 738916)
    assert row[0].day == 738887  # date(2024, 1, 2).toordinal()
    for bad, message in {
        "a,xray,L,p,1": "row 1 (line 2): modality 'xray' is not one of CFP, FFA",
        "a,CFP,both,p,1": "row 1 (line 2): eye 'both' is not left or right",
        "a,CFP,L,p,soon": "row 1 (line 2): day: 'soon' is neither a date such as 2024-07-31",
    }.items():
        assert message in failure(tmp_path, f"{header}\n{bad}\n")


def test_masks_points_values_and_many_labels_are_read_when_asked_for(tmp_path):
    text = "image,mask,x,y,age,DR,AMD\na,m.png,1.5,2,60,1,0\nb,,,,,0,1\n"
    columns = {"mask": "mask", "points": ("x", "y"), "value": "age", "label": ("DR", "AMD")}
    rows = source(tmp_path, text, columns=columns)
    assert rows.classes == ("DR", "AMD") and rows[1].findings == ("AMD",)
    assert rows[0].targets["mask"] == tmp_path / "m.png" and "mask" not in rows[1].targets
    assert rows[0].targets["points"].tolist() == [[1.5, 2]] and rows[0].targets["value"].tolist() == [60]
    assert str(rows[1].targets["points"].tolist()) == "[[nan, nan]]"  # a blank point or value is NaN
    assert rows[0].targets["label"].tolist() == [1, 0]
    assert rows[0].attributes == {"age": "60"} and rows[1].attributes == {"age": ""}
    assert rows[0].targets.keys() == {"label", "points", "value", "mask"}
    assert source(tmp_path, text)[0].targets == {}
    assert source(tmp_path, "image,label\na,b\n", columns={"label": None})[0].targets == {}
    for bad, message in {
        "a,m,one,2,60,1,0": "row 1 (line 2): points: x is 'one', not a number",
        "a,m,1,2,60,nan,0": "row 1 (line 2): label is empty ('nan')",
    }.items():
        assert message in failure(tmp_path, f"{text.splitlines()[0]}\n{bad}\n", columns=columns)
    assert "points needs x and y of each point, 1 columns" in failure(tmp_path, text, columns={"points": "x"})
    assert "columns: text is one column, not 2" in failure(tmp_path, text, columns={"text": ("x", "y")})
    assert "3 classes for 2 label columns" in failure(tmp_path, text, columns=columns, classes="abc")


def test_gaps_in_several_labels(tmp_path):
    text, columns = "image,DR,AMD\na,1,0\nb,,1\n", {"label": ("DR", "AMD")}
    kept = source(tmp_path, text, columns=columns, empty="keep")
    assert str(kept[1].targets["label"].tolist()) == "[nan, 1.0]" and kept[1].findings == ("AMD",)
    assert len(source(tmp_path, text, columns=columns, empty="drop")) == 1
    assert "label is empty ('') in DR" in failure(tmp_path, text, columns=columns)


def test_only_some_rows(tmp_path):
    text = "image,split\na,train\nb,test\nc,train\n"
    assert [r.patient for r in source(tmp_path, text, only={"split": "train"})] == ["a", "c"]
    assert failure(tmp_path, text, only={"split": "trian"}) == (
        "labels.csv: no row has split = 'trian', it has test, train"
    )
    assert failure(tmp_path, text, only={"fold": "1"}).endswith("only image, split; `only` takes a column of the file")


def test_templates(tmp_path):
    rows = source(tmp_path, "ID,dx\n7,PDR\n", columns={"image": "img/{ID}.png", "text": "fundus with {dx}"})
    assert rows[0].views[0].image == tmp_path / "img" / "7.png" and rows[0].report == "fundus with PDR"


def test_a_template_with_an_empty_part_is_empty(tmp_path, caplog):
    text = "id,grade,dme\n0,2,1\n1,,0\n2,nan,\n3,2.0,0\n"
    columns = {"image": "{id:03d}.png", "text": "grade {grade} with oedema {dme}", "label": "DR{grade}"}
    assert failure(tmp_path, text, columns=columns).startswith("labels.csv row 2 (line 3): text is empty ('')")
    rows = source(tmp_path, text, columns=columns, empty="drop")
    assert [row.report for row in rows] == ["grade 2 with oedema 1", "grade 2.0 with oedema 0"]
    assert rows.classes == ("DR2",) and rows[1].views[0].image == tmp_path / "003.png"
    assert "left out 2 of 4 rows with empty fields (text 2)" in caplog.text
    kept = source(tmp_path, text, columns=columns | {"text": None}, empty="keep")
    assert kept.classes == ("DR2",) and [int(row.targets["label"]) for row in kept] == [0, -1, -1, 0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{id", "expected '}' before end of string"),
        ("{", "Single '{' encountered"),
        ("{}.png", "{} names no column"),
        ("{id!r}", "'!r' is not supported"),
        ("{id:>1000000000}", "':>1000000000' is not supported; expected such as {id:04d}"),
        ("{id:{id}}", "':{id}' is not supported"),
        ("{id:d}", "':d' is not supported"),
        ("{id:04d}", "row 1 (line 2): id is 'x', expected a whole number for {id:04d}"),
        ("{id.real}", "has no column 'id.real'"),
        ("{id[0]}", "has no column 'id[0]'"),
    ],
)
def test_templates_that_are_wrong_are_one_line(tmp_path, template, message):
    assert message in failure(tmp_path, "id\nx\n", columns={"image": template})
    assert source(tmp_path, "id\n7\n", columns={"image": "{id:0>4}.png"})[0].patient == "0007.png"


@pytest.mark.parametrize(
    ("arguments", "message"), [({"empty": "skip"}, "error, drop or keep"), ({"columns": {"x": "y"}}, "our names")]
)
def test_wrong_arguments_are_refused_at_once(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        csv_source(tmp_path / "x.csv", **arguments)


@pytest.mark.parametrize("only", [None, {"site": "a"}], ids=["by columns", "row by row"])
def test_rows_without_their_only_mask_are_dropped_on_request(tmp_path, caplog, only):
    """Several masks of an image stay: an empty cell says that the image lacks the class."""
    text = "image,disc,cup,site\na.png,m.png,,a\nb.png,,c.png,a\n"
    for mask, empty, rows in (("disc", "drop", 1), ("disc", "error", 2), (["disc", "cup"], "drop", 2)):
        assert len(source(tmp_path, text, only=only, columns={"mask": mask}, empty=empty)) == rows
    assert "mask 1" in caplog.text
