"""Dates before numbers of days, and patients and eyes from the names of files."""

import datetime

import pytest

from data_pipelines.records import DataError
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.visits import day, looks_paired, patient_of


def days(tmp_path, *values):
    rows = [f"{k}.png,p,L,{value}" for k, value in enumerate(values)]
    (tmp_path / "t.csv").write_text("\n".join(["image,patient,eye,day", *rows]) + "\n")
    return [record.day for record in csv_source(tmp_path / "t.csv")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("20240731", "20240801"),
        ("20240731", "2024-08-01"),
        ("2024/7/31", "2024.8.1"),
        ("20240731.0", "20240801.0"),
        ("20240731235900", "2024-08-01 00:01:00"),
        ("2024年7月31日", "2024-08-01T10:00"),
        ("30", "31"),
        ("30.0", "31.0"),
    ],
)
def test_consecutive_visits_are_one_day_apart(tmp_path, first, second):
    one, other = days(tmp_path, first, second)
    assert other - one == 1


@pytest.mark.parametrize(
    "value",
    ["31/07/2024", "202407", "240731", "12.5", "1722384000", "2024-W31-3", "Jul 31 2024", "20241301", "2024-02-30"],
)
def test_a_day_that_is_neither_is_named(tmp_path, value):
    with pytest.raises(DataError, match=rf"row 2 \(line 3\): day: '{value}' is n"):
        days(tmp_path, "0", value)


def test_a_column_has_dates_or_days(tmp_path, caplog):
    for mixed in (("20240731", "12"), ("12", "2024-07-31")):
        with pytest.raises(DataError, match=rf"row 2 \(line 3\): day: '{mixed[1]}' is among .*one of both"):
            days(tmp_path, *mixed)
    with pytest.raises(DataError, match=r"row 1 \(line 2\): day is empty \('nan'\)"):
        days(tmp_path, "nan", "3")
    assert days(tmp_path, "2023", "2024") == [2023, 2024]
    assert "day holds 2023 to 2024, read as numbers of days; if they are years, write dates" in caplog.text
    assert day(datetime.datetime(2024, 7, 31, 12)) == day("20240731") == (739098, True)


def test_patients_from_the_names_of_files(tmp_path, caplog):
    names = {
        "a/10_left.jpeg": "10",
        "P1_OD_2024.png": "P1",
        "left-7.png": "7",
        "Image_01L.jpg": "Image_01",
        "x.png": "x",
    }
    assert [patient_of(name) for name in names] == list(names.values())
    assert patient_of("CNV-123-2.jpeg", r"-(\d+)-") == "123"
    (tmp_path / "t.csv").write_text("image\n10_left.png\n10_right.png\n11_left.png\n")
    assert len({record.patient for record in csv_source(tmp_path / "t.csv")}) == 3
    assert "10_left.png and 10_right.png look like eyes of one patient; patient=name takes" in caplog.text
    for asked in ("name", r"name:^\d+"):
        source = csv_source(tmp_path / "t.csv", columns={"patient": asked})
        assert [record.patient for record in source] == ["10", "10", "11"]
    with pytest.raises(DataError, match=r"row 1 \(line 2\): patient: 'P' does not match the name '10_left'"):
        len(csv_source(tmp_path / "t.csv", columns={"patient": "name:P"}))
    with pytest.raises(DataError, match="is not a regular expression"):
        len(csv_source(tmp_path / "t.csv", columns={"patient": "name:("}))
    assert looks_paired(["10_left.png", "11_right.png"]) is None


def test_a_missing_image_says_what_may_be_meant(tmp_path):
    from data_pipelines.records import no_such_image

    for name in ("01_h.JPG", "e\u0301ye.png"):
        (tmp_path / name).touch()
    assert str(no_such_image(tmp_path / "01_h.jpg")).endswith("no such image file; there is 01_h.JPG")
    assert str(no_such_image(tmp_path / "01_h.png")).endswith("no such image file; there is 01_h.JPG")
    assert "whose letters are composed otherwise" in str(no_such_image(tmp_path / "\u00e9ye.png"))
    assert str(no_such_image(tmp_path / "b" / "x.png")).endswith(f"the folder {tmp_path}/b does not exist")
    (tmp_path / "t.csv").write_text("image\nb\\0.png\n")
    assert csv_source(tmp_path / "t.csv")[0].views[0].image == tmp_path / "b" / "0.png"  # a path of Windows


def test_a_whole_number_is_the_same_patient_with_and_without_a_point(tmp_path):
    (tmp_path / "t.csv").write_text("image,patient\n0.png,7.0\n1.png,7\n2.png,P.0\n")
    assert [record.patient for record in csv_source(tmp_path / "t.csv")] == ["7", "7", "P.0"]
