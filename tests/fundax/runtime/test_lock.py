"""One owner of a run directory."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from fundax.runtime import lock
from fundax.runtime.lock import owned
from fundax.types import UserError

OWNER = textwrap.dedent("""
    import sys, time
    from fundax.runtime import lock
    from fundax.runtime.lock import owned
    lock.BEAT_S = 0.2
    with owned(sys.argv[1]):
        print("owned", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def owner(tmp_path):
    environment = os.environ | {"SLURM_JOB_ID": "12", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == b"owned\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path, owner):
    with (
        pytest.raises(
            UserError, match=rf"another training or evaluation .*process {owner.pid} on \S+, SLURM_JOB_ID=12"
        ),
        owned(tmp_path),
    ):
        pass


def test_a_killed_owner_leaves_no_lock_behind(tmp_path, owner):
    owner.kill()
    owner.wait()
    with owned(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()  # nor does one that ended


def test_within_one_process_too(tmp_path):
    with owned(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), owned(tmp_path):
        pass


def elsewhere(path, beat=0):
    """The lock file as an owner on another machine writes it."""
    path.write_text(json.dumps({"host": "other", "pid": 7, "job": "SLURM_JOB_ID=12", "token": "t", "beat": beat}))


@pytest.mark.parametrize("held", [False, True], ids=["a lock that stays on each machine", "a lock of a lost machine"])
def test_an_owner_on_another_machine_is_watched_and_one_that_died_is_replaced(tmp_path, monkeypatch, caplog, held):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "LOST_S", 0.4)
    path = tmp_path / ".lock"
    elsewhere(path)
    with path.open() as theirs:
        if held:
            fcntl.flock(theirs, fcntl.LOCK_EX)
        beating = threading.Timer(0.1, elsewhere, (path, 1))
        beating.start()
        with pytest.raises(UserError, match=r"process 7 on other, SLURM_JOB_ID=12"), owned(tmp_path):
            pass
        beating.join()
        with owned(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
            assert "taken over from process 7 on other, SLURM_JOB_ID=12" in caplog.text
    assert not path.exists()


def test_an_owner_known_to_be_dead_is_not_watched(tmp_path, caplog):
    elsewhere(tmp_path / ".lock")
    with owned(tmp_path, take_over=True):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert "taken over from process 7 on other, SLURM_JOB_ID=12, as --take-over says" in caplog.text


def test_a_living_owner_on_this_machine_is_never_replaced(tmp_path, owner):
    with pytest.raises(UserError, match=f"process {owner.pid}"), owned(tmp_path, take_over=True):
        pass


def test_an_owner_that_lost_the_folder_ends_with_one_line(tmp_path, owner):
    (tmp_path / ".lock").unlink()
    elsewhere(tmp_path / ".lock")
    printed = owner.communicate(timeout=30)[1].decode()
    assert (
        owner.returncode == 1
        and printed == f"error: {tmp_path}: taken over by process 7 on other, SLURM_JOB_ID=12, so this process ends\n"
    )


def test_a_file_system_without_locks_still_has_one_owner(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with owned(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), owned(tmp_path):
        pass
