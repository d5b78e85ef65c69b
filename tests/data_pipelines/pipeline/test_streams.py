"""The stream is arithmetic: permutations, shards, resumes, mixes, skips and passes, whatever reads them."""

import collections
import json
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.images import decode
from data_pipelines.pipeline import bad_records, collate, streams
from data_pipelines.records import DataError, Record, View

BROKEN = b"abc"


@dataclass(frozen=True)
class Rows:
    """n records; rows in `broken` have an image of 3 bytes, rows in `unlabelled` no label."""

    n: int
    broken: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = BROKEN if index in self.broken else np.full((2, 2, 3), index % 256, np.uint8)
        targets = {} if index in self.unlabelled else {"label": index}
        return Record(str(index), (View(image),), targets=targets, where=f"eyes.csv row {index + 1}")


@dataclass(frozen=True)
class Example:
    """Decodes, and adds a tag and a random number."""

    tag: int = 0

    def __call__(self, record, rng):
        if "label" not in record.targets:
            raise DataError("has no label")
        return {
            "image": decode.load(record.views[0].image),
            "label": np.int32(record.targets["label"]),
            "tag": np.int32(self.tag),
            "noise": np.float32(rng.random()),
        }


@dataclass(frozen=True)
class Grow:
    """Images of another shape, or a float under a key, from row 2 on."""

    what: str

    def __call__(self, example, rng):
        if example["label"] < 2:
            return example
        if self.what == "shape":
            return example | {"image": np.zeros((3, 3, 3), np.uint8)}
        return example | {self.what: np.float32(1)}


@dataclass(frozen=True)
class Wrong:
    def __call__(self, example, rng):
        return example["no such key"]


@dataclass(frozen=True)
class Unopened:
    def __len__(self):
        raise AssertionError("opened")

    def __getitem__(self, index):
        raise AssertionError("opened")


def take(data, count, shard=0, shards=1, start=0):
    batches = data(shard, shards)
    batches.set_state(json.loads(json.dumps({"step": start})))
    found = [next(batches) for _ in range(count)]
    assert batches.get_state() == {"step": start + count}
    batches.close()
    return found


