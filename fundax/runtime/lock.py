"""Locks a run directory: a second process that would write to it ends with an error, and the first is not disturbed.

The file `.lock` names the owner, who holds it by flock and writes to it every few seconds. On one machine flock decides: the
system releases it when a process ends in any way, so that a killed run resumes at once. From another machine flock proves
nothing, because some file systems keep it on each machine (Lustre with localflock, mounted buckets), some keep that of a
machine that is gone (NFS 3), and object stores have none. There the owner is watched: one that writes nothing for LOST_S
has died, and the run is taken over. An owner that was only suspended notices this when it continues, and ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fundax.runtime import remote
from fundax.runtime.process import exit_at_once
from fundax.types import UserError

NAME = ".lock"
BEAT_S = 5.0  # how often the owner writes
LOST_S = 60.0  # how long an owner on another machine may write nothing
_JOBS = ("SLURM_JOB_ID", "JOB_COMPLETION_INDEX", "PBS_JOBID", "LSB_JOBID")  # a scheduler's name of this job
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
_log = logging.getLogger("fundax")


@contextmanager
def owned(workdir: str | Path, take_over: bool = False) -> Iterator[None]:
    """Context that owns a run directory. The folder must exist.

    `take_over`: do not watch an owner on another machine, which is known to be dead.

    A run on remote storage cannot be locked: there the training that started last owns it, and an earlier one ends with
    a UserError at its next save (runtime.remote.push).

    Raises UserError naming host, process and job of the owner if another process owns the directory. If another process
    takes the directory over, this process ends with one line and code 1.
    """
    if remote.is_mirror(workdir):
        remote.claim(workdir)
        yield
        return
    path, token, over = Path(workdir) / NAME, uuid.uuid4().hex, threading.Event()
    file = _locked(path, take_over)
    beats = threading.Thread(target=_beat, args=(path, file, token, over), name="lock", daemon=True)
    try:
        _write(file, token, 0)
        beats.start()
        yield
    finally:
        over.set()
        if beats.ident:
            beats.join()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)  # while it is locked: whoever opened it meanwhile finds that it is gone
        file.close()


def _locked(path: Path, take_over: bool) -> TextIO:
    """The lock file, opened and, where the file system has locks, locked."""
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written to ({error.strerror})") from None
        try:
            locked = _lock(file, path)
            owner = _read(path)
            if owner and not (locked and owner.get("host") == platform.node()):
                if take_over:
                    _log.warning("%s: taken over from %s, as --take-over says", path.parent, _named(owner))
                else:
                    _watch(path, owner, locked)
                if locked is False:
                    path.unlink(missing_ok=True)  # its lock is held for a machine that is gone: leave that one behind
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another file has the name now


def _lock(file: TextIO, path: Path) -> bool | None:
    """Whether flock gave the file to this process; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        owner = _read(path)
        if owner.get("host", platform.node()) == platform.node():
            raise _taken(path, owner) from None
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
        return None


def _watch(path: Path, owner: Mapping[str, Any], locked: bool | None) -> None:
    """Return when the owner has written nothing for LOST_S. Raises UserError if it writes."""
    if locked is None and owner.get("host") == platform.node() and not _alive(owner.get("pid")):
        return
    _log.info("%s: waiting %.0f s for a sign of %s", path.parent, LOST_S, _named(owner))
    deadline = time.monotonic() + LOST_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, LOST_S) / 5)
        now = _read(path)
        if not now and not path.exists():
            return
        if now and now != owner:
            raise _taken(path, now)
    _log.warning("%s: taken over from %s, which wrote nothing for %.0f s", path.parent, _named(owner), LOST_S)


def _beat(path: Path, file: TextIO, token: str, over: threading.Event) -> None:
    """Write a heartbeat every BEAT_S seconds; end the process if the directory has another owner."""
    count = 0
    while not over.wait(BEAT_S):
        owner = _read(path)
        if owner.get("token", token) != token:
            print(f"error: {path.parent}: taken over by {_named(owner)}, so this process ends", file=sys.stderr)
            exit_at_once(1)
        count += 1
        with contextlib.suppress(OSError):  # a full disk: the next sign may find room
            _write(file, token, count)


def _write(file: TextIO, token: str, beat: int) -> None:
    owner = {"host": platform.node(), "pid": os.getpid(), "job": _job(), "token": token, "beat": beat}
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps(owner))
    file.flush()


def _read(path: Path) -> dict[str, Any]:
    """Read the owner's record; {} if it does not exist or is being written."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _taken(path: Path, owner: Mapping[str, Any]) -> UserError:
    return UserError(
        f"{path.parent}: another training or evaluation is writing to this folder ({_named(owner)}); stop it there, and rerun "
        "the command. An owner that has died is replaced at once, or after a minute on another machine (--take-over: at once)"
    )


def _named(owner: Mapping[str, Any]) -> str:
    job = f", {owner['job']}" if owner.get("job") else ""
    return f"process {owner['pid']} on {owner['host']}{job}" if {"pid", "host"} <= owner.keys() else "owner unknown"


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def _job() -> str:
    return next((f"{name}={os.environ[name]}" for name in _JOBS if os.environ.get(name)), "")
