"""One owner of a run directory: a second training of it ends with one line, and the first goes undisturbed."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fundax.runtime import remote
from fundax.types import UserError

NAME = ".lock"
_JOBS = ("SLURM_JOB_ID", "JOB_COMPLETION_INDEX", "PBS_JOBID", "LSB_JOBID")  # a scheduler's name of this job
_log = logging.getLogger("fundax")


@contextmanager
def owned(workdir: str | Path) -> Iterator[None]:
    """Own a run directory inside the context. The folder must exist.

    The operating system releases the lock of a process that ends in any way, so that a killed run can be resumed at once.

    A run on remote storage cannot be locked: there the training that started last owns it, and an earlier one ends with
    a UserError at its next save (runtime.remote.push).

    Raises UserError naming host, process and job of the owner if another process owns the directory.
    """
    if remote.is_mirror(workdir):
        remote.claim(workdir)
        yield
        return
    path = Path(workdir) / NAME
    file = _locked(path)
    try:
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "job": _job()}))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: whoever opened it meanwhile finds that it is gone
        file.close()


def _locked(path: Path) -> TextIO:
    """The lock file, opened and locked."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file, path)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except UserError:
            file.close()
            raise
        file.close()  # its owner has just removed it


def _lock(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path.parent}: another training is writing to this folder ({_owner(path)})") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
            raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
        _log.warning("%s: this file system has no locks, so a second training would not be noticed", path.parent)


def _job() -> str:
    return next((f"{name}={os.environ[name]}" for name in _JOBS if os.environ.get(name)), "")


def _owner(path: Path) -> str:
    """Host, process and job, as the owner wrote them; it may not have done so yet."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        job = f", {owner['job']}" if owner["job"] else ""
        return f"process {owner['pid']} on {owner['host']}{job}"
    except (OSError, ValueError, KeyError, TypeError):
        return "owner unknown"