def rows(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.fixture
def data():
    return streams.train(Rows(12), [Example()], batch=4, seed=3)


def test_batch_has_stacked_examples(data):
    (batch,) = take(data, 1)
    assert {key: (value.dtype.str, value.shape) for key, value in batch.items()} == {
        "image": ("|u1", (4, 2, 2, 3)),
        "label": ("<i4", (4,)),
        "tag": ("<i4", (4,)),
        "noise": ("<f4", (4,)),
        "index": ("<i8", (4,)),
        "valid": ("|b1", (4,)),
    }
    np.testing.assert_array_equal(batch["label"], batch["index"])
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    assert batch["valid"].all()


def test_every_epoch_is_another_permutation(data):
    found = np.reshape(rows(take(data, 9)), (3, 12))
    assert all(sorted(epoch) == list(range(12)) for epoch in found.tolist())
    assert len({tuple(epoch) for epoch in found.tolist()}) == 3
    other = streams.train(Rows(12), [Example()], batch=4, seed=4)
    following = np.reshape(rows(take(other, 9)), (3, 12))
    assert not {tuple(e) for e in found.tolist()} & {tuple(e) for e in following.tolist()}


def test_a_batch_may_span_epochs():
    found = take(streams.train(Rows(3), [Example()], batch=8, seed=0), 3)
    counts = collections.Counter(rows(found))
    assert counts == {0: 8, 1: 8, 2: 8}
    noise = np.concatenate([batch["noise"] for batch in found])
    assert len(set(noise.tolist())) == 24  # the same row again is not the same augmentation


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_the_slices_of_the_global_batch(data, shards):
    whole = take(data, 5)
    parts = [take(data, 5, shard, shards) for shard in range(shards)]
    joined = [{k: np.concatenate([part[i][k] for part in parts]) for k in whole[0]} for i in range(5)]
    assert_same(joined, whole)


def test_resume_on_other_shards_and_threads_goes_on_the_same(data):
    whole = take(data, 9)
    other = streams.train(Rows(12), [Example()], batch=4, seed=3, threads=3, prefetch=1)
    halves = [take(other, 4, shard, 2, start=5) for shard in range(2)]
    joined = [{k: np.concatenate([half[i][k] for half in halves]) for k in whole[0]} for i in range(4)]
    assert_same(joined, whole[5:])


def test_state_may_be_set_in_the_middle(data):
    whole = take(data, 6)
    batches = data()
    next(batches)
    batches.set_state({"step": 4})
    assert_same([next(batches), next(batches)], whole[4:])
    batches.set_state({"step": 0})
    assert_same([next(batches)], whole[:1])
    batches.close()


def test_worker_processes_give_the_same_and_report_bad_data_in_one_line(data):
    clean = take(data, 6)
    broken = int(clean[5]["index"][1])
    start = 3  # a new epoch: its rows come for the first time in these batches
    workers = streams.train(Rows(12, broken=(broken,)), [Example()], batch=4, seed=3, workers=2)()
    workers.set_state({"step": start})
    first = next(workers)
    for child in multiprocessing.active_children():  # as a scheduler tells every process of a job step
        os.kill(child.pid, signal.SIGTERM)
    assert_same([first, next(workers)], clean[start:5])
    with pytest.raises(DataError) as caught:
        next(workers)
    assert str(caught.value).startswith(f"eyes.csv row {broken + 1}: ") and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_large_sources_are_permuted_without_an_array():
    length = streams._SORTED + 1
    found = {streams._shuffled(place, length, seed=7) for place in range(length)}
    assert found == set(range(length))


def test_once_is_in_order_and_pads_the_last_batch():
    batches = list(streams.one_epoch(Rows(10), [Example()], batch=4)())
    assert rows(batches) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert np.concatenate([b["valid"] for b in batches]).tolist() == [True] * 10 + [False] * 2
    np.testing.assert_array_equal(batches[2]["noise"][1:], batches[2]["noise"][1])


def test_once_gives_every_process_as_many_batches():
    data = streams.one_epoch(Rows(9), [Example()], batch=8)
    parts = [list(data(shard, 4)) for shard in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    valid = [batch["index"][batch["valid"]] for part in parts for batch in part]
    assert sorted(np.concatenate(valid).tolist()) == list(range(9))
    assert [part[1]["valid"].sum() for part in parts] == [1, 0, 0, 0]


def test_once_resumes_and_starts_over():
    data = streams.one_epoch(Rows(10), [Example()], batch=4)
    assert rows(take(data, 2, start=1)) == [4, 5, 6, 7, 8, 9, 9, 9]
    assert_same(list(data()), list(data()))


def test_wheel_by_hand():
    # slots at (j + 1/2) / w: part 0 at .5, part 1 at .167 .5 .833
    owner, rank, share = streams.wheel([1, 3])
    assert (owner.tolist(), rank.tolist(), share.tolist()) == ([1, 0, 1, 1], [0, 0, 1, 2], [1, 3])
    assert streams.wheel([2, 6])[2].tolist() == [1, 3]
    assert streams.wheel([0.7, 0.3])[2].tolist() == [7, 3]
    assert streams.wheel([1 / 6, 5 / 6])[2].tolist() == [1, 5]
    assert streams.wheel([1.0, 2**0.5, 3**0.5])[2].tolist() == [2412, 3411, 4177]


def test_mix_keeps_whole_ratios_exactly_and_each_part_its_own_epochs():
    data = streams.mix([(Rows(4), [Example(0)], 1), (Rows(6), [Example(1)], 3)], batch=8, seed=1)
    found = take(data, 6)
    assert [np.bincount(batch["tag"]).tolist() for batch in found] == [[2, 6]] * 6
    tags = np.concatenate([batch["tag"] for batch in found])
    for tag, epoch in ((0, 4), (1, 6)):
        own = np.asarray(rows(found))[tags == tag].reshape(-1, epoch)
        assert all(sorted(order) == list(range(epoch)) for order in own.tolist())
    halves = [take(data, 2, shard, 2, start=4) for shard in range(2)]
    joined = [{k: np.concatenate([half[i][k] for half in halves]) for k in found[0]} for i in range(2)]
    assert_same(joined, found[4:])


def test_unreadable_image_is_an_error_that_names_the_row():
    batches = streams.train(Rows(8, broken=(6,)), [Example()], batch=4)()
    with pytest.raises(DataError, match=r"^eyes.csv row 7: .*3 bytes$"):
        [next(batches) for _ in range(2)]


def test_skip_fills_the_slot_and_lists_each_row_once(tmp_path):
    path = tmp_path / "run" / "bad_records.jsonl"
    source, how = Rows(12, broken=(6, 9)), {"on_bad_image": "skip", "bad_records": path}
    data = streams.train(source, [Example()], batch=4, seed=3, **how)
    batches = data()
    found = [next(batches) for _ in range(9)]
    batches.close()
    assert batches.skipped == 2
    clean = take(streams.train(Rows(12), [Example()], batch=4, seed=3), 9)
    ours, theirs = np.asarray(rows(found)), np.asarray(rows(clean))
    kept = ~np.isin(theirs, (6, 9))
    np.testing.assert_array_equal(ours[kept], theirs[kept])
    assert not set(ours[~kept]) & {6, 9} and (~kept).sum() == 6
    assert_same(take(data, 4, start=5), found[5:])  # by arithmetic, and nothing is listed again
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["file"], line["row"]) for line in lines) == [
        ("eyes.csv row 10", 10),
        ("eyes.csv row 7", 7),
    ]
    assert all("3 bytes" in line["reason"] for line in lines)


