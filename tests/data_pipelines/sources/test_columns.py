"""The index of a big source: bytes per row, objects, and what travels to a worker."""

import gc
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.records import text_hash
from data_pipelines.sources import columns
from data_pipelines.sources.columns import Stored, Strings, StringWriter


@pytest.fixture
def small_spill(monkeypatch):
    monkeypatch.setattr(columns, "SPILL", 1000)


def test_strings_come_back():
    texts = ["", "drusen", "眼底出血", "a\nb", "", "é"]
    strings = Strings.of(texts)
    assert list(strings) == texts and len(strings) == 6
    assert list(Strings.of([])) == []
    for row in (6, -1):
        with pytest.raises(IndexError):
            strings[row]


def test_a_large_column_is_not_a_heap_of_objects():
    rows = 50_000
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    strings = Strings.of(f"images/patient_{row:08d}.jpg" for row in range(rows))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    assert (
        held < rows * 40 and peak < rows * 100
    )  # 27 bytes of text and 8 of offset; a str alone takes 76 and a pointer
    assert strings[12_345] == "images/patient_00012345.jpg"


def test_large_arrays_travel_as_the_name_of_their_file(small_spill):
    array = np.arange(1000, dtype=np.int64)
    stored = Stored(array)
    assert isinstance(stored.array, np.memmap)
    data = pickle.dumps(stored)
    assert len(data) < 300
    other = pickle.loads(data)
    np.testing.assert_array_equal(other.array, array)
    assert other.array.filename == stored.array.filename
    small = pickle.loads(pickle.dumps(Stored(array[:10])))
    assert not isinstance(small.array, np.memmap) and small.array[-1] == 9
    table = Stored(array.reshape(-1, 4))
    assert pickle.loads(pickle.dumps(table)).array.shape == (250, 4)


def test_strings_that_spill_while_they_come(small_spill):
    writer = StringWriter()
    texts = [f"{row} 黄斑" for row in range(500)]
    for text in texts:
        writer.append(text)
    strings = writer.finish()
    assert list(strings) == texts
    data = pickle.dumps(strings)
    assert len(data) < 500
    assert pickle.loads(data)[499] == "499 黄斑"


def test_the_process_that_made_the_files_removes_them_and_a_child_does_not():
    code = """
import os, numpy as np
from data_pipelines.sources import columns
columns.SPILL = 10
name = columns.Stored(np.arange(100)).array.filename
child = os.fork()
if not child:
    raise SystemExit(0)  # runs the exit handlers
os.waitpid(child, 0)
print(os.path.exists(name), name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there, name = done.stdout.split()
    assert there == "True"
    assert subprocess.run(["test", "-e", name]).returncode == 1


def test_hashes_depend_on_text_and_seed_only():
    strings = Strings.of(["a", "b", "a"])
    hashes = strings.hashes(0)
    assert hashes.dtype == np.uint64 and hashes[0] == hashes[2] != hashes[1]
    assert (hashes != strings.hashes(1)).all()
    # BLAKE2b-64 of b"a" with the key 0: the same on every machine
    assert text_hash(b"a", 0) == hashes[0] == 4180199910021036473


def test_an_index_is_read_once_by_many_threads():
    class Slow:
        reads = 0

        @columns.read_once
        def index(self):
            """The index."""
            Slow.reads += 1
            time.sleep(0.05)
            return [1]

    slow = Slow()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: slow.index, range(8)))
    assert Slow.reads == 1 and all(f is found[0] for f in found)
