"""Stop at Ctrl-C or SIGTERM, in whatever the run is doing, so that a checkpoint can be saved.

A single process hears a signal at once: between steps, while it waits for data, and in anything called by `during`. With
several processes SIGTERM is handled by JAX's preemption service, which Orbax queries with reached_preemption: if one process
receives the signal, all stop at the same step or batch of an evaluation without communicating at every one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # exit 0: preemption by the scheduler is not a failure
HELPER = "interruptible"  # name of the threads of `during`
_LINES = {
    signal.SIGINT: "Stopping after this step. Ctrl-C again stops without saving.",
    signal.SIGTERM: "SIGTERM: stopping after this step.",
}
_T = TypeVar("_T")


class Interrupted(BaseException):
    """A signal arrived during work that need not be finished. Not an Exception, so that no other handler catches it."""


class Preemption:
    """A context in which SIGINT and SIGTERM set `signal` and print a line; a second Ctrl-C stops immediately.

    preempted(count): whether the processes have agreed to stop at this call, which is number `count` in all of them.

    Only the main thread can handle signals; in another thread the context has no effect.
    """

    def __init__(self, preempted: Callable[[int], bool] = lambda count: False) -> None:
        self.signal: signal.Signals | None = None
        self._preempted = preempted
        self._count = 0
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
        self._hear()
        if jax.process_count() == 1 or self.signal == signal.SIGTERM:
            return self.signal is not None
        if step % max(every, 1):
            return False
        from jax.experimental import multihost_utils

        asked = multihost_utils.process_allgather(np.int32(self.signal or 0))
        if self.signal is None and np.any(asked):
            self.signal = signal.Signals(int(np.max(asked)))
        return bool(np.any(asked))

    def listen(self) -> None:
        """Raise Interrupted if all processes should stop. All of them call it equally often."""
        self._hear()
        if self.signal == signal.SIGTERM or (self.signal is not None and jax.process_count() == 1):
            raise Interrupted

    def listen_alone(self) -> None:
        """Raise Interrupted after a signal, with a single process only: several processes cannot agree on a time here."""
        if self.signal is not None and jax.process_count() == 1:
            raise Interrupted

    def during(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Return call(*arguments). A signal raises Interrupted at once, and the call is left unfinished in its thread.

        With several processes, which must stop together, it is called here and always finished.
        """
        if jax.process_count() > 1 or not self._before:
            return call(*arguments)
        outcome: list[Any] = []
        settings = _settings()

        def inside() -> None:
            try:
                with _applied(settings):
                    outcome.extend((call(*arguments), None))
            except BaseException as error:  # raised again below
                outcome.extend((None, error))

        thread = threading.Thread(target=inside, name=HELPER, daemon=True)
        thread.start()
        while thread.is_alive():
            self.listen_alone()
            thread.join(0.02)
        result, error = outcome
        if error is not None:
            raise error
        return result

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signal] if self.signal else 0

    def _hear(self) -> None:
        self._count += 1
        if self._preempted(self._count):
            self.signal = signal.SIGTERM

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            print(_LINES[signal.Signals(number)], file=sys.stderr, flush=True)
        self.signal = signal.Signals(number)


# JAX's settings that a `with` makes for one thread, and the contexts that make them for another.
_SETTINGS: dict[str, Callable[[Any], contextlib.AbstractContextManager[Any]]] = {
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_debug_nans": jax.debug_nans,
}


def _settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in _SETTINGS} | {"mesh": jax.sharding.get_mesh()}


@contextlib.contextmanager
def _applied(settings: dict[str, Any]) -> Iterator[None]:
    """The settings of another thread in this one."""
    with contextlib.ExitStack() as stack:
        if not settings["mesh"].empty:
            stack.enter_context(jax.set_mesh(settings["mesh"]))
        for name, change in _SETTINGS.items():
            if getattr(jax.config, name) != settings[name]:
                stack.enter_context(change(settings[name]))
        yield


def abandoned() -> bool:
    """Whether something that a signal left unfinished still runs, so that the process should end without waiting."""
    return any(thread.name in (HELPER, "prefetch") for thread in threading.enumerate())