def test_skip_is_for_images_only():
    batches = streams.train(Rows(4, unlabelled=(2,)), [Example()], batch=4, on_bad_image="skip")()
    with pytest.raises(DataError, match=r"^eyes.csv row 3: has no label$"):
        next(batches)


def test_skip_gives_up_when_nothing_can_be_read():
    batches = streams.train(Rows(2, broken=(0, 1)), [Example()], batch=2, on_bad_image="skip")()
    with pytest.raises(DataError, match=r"64 consecutive unreadable images, last eyes\.csv row"):
        next(batches)


def test_evaluation_never_skips():
    with pytest.raises(DataError, match="never skips"):
        streams.one_epoch(Rows(4), [Example()], batch=2, on_bad_image="skip")


def test_bad_records_name_files_and_masks(tmp_path):
    missing = tmp_path / "gone.jpg"
    found = bad_records.find(Record("p", (View(missing),)), 5)
    assert found == (str(missing), 5, "no such image file")
    eye = View(np.zeros((2, 2, 3), np.uint8))
    assert bad_records.find(Record("p", (eye,), targets={"mask": missing}), 5) == found
    assert bad_records.find(Record("p", (eye,), targets={"label": 1}), 5) is None


def test_bad_records_of_many_writers_are_listed_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    listed = [bad_records.Bad(f"{i}.jpg", i, "damaged") for i in range(20)]

    def write(turn):
        for i in range(20):
            bad_records.append(path, [listed[(i + turn) % 20]])

    writers = [threading.Thread(target=write, args=(turn,)) for turn in range(6)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    lines = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert sorted(lines) == list(range(20))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shape", r"key 'image' is uint8 \[2, 2, 3\] and uint8 \[3, 3, 3\] in one batch"),
        ("label", r"key 'label' is int32 \[\] and float32 \[\] in one batch"),
        ("extra", "key 'extra' is in some"),
    ],
)
def test_examples_that_do_not_stack(what, message):
    with pytest.raises(DataError, match=message):
        next(streams.one_epoch(Rows(4), [Example(), Grow(what)], batch=4)())


def test_texts_stay_texts():
    batch = collate.stack([{"text": "macular hole", "index": 0}, {"text": "眼底", "index": 1}])
    assert batch["text"].tolist() == ["macular hole", "眼底"]


def test_a_wrong_step_is_no_data_error_and_shows_where():
    with pytest.raises(RuntimeError, match=r"(?s)eyes.csv row 1: a step failed.*no such key") as caught:
        next(streams.one_epoch(Rows(4), [Example(), Wrong()], batch=4)())
    assert not isinstance(caught.value, DataError)


def test_an_empty_source_is_an_error():
    for build in (streams.train, streams.one_epoch):
        with pytest.raises(DataError, match="Rows has no rows"):
            next(build(Rows(0), [Example()], batch=2)())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: streams.train(Rows(4), [], batch=4)(0, 3), "4 cannot be divided among 3"),
        (lambda: streams.train(Rows(4), [], batch=4)(2, 2), "process 2 of 2"),
        (lambda: streams.train(Rows(4), [], batch=0), "batch is 1 or more"),
        (lambda: streams.train(Rows(4), [], batch=4, seed=-1), "seed is 0 or more"),
        (lambda: streams.train(Rows(4), [], batch=4, workers=-1), "workers and threads"),
        (lambda: streams.train(Rows(4), [], batch=4, on_bad_image="ignore"), 'is "error" or "skip"'),
        (lambda: streams.train(Rows(4), [], batch=4, bad_records=Path("x")), "only with on_bad_image"),
        (lambda: streams.mix([], batch=4), "positive weights"),
        (lambda: streams.mix([(Rows(4), [], 0)], batch=4), "positive weights"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(DataError, match=message):
        build()


def test_building_opens_nothing():
    assert callable(streams.train(Unopened(), [], batch=4))
    assert streams.one_epoch(Unopened(), [], batch=4)(0, 1).get_state() == {"step": 0}
