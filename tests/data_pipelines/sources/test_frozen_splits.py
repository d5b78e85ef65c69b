"""Splits by patient, stratified, written without names and read back in any order."""

import hashlib
import json

import numpy as np
import pytest

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.splits import divided, folds, read_split, salt_file, split_record, stratified, write_split

PATIENTS = [f"p{k // 2}" for k in range(400)]  # two eyes each
LABELS = np.array([0 if k // 2 % 10 < 7 else 1 if k // 2 % 10 < 9 else 2 for k in range(400)])


def source(patients):
    return [Record(name, (View(np.zeros((2, 2, 3), np.uint8), "CFP", "left"),)) for name in patients]


def test_parts_share_no_patient_and_have_every_class_by_the_fractions():
    parts = stratified(PATIENTS, LABELS, seed=3)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    names = {part: {PATIENTS[row] for row in rows} for part, rows in parts.items()}
    assert not (names["train"] & names["val"] | names["train"] & names["test"] | names["val"] & names["test"])
    for part, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        for k, patients in ((0, 140), (1, 40), (2, 20)):
            assert abs((LABELS[parts[part]] == k).sum() / 2 - share * patients) <= 1
    other = stratified(PATIENTS, LABELS, seed=4)
    assert set(other["test"]) != set(parts["test"])


def test_the_order_of_rows_does_not_matter():
    order = np.random.default_rng(0).permutation(400)
    shuffled = stratified([PATIENTS[k] for k in order], LABELS[order], seed=3)
    parts = stratified(PATIENTS, LABELS, seed=3)
    for name, rows in parts.items():
        assert {PATIENTS[r] for r in rows} == {PATIENTS[order[r]] for r in shuffled[name]}


def test_several_labels_count_by_the_rarest():
    labels = np.zeros((400, 3), np.float32)
    labels[:, 0] = 1
    labels[:20:2, 2] = 1  # one eye of ten patients
    parts = stratified(PATIENTS, labels)
    assert [labels[rows, 2].sum() for rows in parts.values()] == [7, 2, 1] or [
        labels[rows, 2].sum() for rows in parts.values()
    ] == [7, 1, 2]


def test_folds():
    found = folds(PATIENTS, LABELS, 5)
    assert sorted(np.concatenate(found)) == list(range(400))
    assert [len(rows) for rows in found] == [80] * 5
    for rows in found:
        assert (LABELS[rows] == 2).sum() == 8
    with pytest.raises(DataError, match="5 folds of 2 patients"):
        folds(["a", "b"], [0, 1])


def test_written_and_read(tmp_path):
    parts, path = stratified(PATIENTS, LABELS), tmp_path / "split.json"
    named = {part: {"eyes": [PATIENTS[row] for row in rows]} for part, rows in parts.items()}
    cited = write_split(path, split_record(named, seed=0, source="made up"))
    text = path.read_text()
    assert '"p1"' not in text
    assert len(cited) == 64
    assert json.loads(text)["counts"]["train"]["eyes"] == {"patients": 140, "rows": 280}
    stored, backwards = read_split(path), PATIENTS[::-1]
    read = divided(stored, source(backwards), "eyes")
    assert {name: len(part) for name, part in read.items()} == {name: len(rows) for name, rows in parts.items()}
    assert {read["test"][k].patient for k in range(len(read["test"]))} == {PATIENTS[r] for r in parts["test"]}
    assert len(divided(stored, source(backwards), "another name of a single source")["train"]) == 280
    with pytest.raises(DataError, match="2 rows are of patients it does not have, first row 401"):
        divided(stored, source([*PATIENTS, "new", "new"]))
    with pytest.raises(DataError, match="1 of its 200 patients are not in the source"):
        divided(stored, source(PATIENTS[2:]))
    with pytest.raises(DataError, match="expected a split written by fundax"):
        read_split(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"format": "x", "parts": {}}')
    with pytest.raises(DataError, match="whose format is 'fundax split 3', not 'x'"):
        read_split(tmp_path / "other.json")
    with pytest.raises(DataError, match="a patient of eyes is in 'train' and in 'test'"):
        split_record({"train": {"eyes": ["p"]}, "test": {"eyes": ["p"]}})


@pytest.mark.parametrize("version", [1, 2])
def test_split_files_of_earlier_versions(tmp_path, version):
    digests = [hashlib.sha256(b"p1").hexdigest()[:20]]
    parts = {"train": digests, "val": []} if version == 1 else {"train": {"eyes": digests}}
    (tmp_path / "old.json").write_text(json.dumps({"format": f"fundax split {version}", "parts": parts}))
    read = divided(read_split(tmp_path / "old.json"), source(["p1"]))
    assert {name: len(part) for name, part in read.items()} == {"train": 1}


def test_record_numbers_cannot_be_found_again_in_what_is_published(tmp_path):
    patients = [str(10_000 + 7 * k) for k in range(1000)]
    named = {"train": {"eyes": patients[:800]}, "val": {"eyes": patients[800:]}}
    first, second = (split_record(named) for _ in range(2))
    write_split(tmp_path / "split.json", first)
    published = (tmp_path / "split.json").read_text()
    salt = salt_file(tmp_path / "split.json").read_text().strip()
    assert first["salt"] == salt not in published and first["digest"] == second["digest"]
    written = {digest for part in json.loads(published)["parts"].values() for digest in part["eyes"]}
    for known in ("sha256", "sha1", "md5", "blake2b", "blake2s"):
        guesses = {hashlib.new(known, str(k).encode()).hexdigest() for k in range(10_000, 20_000)}
        assert not any(guess[:20] in written for guess in guesses)
    assert not written & {digest for part in second["parts"].values() for digest in part["eyes"]}
    again = split_record(named, salt)  # the salt finds them, and is what a run reads its own split with
    assert again["parts"] == first["parts"]
    salt_file(tmp_path / "split.json").unlink()
    with pytest.raises(
        DataError, match=r"split.json: the digests in it are salted, and the salt is not in .*split.salt"
    ):
        read_split(tmp_path / "split.json")


def test_a_split_file_of_several_sources(tmp_path):
    record = split_record({"train": {"a": ["p1"], "b": ["p2", "p3"]}, "val": {"a": ["p2"]}})
    write_split(tmp_path / "s.json", record)
    stored = read_split(tmp_path / "s.json")
    assert {name: len(part) for name, part in divided(stored, source(["p2", "p1"]), "a").items()} == {
        "train": 1,
        "val": 1,
    }
    assert {name: len(part) for name, part in divided(stored, source(["p3", "p2"]), "b").items()} == {"train": 2}
    with pytest.raises(DataError, match="has no source 'c', only a, b"):
        divided(stored, source(["p1"]), "c")


def test_bad_input_is_named():
    with pytest.raises(DataError, match="row 2: the label is NaN"):
        stratified(["a", "b"], [0.0, np.nan])
    with pytest.raises(DataError, match="2 patients and 1 labels"):
        stratified(["a", "b"], [0])
    with pytest.raises(DataError, match=r"split .* is empty: 2 patients are too few"):
        stratified(["a", "b"], [0, 0])
    with pytest.raises(DataError, match="add up to 1"):
        stratified(["a", "b"], [0, 0], {"train": 0.5})
