"""Worker processes ignore SIGINT and SIGTERM from the moment they start, and a dead one is an error of one line."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

import launch
from data_pipelines.convert import Sizing, convert
from data_pipelines.pipeline import streams, workers
from data_pipelines.records import DataError, Record, View

MOMENTS_MS = (0, 1, 3, 10, 30, 100, 200, 400, 800, 1600)  # after the start of a worker, which takes about a second
KILLED = r"^a worker process that reads data died \(exit code -9, SIGKILL; .*out of memory; use fewer workers[^\n]*\)$"


@dataclass(frozen=True)
class Rows:
    """Records without an image; making the one at `ends` kills the process that makes it."""

    n: int = 8
    ends: int = -1

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.ends:
            os.kill(os.getpid(), signal.SIGKILL)
        return Record(str(index), (View(np.zeros((8, 8, 3), np.uint8)),), targets={"label": index})


@dataclass(frozen=True)
class Label:
    def __call__(self, record, rng):
        return {"label": np.int32(record.targets["label"])}


@pytest.fixture
def on_start(monkeypatch):
    """Call `on_start(function)`: `function(pid)` is called as soon as a worker process exists, in the starting thread."""
    called, spawn = [], multiprocessing.util.spawnv_passfds

    def started(path, args, fds):
        pid = spawn(path, args, fds)
        if any("spawn_main" in str(arg) for arg in args):  # not Python's own resource tracker
            [function(pid) for function in called]
        return pid

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", started)
    return called.append


def once(ends=-1):
    return streams.one_epoch(Rows(ends=ends), [Label()], batch=4, workers=2)()


def test_workers_survive_signals_at_ten_moments_after_their_start(on_start):
    sent, timers = [], []

    def tell(pid, moment):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        sent.append((pid, moment))

    def signals(pid):
        tell(pid, 0)  # Python has not yet started in it
        timers.extend(threading.Timer(moment / 1000, tell, (pid, moment)) for moment in MOMENTS_MS[1:])
        [timer.start() for timer in timers[-len(MOMENTS_MS) + 1 :]]

    on_start(signals)
    batches = once()
    found = [next(batches) for _ in range(2)]
    [timer.join() for timer in timers]  # the workers wait meanwhile to be asked for more
    children = multiprocessing.active_children()
    assert {pid for pid, _ in sent} <= {child.pid for child in children}
    batches.close()
    assert len(sent) == 2 * len(MOMENTS_MS) and {moment for _, moment in sent} == set(MOMENTS_MS)
    assert np.concatenate([batch["label"] for batch in found]).tolist() == list(range(8))
    assert [child.exitcode for child in children if child.pid in dict(sent)] == [0, 0]


def test_signals_to_the_parent_while_workers_start_are_handled_by_it(on_start):
    heard, numbers = [], (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers]
    try:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        on_start(lambda pid: [os.kill(os.getpid(), number) for number in numbers])
        batches = once()
        assert next(batches)["label"].tolist() == [0, 1, 2, 3]
        batches.close()
        assert set(heard) == set(numbers)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        [signal.signal(number, handler) for number, handler in zip(numbers, before, strict=True)]


START_AND_TELL = """
import multiprocessing, os, signal, sys, time
from data_pipelines.pipeline import workers

process = multiprocessing.get_context(sys.argv[1]).Process(target=time.sleep, args=(60,))
workers.protected(process.start)
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(process.pid, number)
process.join(0.2)
print(process.exitcode)
process.kill()
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_protected_processes_block_the_signals_whatever_starts_them(method):
    # in a process of its own, because one with JAX in it must not fork
    run = subprocess.run([sys.executable, "-c", START_AND_TELL, method], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "None\n", "")


def test_protected_gives_what_its_function_gives():
    assert workers.protected(lambda: 3) == 3
    with pytest.raises(KeyError, match="here"):
        workers.protected(lambda: {}["here"])


def test_a_worker_that_is_killed_is_one_line():
    data = streams.train(Rows(), [Label()], batch=4, workers=2)()
    next(data)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=KILLED) as caught:
        [next(data) for _ in range(20)]
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert not [child for child in multiprocessing.active_children() if "grain" in child.name]


@pytest.mark.parametrize("moment", [0, 0.3])
def test_a_worker_that_is_killed_at_its_start_is_one_line(on_start, moment):
    def kill(pid):
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)

    on_start(kill)
    with pytest.raises(DataError, match=r"^a worker process that reads data died \([^\n]*out of memory[^\n]*\)$"):
        next(once())


def test_a_worker_that_is_killed_while_it_converts_is_one_line(tmp_path):
    with pytest.raises(DataError, match=KILLED):
        convert(Rows(ends=5), tmp_path / "out", Sizing(8), shard=2, workers=2)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_during_an_evaluation_ends_the_command_with_one_line_and_code_2(monkeypatch, capsys):
    def train(argv):
        list(once(ends=5))

    monkeypatch.setitem(launch.VERBS, "train", train)
    assert launch.main(["train"]) == 2
    assert re.fullmatch("error: " + KILLED.strip("^$") + "\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-signal.SIGBUS, r"exit code -7, SIGBUS; shared memory \(/dev/shm\) is probably full"),
        (-signal.SIGSEGV, "exit code -11, SIGSEGV; a library"),
        (-signal.SIGUSR1, "exit code -10, SIGUSR1; it was not ended by this program"),
        (-63, "exit code -63, signal 63; it was not"),
        (3, "exit code 3; the output above"),
        (None, "out of memory"),
    ],
)
def test_the_message_names_the_exit_code_and_the_likely_cause(code, message):
    with pytest.raises(DataError, match=message):
        raise workers.death(code)


def test_a_worker_ends_when_its_parent_is_gone(monkeypatch):
    left = []
    monkeypatch.setattr(workers.os, "_exit", left.append)
    workers._end_with(parent=-1)
    assert left == [1]
