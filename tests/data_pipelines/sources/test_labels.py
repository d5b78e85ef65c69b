"""One rule for labels: spellings, numbers, what is not labelled, and findings that are 0, 1 or a gap."""

import time

import numpy as np
import pytest

from data_pipelines.records import DataError
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.label_list import LabelList
from data_pipelines.sources.labels import Classes, class_names, finding, findings_of, folded, named


def labels(tmp_path, cells, **options):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["image,label", *(f"{k}.png,{value}" for k, value in enumerate(cells))]) + "\n")
    source = csv_source(path, **options)
    return source.classes, [int(record.targets["label"]) for record in source]


def test_spellings_of_a_class_are_one_class_and_named(tmp_path, caplog):
    assert labels(tmp_path, ["Normal", "normal", "normal ", "AMD"]) == (("AMD", "normal"), [1, 1, 1, 0])
    assert "the labels 'normal' and 'Normal' are one class, 'normal'" in caplog.text
    same = ("no DR", "No_DR", "no-DR", "ｎｏ　ＤＲ", "no\u200b dr")
    assert len({folded(name) for name in same}) == 1 and folded("grade -1") != folded("grade 1")
    assert labels(tmp_path, ["NO_DR", "Amd"], classes=("AMD", "no DR")) == (("AMD", "no DR"), [1, 0])


@pytest.mark.parametrize("values", [["-1", "0", "1", "2"], ["-1.0", "0.0", "1.0", "2.0"], ["-9", "0", "1", "2"]])
def test_a_number_below_zero_is_not_labelled(tmp_path, caplog, values):
    assert labels(tmp_path, values) == (("0", "1", "2"), [-1, 0, 1, 2])
    assert f"1 of 4 rows are not labelled ('{values[0]}')" in caplog.text
    assert labels(tmp_path, ["-1", "mild"]) == (("mild",), [-1, 0])
    assert csv_source(tmp_path / "t.csv")[0].findings == ()


def test_a_label_may_be_missing_if_asked_for(tmp_path):
    assert labels(tmp_path, ["", "mild"], empty="keep") == (("mild",), [-1, 0])
    assert labels(tmp_path, ["9", "1", "0"], values="9:gap") == (("0", "1"), [-1, 1, 0])
    assert labels(tmp_path, ["NA", "mild"], classes=("NA", "mild")) == (("NA", "mild"), [0, 1])
    with pytest.raises(DataError, match=r"label is empty \('NA'\).*if it is a class, name the classes with classes="):
        labels(tmp_path, ["NA", "mild"])
    with pytest.raises(DataError, match="no row has a label"):
        labels(tmp_path, ["-1", "-1"])


def test_none_is_a_usual_name_of_a_grade(tmp_path, caplog):
    assert labels(tmp_path, ["none", "mild"]) == (("mild", "none"), [1, 0])
    assert "the label 'none' is a class; if it means missing, add values=none:gap" in caplog.text
    assert labels(tmp_path, ["none", "mild"], values="none:gap") == (("mild",), [-1, 0])


def test_numbers_are_codes_and_name_nothing(tmp_path, caplog):
    assert labels(tmp_path, ["1", "3"])[0] == ("0", "1", "2", "3")
    assert "labels are numbers up to 3, and no row has 0, 2" in caplog.text
    assert named(("normal", "AMD")) and not named(("0", "1")) and not named(("1", "mild")) and not named(())
    labels(tmp_path, ["1", "10", "2", "mild"])
    assert "labels are words and also numbers (1, 2, 10)" in caplog.text
    for value in ("0.5", "1e3", "inf", "1_0"):
        with pytest.raises(DataError, match=rf"row 1 \(line 2\): label '{value}' is not a class number"):
            labels(tmp_path, [value, "1"])
    with pytest.raises(DataError, match="label 5000 is not a class number"):
        labels(tmp_path, ["0", "5000"])


def test_given_classes_are_met_by_name_before_number():
    assert Classes(("1", "2", "3")).index("3.0") == 2 and Classes(("no DR", "PDR")).index("1") == 1
    with pytest.raises(DataError, match="label '0' is not one of the classes 1, 2, 3"):
        Classes(("1", "2", "3")).index("0")  # not the first of them
    with pytest.raises(DataError, match="'A' and 'a' are the same class"):
        Classes(("A", "a"))
    with pytest.raises(DataError, match="name 2 is empty"):
        Classes(("A", ""))


def test_thousands_of_classes_take_linear_time():
    names = [f"class {k}" for k in range(20_000)]
    start = time.process_time()
    found = Classes(class_names(dict.fromkeys(names, 1), "t.csv"))
    assert sorted(found.index(name) for name in names) == list(range(20_000))
    assert time.process_time() - start < 4  # it took minutes when each name was searched for


@pytest.mark.parametrize("value", ["-1", "2", "0.5", "x", "inf", "1_0", "yes"])
def test_findings_are_0_1_or_a_gap(tmp_path, value):
    path, columns = tmp_path / "t.csv", {"label": ("A", "B")}
    path.write_text(f"image,A,B\n0.png,1,0\n1.png,1,{value}\n")
    with pytest.raises(DataError, match=rf"t\.csv row 2 \(line 3\): label: B is '{value}'; expected 0, 1 or nothing"):
        len(csv_source(path, columns=columns))
    mapped = csv_source(path, columns=columns, values={value: "gap"})
    np.testing.assert_array_equal(mapped[1].targets["label"], [1, np.nan])
    assert csv_source(path, columns=columns, values=f"{value}:1")[1].findings == ("A", "B")
    with pytest.raises(DataError, match="'2' is not OLD:NEW"):
        csv_source(path, columns=columns, values="2")


@pytest.mark.parametrize(
    "line", ["a;inf", "a;1e30", "a;1.5", "a;2,0", "a,inf,30", "a,1,inf", "a,nan,3", "a,1", "a;", ";1", "a,-1,30"]
)
def test_lines_of_a_label_list_hold_class_numbers_and_days(tmp_path, line):
    (tmp_path / "labels.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"labels\.txt, line 1: .* is not path;3"):
        _ = LabelList(tmp_path / "labels.txt").rows


def test_findings_of_a_row_that_is_not_labelled():
    assert [finding(value) for value in ("1", "0.0", "TRUE", "false")] == [1, 0, 1, 0] and np.isnan(finding("NA"))
    assert findings_of({"label": np.int32(-1)}, ("a",)) == ()
    assert findings_of({"label": np.array([np.nan, 1.0])}, ("a", "b")) == ("b",)
