"""Stop at Ctrl-C or SIGTERM after the current step, so that a checkpoint can be saved.

With several processes SIGTERM is handled by JAX's preemption service, which Orbax queries with reached_preemption: if one
process receives the signal, all stop at the same step without communicating at every step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # exit 0: preemption by the scheduler is not a failure


class Preemption:
    """A context in which SIGINT and SIGTERM set `signal`; a second Ctrl-C stops immediately.

    preempted(step): whether the processes have agreed to stop at this step; called at every step.

    Only the main thread can handle signals; in another thread the context has no effect.
    """

    def __init__(self, preempted: Callable[[int], bool] = lambda step: False) -> None:
        self.signal: signal.Signals | None = None
        self._preempted = preempted
        self._catches = (signal.SIGINT,) if jax.distributed.is_initialized() else tuple(EXIT_CODES)
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._catch) for s in self._catches}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, step: int, every: int) -> bool:
        """Whether any process should stop. With several processes, Ctrl-C is communicated every `every` steps."""
        if self._preempted(step):
            self.signal = signal.SIGTERM
        if jax.process_count() == 1 or self.signal == signal.SIGTERM:
            return self.signal is not None
        if step % max(every, 1):
            return False
        from jax.experimental import multihost_utils

        asked = multihost_utils.process_allgather(np.int32(self.signal or 0))
        if self.signal is None and np.any(asked):
            self.signal = signal.Signals(int(np.max(asked)))
        return bool(np.any(asked))

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signal] if self.signal else 0

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
