"""Prefetch: a background thread loads the next batches onto the devices while the current step runs."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fundax.runtime import mesh as meshes
from fundax.types import Batch, Data, DataIterator, UserError

_log = logging.getLogger("fundax")

POLL_S = 0.002  # how often to check whether the device is still busy while waiting for a batch
STUCK_S = 5.0  # how long leaving waits for a read that may hang, such as one from a lost file server
IN_FLIGHT = 2  # steps dispatched to the device before the host waits; each holds a batch in memory


class Prefetcher:
    """The batches of steps first + 1 to `last`, placed on the mesh.

    Use it as a context manager: exiting the context stops the thread and the workers. A read that hangs is left behind.

    Args:
        data: the training data of a recipe.
        spec: shapes and dtypes of this process's batch, `objective.batch_spec(batch // processes)`.
        mesh: the devices.
        position: data position to start from, a former `state`; None: the beginning.
        first, last: the last step already taken, and the last step to prepare a batch for.
        bad_records: file for the unreadable images that are skipped, if the data does not have one of its own.
        listen: called again and again while `take` waits; what it raises, `take` raises.

    `state` is the data position after the last batch taken, no matter how many batches have been read ahead. An error in
    the data is raised by the `take` that would have returned that batch, so it does not depend on timing.

    Keys of the data that are not in `spec` are not passed to the loss; one log line names them.
    """

    def __init__(
        self,
        data: Data,
        spec: Mapping[str, jax.ShapeDtypeStruct],
        mesh: Mesh,
        position: Mapping[str, Any] | None,
        first: int,
        last: int,
        bad_records: Path | None = None,
        listen: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec, self._mesh, self._steps = spec, mesh, range(first + 1, last + 1)
        self._data: Any = data(jax.process_index(), jax.process_count())
        if getattr(self._data, "bad_records", bad_records) is None:
            self._data.bad_records = bad_records
        if position is not None:
            self._data.set_state(dict(position))
        self.state: dict[str, Any] = dict(self._data.get_state())
        self._waited, self._listen = 0.0, listen
        self._running: deque[jax.Array] = deque()
        self._placed: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(STUCK_S)
        if self._thread.is_alive():
            _log.warning("a read of the data hangs and is left behind")
            return
        close = getattr(self._data, "close", None)  # ends the worker processes, if there are any
        if close:
            close()

    def take(self, running: Any) -> dict[str, jax.Array]:
        """The next batch, arrays [B ...] on the mesh. `running`: any output of the previous step, or None.

        Raises the error of reading it, and UserError for a batch that does not match `spec`.
        """
        if running is not None:
            self._running.append(running)
        if len(self._running) > IN_FLIGHT:
            jax.block_until_ready(self._running.popleft())
        item = self._next(running)
        if isinstance(item, BaseException):
            raise item
        batch, self.state = item
        return batch

    def waited(self) -> float:
        """Total seconds in which the devices were idle because no batch was ready."""
        return self._waited

    def counts(self) -> dict[str, int]:
        """`skipped`: number of unreadable images that this process has skipped, if any."""
        skipped = getattr(self._data, "skipped", 0)
        return {"skipped": skipped} if skipped else {}

    def _next(self, running: Any) -> Any:
        idle_since: float | None = None
        while True:
            try:
                item = self._placed.get(timeout=POLL_S)
            except queue.Empty:
                self._listen()
                if idle_since is None and (running is None or running.is_ready()):
                    idle_since = time.monotonic()
                continue
            self._waited += time.monotonic() - idle_since if idle_since else 0.0
            return item

    def _read(self) -> None:
        try:
            for step in self._steps:
                batch = check(self._data, self._spec, step)
                if step == self._steps[0] and (unused := sorted(batch.keys() - self._spec.keys() - {"index"})):
                    _log.info("keys of the data that the objective does not use: %s", ", ".join(unused))
                batch = {key: batch[key] for key in self._spec}
                if not self._put((meshes.shard_batch(batch, self._mesh), self._data.get_state())):
                    return
        except BaseException as problem:  # raised again by `take`, in the training thread
            self._put(problem)

    def _put(self, item: Any) -> bool:
        while not self._over.is_set():
            try:
                self._placed.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def check(data: DataIterator, wanted: Mapping[str, jax.ShapeDtypeStruct], step: int) -> Batch:
    """The next batch of this process. Raises UserError if a key, a shape or a dtype of `wanted` differs."""
    try:
        batch = next(data)
    except StopIteration:
        raise UserError(f"the training data ended before step {step}; `train` must be an infinite iterator") from None
    for key, spec in wanted.items():
        if key not in batch:
            raise UserError(f"the batch has no {key!r}; the objective needs {sorted(wanted)}, it has {sorted(batch)}")
        shape, dtype = np.shape(batch[key]), np.asarray(batch[key]).dtype
        if shape != spec.shape or dtype != spec.dtype:
            raise UserError(f"the batch's {key!r} is {dtype} {shape}; the objective expects {spec.dtype} {spec.shape}")
    return batch
