import json
import threading
import time
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_objective import Rows, recipe

from data_pipelines.images import decode
from data_pipelines.pipeline import streams
from data_pipelines.records import Record, View
from fundax.runtime.mesh import make_mesh
from fundax.runtime.prefetch import Prefetcher
from fundax.types import UserError


class Noted(Rows):
    """Rows that record which were read, wait at chosen ones, and record that they were closed."""

    def __init__(self, *args, gate=None, **fields):
        super().__init__(*args, **fields)
        self.gate, self.closed = gate, False

    def __next__(self):
        if self.gate:
            self.gate.wait()
        return super().__next__()

    def close(self):
        self.closed = True


@dataclass(frozen=True)
class Broken:
    """Eight records; the image of row 3 has 3 bytes."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = b"\xff\xd8\xff" if index == 2 else np.zeros((2, 2, 3), np.uint8)
        return Record(str(index), (View(image),), where=f"eyes.csv row {index + 1}")


@dataclass(frozen=True)
class Example:
    def __call__(self, record, rng):
        mean = decode.load(record.views[0].image).mean()
        return {"image": np.full(4, mean, np.float32), "value": np.float32(0)}


def feed(data, steps=6, position=None, first=0):
    spec = recipe().objective.batch_spec(recipe().batch)
    return Prefetcher(lambda shard, shards: data, spec, make_mesh((1, 1)), position, first, steps)


def eventually(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_batches_come_in_order_placed_and_read_ahead_with_the_state_of_those_taken():
    data = Noted(8, 0, 1)
    with feed(data, position={"step": 2}, first=2) as ahead:
        assert ahead.state == {"step": 2}
        expected = Rows(8, 0, 1, step=2)
        for step in range(3, 7):
            batch = ahead.take(None)
            np.testing.assert_array_equal(batch["image"], next(expected)["image"])
            assert ahead.state == {"step": step} and batch.keys() == {"image", "value"}
            eventually(lambda step=step: data.step >= min(step + 1, 6))
        assert data.step == 6, "read past the last step"
    assert data.closed


def test_an_error_is_raised_where_its_batch_was_due():
    with feed(Noted(8, 0, 1, ends=2)) as ahead:
        ahead.take(None), ahead.take(None)
        with pytest.raises(UserError, match="ended before step 3"):
            ahead.take(None)


def test_what_skipping_data_leaves_out_is_listed_and_counted(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    data = streams.train(Broken(), [Example()], batch=4, on_bad_image="skip")()
    spec = recipe().objective.batch_spec(4)
    with Prefetcher(lambda shard, shards: data, spec, make_mesh((1, 1)), None, 0, 3, path) as ahead:
        assert ahead.counts() == {}
        for _ in range(3):
            ahead.take(None)
        assert ahead.counts() == {"skipped": 1}
    (listed,) = map(json.loads, path.read_text().splitlines())
    assert listed["row"] == 3 and "only 3 bytes" in listed["reason"]


def test_leaving_ends_the_thread_though_it_holds_a_batch():
    data = Noted(8, 0, 1)
    with feed(data, steps=1000) as ahead:
        eventually(lambda: data.step == 2)  # one in the queue, one in its hand
    assert not ahead._thread.is_alive() and data.closed and data.step == 2


class Busy:
    """An output of a step that the device is still at."""

    def is_ready(self):
        return False


class Done:
    """An output of a finished step; the data comes only after somebody has seen that."""

    def __init__(self, gate):
        self.gate = gate

    def is_ready(self):
        threading.Timer(0.05, self.gate.set).start()
        return True


def test_waiting_counts_only_while_the_device_is_idle():
    gate = threading.Event()
    with feed(Noted(8, 0, 1, gate=gate)) as ahead:
        threading.Timer(0.1, gate.set).start()
        ahead.take(Busy())
        assert ahead.waited() == 0, "the device was busy all the time"
        eventually(lambda: ahead._placed.full())
        ahead.take(jnp.zeros(()))
        assert ahead.waited() == 0, "the batch was there"
    gate.clear()
    with feed(Noted(8, 0, 1, gate=gate)) as ahead:
        ahead.take(Done(gate))
        assert ahead.waited() > 0
