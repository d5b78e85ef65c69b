"""Parts of a source keep patients whole and do not depend on the order of the rows."""

import pickle

import numpy as np
import pytest

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.splits import select, split_by
from data_pipelines.sources.wrap import wrap

VIEW = View(np.zeros((2, 2, 3), np.uint8))


def table(tmp_path, order):
    rows = "\n".join(f"{k}.png,p{k % 50},{k % 3}" for k in order)
    (tmp_path / "a.csv").write_text(f"image,patient,label\n{rows}\n")
    return csv_source(tmp_path / "a.csv")


def names(part):
    return {str(part[k].views[0].image) for k in range(len(part))}


def test_patients_stay_whole_and_fractions_hold(tmp_path):
    parts = split_by(table(tmp_path, range(200)), fractions={"train": 0.7, "val": 0.1, "test": 0.2})
    patients = {name: {part[k].patient for k in range(len(part))} for name, part in parts.items()}
    assert sum(map(len, patients.values())) == 50 and len(set().union(*patients.values())) == 50
    assert [len(part) for part in parts.values()] == [140, 20, 40]
    assert parts["test"].classes == ("0", "1", "2")
    np.testing.assert_array_equal(np.sort(np.concatenate([p.rows for p in parts.values()])), np.arange(200))


def test_the_order_of_rows_does_not_matter_and_the_seed_does(tmp_path):
    first = names(split_by(table(tmp_path, range(200)))["test"])
    assert names(split_by(table(tmp_path, reversed(range(200))))["test"]) == first
    assert names(split_by(table(tmp_path, range(200)), seed=1)["test"]) != first


def test_a_part_pickles_with_its_rows(tmp_path):
    part = split_by(table(tmp_path, range(20)))["train"]
    other = pickle.loads(pickle.dumps(part))
    assert "chosen" in other.__dict__ and names(other) == names(part)


def test_building_a_split_reads_nothing(tmp_path):
    parts = split_by(csv_source(tmp_path / "gone.csv"))
    assert set(parts) == {"train", "val", "test"}
    with pytest.raises(DataError, match="no such file"):
        len(parts["train"])


def test_sources_without_columns_are_split_by_their_records():
    records = [Record(f"p{k % 10}", (VIEW,), report=f"r{k % 2}") for k in range(40)]
    parts = split_by(wrap(records), fractions={"a": 0.5, "b": 0.5})
    assert {r.patient for r in map(parts["a"].__getitem__, range(20))}.isdisjoint(
        parts["b"][k].patient for k in range(20)
    )
    by_text = split_by(wrap(records), key="report", fractions={"a": 0.5, "b": 0.5})
    assert len({by_text["a"][k].report for k in range(20)}) == 1
    with pytest.raises(DataError, match="Wrapped can be split by patient or report, not by 'sex'"):
        len(split_by(wrap(records), key="sex")["train"])


def test_wrong_splits(tmp_path):
    source = table(tmp_path, range(4))
    with pytest.raises(DataError, match=r"positive and add up to 1, got \{'train': 0.5\}"):
        split_by(source, fractions={"train": 0.5})
    with pytest.raises(DataError, match="cannot be split by text, only by image, patient"):
        len(split_by(source, key="text")["train"])
    (tmp_path / "a.csv").write_text("image,patient\na,p\nb,p\n")
    with pytest.raises(DataError, match="split 'val' is empty: 1 different patients are too few"):
        len(split_by(csv_source(tmp_path / "a.csv"))["val"])


def test_select(tmp_path):
    source = table(tmp_path, range(9))
    some = select(source, [3, 1, -1])
    assert [some[k].patient for k in range(len(some))] == ["p3", "p1", "p8"] and some.classes == ("0", "1", "2")
    odd = pickle.loads(pickle.dumps(select(source, lambda record: record.targets["label"] == 1)))
    assert odd.rows.tolist() == [1, 4, 7]
    with pytest.raises(DataError, match=r"rows 0\.\.9 are not all within the 9"):
        select(source, [0, 9])
