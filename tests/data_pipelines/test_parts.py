"""The parts of a user's data: folders of parts, a column `split`, split files, --val, and what is cut."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from data_pipelines.open import Data
from data_pipelines.records import DataError
from data_pipelines.sources.parts import part_of
from data_pipelines.sources.splits import write_split


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def folder(root, **counts):
    for part, count in counts.items():
        for name in ("DR", "normal"):
            for k in range(count):
                image(root / part.strip("_") / name / f"{part}{name}{k}.png", k)
    return root


def table(path, rows=20, column=None, split=""):
    lines = ["image,label,patient" + (f",{column}" if column else "")]
    for k in range(rows):
        image(path.parent / f"{k}.png", k)
        lines.append(f"{k}.png,{'ab'[k % 2]},p{k // 2}" + (f",{split(k)}" if column else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


def read(word, fractions=(0.7, 0.15, 0.15), **fields):
    data = Data(data=(str(word),), fractions=fractions, **fields)
    return data, {name: one[0].source for name, one in data.parts({}, 0).items() if one}


def files(source):
    return {source[k].views[0].image.name for k in range(len(source))}


def test_the_names_of_parts():
    spelt = {"train": "Train training", "val": "val valid Validation dev", "test": "TEST testing"}
    assert all(part_of(word) == part for part, words in spelt.items() for word in words.split())
    assert part_of("fold1") == part_of("") == ""


def test_train_valid_test_folders_are_the_parts(tmp_path):
    _, parts = read(folder(tmp_path, train=10, valid=4, test=6))
    assert {name: len(part) for name, part in parts.items()} == {"train": 20, "val": 8, "test": 12}
    assert all("valid" in name for name in files(parts["val"])) and parts["val"].classes == ("DR", "normal")


@pytest.mark.parametrize(("there", "missing"), [(("train", "test"), "val"), (("train", "val"), "test")])
def test_a_missing_part_is_cut_from_train_with_a_warning(tmp_path, caplog, there, missing):
    root = folder(tmp_path / "eyes", **dict.fromkeys(there, 20))
    with caplog.at_level(logging.WARNING):
        data, parts = read(root)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes[there[1]] == 40 and sizes["train"] + sizes[missing] == 40 and 5 <= sizes[missing] <= 10
    assert f"eyes: {missing} is cut from train; rows: train {sizes['train']}" in " ".join(caplog.messages)
    write_split(tmp_path / "split.json", data.used["split"])
    again = Data(data=data.data, split=str(tmp_path / "split.json"), fractions=(0.5, 0.25, 0.25)).parts({}, 9)
    assert files(again[missing][0].source) == files(parts[missing])


def test_folders_of_classes_without_parts_are_split(tmp_path):
    _, parts = read(folder(tmp_path / "eyes", _=20))
    assert sum(map(len, parts.values())) == 40 and len(parts["train"]) == 28


def test_a_flat_folder_is_named_with_what_was_expected(tmp_path):
    image(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match=r"flat: has 1 images and no folders of classes; expected .*<class>/"):
        read(tmp_path / "flat")


def test_a_split_column_is_honoured(tmp_path, caplog):
    split = lambda k: ("train", "valid", "TEST")[min(k // 2 % 5, 2)]  # noqa: E731
    word = table(tmp_path / "labels.csv", column="split", split=split)
    data, parts = read(word)
    assert {name: len(part) for name, part in parts.items()} == {"train": 4, "val": 4, "test": 12}
    assert files(parts["val"]) == {f"{k}.png" for k in range(20) if split(k) == "valid"}
    counts = data.used["split"]["counts"]
    assert {p: c[tmp_path.name]["rows"] for p, c in counts.items()} == {"train": 4, "val": 4, "test": 12}
    bad = table(tmp_path / "bad" / "labels.csv", column="split", split=lambda k: ("train", "test")[k % 2])
    with pytest.raises(DataError, match="patient p0 is in the parts train and test of its column split"):
        read(bad)
    gap = table(tmp_path / "gap" / "labels.csv", column="split", split=lambda k: "train" if k < 18 else "")
    with pytest.raises(DataError, match=r"row 19 \(line 20\): split is ''; expected train, val or test"):
        read(gap)
    with caplog.at_level(logging.WARNING):
        _, parts = read(table(tmp_path / "other" / "labels.csv", column="split", split=lambda k: f"fold{k % 3}"))
    assert "its column split has fold0, fold1, fold2" in " ".join(caplog.messages) and len(parts["train"]) == 14


def test_every_row_is_evaluated_by_part_all(tmp_path):
    word = table(tmp_path / "labels.csv", column="split", split=lambda k: "train" if k < 18 else "val")
    data, parts = read(word, part="all")
    assert len(data.scored(data.parts({}, 0))[0].source) == 20 and set(map(len, parts.values())) == {20}
    with pytest.raises(DataError, match="--part test: the data have the parts train, val"):
        read(word, fractions=(0.9, 0.1), part="test")


def test_one_split_file_of_several_sources(tmp_path):
    words = [str(table(tmp_path / name / "labels.csv")) for name in ("a", "b")]
    path = tmp_path / "split.json"
    first = Data(data=tuple(words), split=str(path)).parts({}, 0)
    again = Data(data=tuple(words[::-1]), split=str(path)).parts({}, 7)
    assert [one.name for one in first["val"]] == ["a", "b"] and [one.name for one in again["val"]] == ["b", "a"]
    for name in ("train", "val"):
        before, now = ({one.name: files(one.source) for one in parts[name]} for parts in (first, again))
        assert before == now


def test_what_was_read_is_recorded(tmp_path):
    word = str(table(tmp_path / "messidor" / "labels.csv"))
    data = Data(data=(word, word))
    data.parts({}, 0)
    sources = data.used["sources"]
    assert [(one["name"], one["rows"], one["word"]) for one in sources] == [
        ("messidor", 20, word),
        ("messidor_2", 20, word),
    ]
    counts = data.used["split"]["counts"]
    assert counts["train"]["messidor"]["rows"] + counts["val"]["messidor"]["rows"] == 20
    before = sources[0]["digest"]
    (tmp_path / "messidor" / "labels.csv").write_text("image,label\n0.png,a\n1.png,b\n2.png,a\n")
    other = Data(data=(word,), fractions=(1.0,))
    other.parts({}, 0)
    assert other.used["sources"][0]["digest"] != before and "p1" not in json.dumps(data.used["split"])
    assert data.used == json.loads(json.dumps(data.used))


def test_val_replaces_a_part_of_the_data(tmp_path):
    word, val = table(tmp_path / "a" / "labels.csv"), table(tmp_path / "b" / "labels.csv", rows=4)
    _, parts = read(word, fractions=(0.9, 0.1), val=(str(val),))
    assert len(parts["train"]) == 20 and len(parts["val"]) == 4
