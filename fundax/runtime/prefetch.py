"""Prefetch: a background thread loads the next batches onto the devices while the current step runs."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fundax.runtime import mesh as meshes
from fundax.types import Batch, Data, DataIterator, UserError

POLL_S = 0.002  # while waiting: how often to look whether the device is still busy
IN_FLIGHT = 2  # steps handed to the device before the host waits for it; each holds a batch


class Prefetcher:
    """The batches of steps first + 1 to `last`, placed on the mesh.

    Use it as a context manager: exiting the context stops the thread and the workers.

    Args:
        data: the training data of a recipe.
        spec: shapes and dtypes of this process's batch, `objective.spec(batch // processes)`.
        mesh: the devices.
        position: data position to start from, as `state` gave it; None starts at the beginning.
        first, last: the last step already taken, and the last step to prepare a batch for.
        bad_records: file for the unreadable images that are skipped, if the data does not have one of its own.

    `state` is the data position after the last batch taken, however many batches have been read ahead. An error in
    the data is raised by the `take` that would have returned the batch, so it does not depend on the thread's progress.
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
    ) -> None:
        self._spec, self._mesh, self._steps = spec, mesh, range(first + 1, last + 1)
        self._data: Any = data(jax.process_index(), jax.process_count())
        if getattr(self._data, "bad_records", bad_records) is None:
            self._data.bad_records = bad_records
        if position is not None:
            self._data.set_state(dict(position))
        self.state: dict[str, Any] = dict(self._data.get_state())
        self._waited = 0.0
        self._running: deque[jax.Array] = deque()
        self._placed: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        close = getattr(self._data, "close", None)  # worker processes, where it has some
        if close:
            close()

    def take(self, running: Any) -> dict[str, jax.Array]:
        """The next batch, arrays [B ...] split over "data"; `running`: any output of the step before, or None.

        Raises what reading it raised, and UserError for a batch that is not what the objective takes.
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
        """Seconds so far in which the devices had nothing to do because no batch was there."""
        return self._waited

    def counts(self) -> dict[str, int]:
        """`skipped`: unreadable images this process has left out so far, where there are any."""
        skipped = getattr(self._data, "skipped", 0)
        return {"skipped": skipped} if skipped else {}

    def _next(self, running: Any) -> Any:
        idle_since: float | None = None
        while True:
            try:
                item = self._placed.get(timeout=POLL_S)
            except queue.Empty:
                if idle_since is None and (running is None or running.is_ready()):
                    idle_since = time.monotonic()
                continue
            self._waited += time.monotonic() - idle_since if idle_since else 0.0
            return item

    def _read(self) -> None:
        try:
            for step in self._steps:
                batch = check(self._data, self._spec, step)
                if not self._put((meshes.place(batch, self._mesh), self._data.get_state())):
                    return
        except BaseException as problem:  # whatever it is, the training thread is to raise it
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
    """The next batch of this process, with the keys the loss reads and in the shapes it was promised."""
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
    return {key: batch[key] for key in wanted}
