"""JSON files of data: shards, splits, tokenizers. Other types and broken files are one clear error that names the file."""

import json
import time

import numpy as np
import pytest

from data_pipelines import notices
from data_pipelines.convert import Sizing, convert
from data_pipelines.language import tokenizers
from data_pipelines.language.findings import vocabulary
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.flair import clean_caption
from data_pipelines.sources.shards import array_records, pack, unpack
from data_pipelines.sources.splits import read_split
from data_pipelines.sources.wrap import wrap
from data_pipelines.words import named


@pytest.mark.parametrize(
    ("key", "value"),
    [("records", "x"), ("shards", 0), ("shards", 10**9), ("classes", "ab"), ("records", -1), ("format", None)],
)
def test_info_of_shards(tmp_path, key, value):
    convert(wrap([(np.zeros((8, 8, 3), np.uint8), "drusen")]), tmp_path / "x", Sizing(8))
    file = tmp_path / "x" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=r"info\.json: "):
        len(array_records(tmp_path / "x"))


def test_headers_of_records():
    whole = pack(Record("p1", (View(b"x"),), "drusen", targets={"label": np.int32(1)}))
    length = int.from_bytes(whole[:4], "little")
    header = json.loads(whole[4 : 4 + length])
    for change in (
        {"patient": 5}, {"findings": "ab"}, {"findings": [1]}, {"day": "x"}, {"views": 5}, {"views": [["CFP", "", -1]]},
        {"views": [["X-RAY", "", 1]]}, {"attributes": []}, {"targets": {"a": {"array": ["<f4", [2**40], 4, True]}}},
        {"targets": {"a": {"array": ["O", [1], 4, False]}}}, {"targets": [1]},
    ):  # fmt: skip
        text = json.dumps(header | change).encode()
        if change != {"findings": "ab"}:  # letters are texts as well
            with pytest.raises(DataError, match="not a record"):
                unpack(len(text).to_bytes(4, "little") + text + b"x")


@pytest.mark.parametrize("parts", [5, {"train": 5}, {"train": {"a": "bc"}}, {"train": {"a": [1]}}])
def test_splits(tmp_path, parts):
    (tmp_path / "s.json").write_text(json.dumps({"format": "fundax split 2", "parts": parts}))
    with pytest.raises(DataError, match=r"s\.json: parts"):
        read_split(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("tokenizer.json", ("model",), 5), ("tokenizer.json", ("model", "vocab"), {"a": "x"}),
        ("tokenizer.json", ("model", "vocab"), {"a": -1}), ("tokenizer.json", ("model", "merges"), ["a b c"]),
        ("tokenizer.json", ("model", "merges"), 5), ("tokenizer_config.json", ("model_max_length",), "x"),
    ],
)  # fmt: skip
def test_tokenizers(tmp_path, file, keys, value):
    tokenizers.bundled().save(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        tokenizers.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


LONG = (
    *("haemorrhage " * 8400, "a" * 100_000, "?" * 100_000, "drusen? " * 12_500, "no drusen, " * 9_100, "\n" * 100_000),
    *("oedema of the " + "left " * 20_000, "视网膜" * 33_333, "(see figure 3) " * 6_600, "fig" * 33_333, ",;" * 50_000),
    *(
        "\ufdfa" * 100_000,
        "drusen: none " * 7_600,
        "a-" * 50_000,
        "no drusen or " * 7_700,
        "Fig 1-1-1-1-" * 8_000,
        "1." * 50_000,
    ),
)


@pytest.mark.parametrize("text", LONG, ids=[text[:14] for text in LONG])
def test_a_report_of_100000_letters_takes_no_longer_than_its_length(text):
    read, tokenizer = vocabulary(), tokenizers.bundled()
    read("drusen")
    start = time.process_time()
    read(text), clean_caption(text), tokenizer([text])
    assert time.process_time() - start < 4  # less than 1 s; before, minutes


def test_the_findings_of_a_longer_text_are_those_of_its_beginning(caplog, monkeypatch):
    monkeypatch.setattr(notices, "_given", set())
    read = vocabulary()
    assert read("drusen " + "word " * 20_000 + "cataract") == {"drusen"} and "first 100000 letters" in caplog.text
    caplog.clear()
    assert read("word " * 1_000 + "drusen") == {"drusen"} and not caplog.text


def test_20000_classes_take_no_longer_than_their_number(tmp_path):
    (tmp_path / "a.png").touch()
    lines = [f"a.png,class number {k}" for k in range(20_000)]
    (tmp_path / "x.csv").write_text("image,label\n" + "\n".join(lines) + "\n")
    start = time.process_time()
    source = csv_source(tmp_path / "x.csv")
    assert len(source.classes) == 20_000 and source[7].targets["label"] == source.classes.index("class number 7")
    assert time.process_time() - start < 4  # about 1 s; before, the square of the number


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("x" * 5000, "no such file"), ("a\0b", "no such file"), ("synthetic,n=nan", "not a number"), ("synthetic,n=inf", "not a"),
        ("synthetic,n=0", "n=0; expected 1"), ("synthetic,weight=0", "weight=0"), ("synthetic,name=../x", "cannot be that of a"),
        ("synthetic,name=a/b", "cannot be that of a file"), ("/dev/zero", "a pipe or device"), ("synthetic,name=", "cannot be"),
    ],
)  # fmt: skip
def test_words_that_name_no_source_are_one_line(word, message):
    with pytest.raises(DataError, match=message) as caught:
        named(word)
    assert len(str(caught.value)) < 500
