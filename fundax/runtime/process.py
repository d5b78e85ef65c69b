"""Process-wide settings, each with its reason. Importing this module changes nothing; callers apply the settings.

The memory allocator of worker processes is set in data_pipelines/pipeline/workers.py, which does not import this half."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

MIN_REPLICA_SLICE = 2**24  # bytes


@functools.cache
def configure_orbax() -> None:
    """Configure Orbax: its log level, and how replicated arrays are written."""
    import jax
    import orbax.checkpoint as ocp

    # At its default level Orbax logs every file that it looks for, and above it each error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # By default every replica writes a slice of every array, which compiles one program per array: the first save of a
    # small model took longer than all later ones together. Slices of at least 16 MiB are an exception.
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_REPLICA_SLICE)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


@functools.cache
def ignore_abandoned_reads() -> None:
    """Hide the errors of Orbax's unfinished reads after one of them failed. Call it before reading a checkpoint.

    When a read fails, Orbax closes the event loop without waiting for the others. When their coroutines end or are
    collected, Python prints "Event loop is closed" or an error from inside them, at any later time. All other
    unraisable errors are reported as before.
    """
    import orbax.checkpoint as ocp

    before, orbax = sys.unraisablehook, Path(ocp.__file__).parent

    def hook(report: sys.UnraisableHookArgs) -> None:
        closed = isinstance(report.exc_value, RuntimeError) and str(report.exc_value) == "Event loop is closed"
        code = report.object.cr_code if inspect.iscoroutine(report.object) else None
        if not closed and not (code and Path(code.co_filename).is_relative_to(orbax)):
            before(report)

    sys.unraisablehook = hook


def exit_at_once(code: int) -> NoReturn:
    """End the process without cleaning up, from any thread.

    sys.exit only ends the thread that calls it, and at exit JAX and Orbax wait for the other processes, which may be gone
    or may be waiting for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
