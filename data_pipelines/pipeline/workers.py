"""Options of the loader, protection of worker processes from SIGINT and SIGTERM, and the error for a worker that died.

Ctrl-C and a scheduler's SIGTERM go to all processes of a terminal or a job step at once. The parent handles them: it
finishes its step and saves. Its workers must continue reading until it ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TypeVar

from data_pipelines.records import DataError

_T = TypeVar("_T")

_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)
_FREES_SILENTLY = "ignore:resource_tracker:UserWarning"
_CAUSES: dict[int, str] = {
    signal.SIGKILL: "the system has probably run out of memory; use fewer workers or a smaller batch",
    signal.SIGBUS: "shared memory (/dev/shm) is probably full; enlarge it, or use fewer workers or a smaller batch",
    signal.SIGSEGV: "a library that it uses, such as an image decoder, has crashed",
}


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Options for reading examples. Only `on_bad_image="skip"` can change the batches; the other options affect the speed."""

    workers: int = 0  # worker processes; 0 decodes in threads of this process
    threads: int = 0  # threads per process; 0 means one per core without workers, else 1
    prefetch: int = 2  # finished batches to keep ready, in each worker
    on_bad_image: str = "error"  # or "skip"
    bad_records: Path | None = None  # JSON lines file that lists skipped images

    def __post_init__(self) -> None:
        if self.on_bad_image not in ("error", "skip"):
            raise DataError(f'on_bad_image is "error" or "skip", not {self.on_bad_image!r}')
        if self.bad_records is not None and self.on_bad_image != "skip":
            raise DataError('bad_records is written only with on_bad_image="skip"')
        if self.workers < 0 or self.threads < 0 or self.prefetch < 1:
            raise DataError("workers and threads are 0 or more, prefetch is 1 or more")


def protected(start: Callable[[], _T]) -> _T:
    """Call `start` in a thread that blocks SIGINT and SIGTERM; returns its result or raises its error.

    Processes and threads inherit the blocked signals of the thread that starts them, also over fork and exec. So
    processes that `start` starts, directly or by further threads, never see these signals, not even before their
    first instruction. With "forkserver", the server must be started here as well. The calling thread and the signal
    handlers of this process stay as they are: a signal that arrives meanwhile is handled at once.
    """
    result: Future[_T] = Future()

    def run() -> None:
        _start_resource_tracker()  # before Python 3.13, this unblocks the signals of its thread
        signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
        try:
            result.set_result(start())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="start-workers", daemon=True).start()
    return result.result()


def _start_resource_tracker() -> None:
    """Start Python's process that frees shared memory left behind by other processes, and silence its warning.

    A run that ends early always leaves some, and what the user reads last should be the reason why it ended.
    """
    sys.warnoptions.append(_FREES_SILENTLY)  # multiprocessing passes these to the interpreters that it starts
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(_FREES_SILENTLY)


def initialize(parent: int) -> None:
    """Prepare this worker process: it keeps freed memory, ignores SIGINT and SIGTERM, and ends when `parent` ends.

    `parent` is a process id. `protected` covers the time before this call.
    """
    with contextlib.suppress(OSError, AttributeError):  # glibc: keep freed megabytes, the next image needs them again
        glibc = ctypes.CDLL(None)
        _ = [glibc.mallopt(limit, 1 << 30) for limit in (-1, -3)]  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with contextlib.suppress(ValueError):  # not the main thread
        for number in _LEFT_TO_PARENT:  # ignored as well as blocked, because a library may unblock signals
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def death(code: int | None) -> DataError:
    """The error for a worker process that ended unexpectedly, with its exit code and the likely cause.

    `code` is negative for a signal, as in `multiprocessing`; None if it is not known.
    """
    if code is None:
        reason = _CAUSES[signal.SIGKILL]
    elif code >= 0:
        reason = f"exit code {code}; the output above may show why"
    else:
        name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
        reason = f"exit code {code}, {name}; {_CAUSES.get(-code, 'it was not ended by this program')}"
    return DataError(f"a worker process that reads data died ({reason})")
