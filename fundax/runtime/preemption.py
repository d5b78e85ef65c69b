"""Preemption: stop at Ctrl-C or SIGTERM at any time, so that a checkpoint can be saved.

A single process hears a signal at once: between steps, while it waits for data, and in anything called by `during`. With
several processes SIGTERM is handled by JAX's preemption service, which Orbax queries with reached_preemption: if one process
receives the signal, all stop at the same step or batch of an evaluation without communicating at every one. That service
cannot be asked while a process compiles for minutes; there the processes agree by the key-value store that joined them."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
_POLL_S = 0.2  # how often processes that wait for each other look
_LEAVE_S = 10  # how long a process that leaves something unfinished waits for the others to leave
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
        helper = _Helper(call, arguments)
        while helper.is_alive():
            self.listen_alone()
            helper.join(0.02)
        return helper.result()

    def together(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Return call(*arguments), as soon as it has returned in every process; `call` must not communicate.

        A signal to any process raises Interrupted in all of them at once. Raises JaxRuntimeError where `call` failed in
        another process. For a single process, see `during`.
        """
        if jax.process_count() == 1:
            return self.during(call, *arguments)
        with _sigterm(self._catch if self._before else None):
            self._hear()  # of a signal before, which JAX's service has agreed on
            helper = _Helper(call, arguments)
            verdict = _agree(helper, lambda: self.signal is not None)
        result = helper.result() if not helper.is_alive() else None
        if verdict == _FAILED:
            raise jax.errors.JaxRuntimeError("it failed in another task while all were compiling")
        if verdict == _STOP:
            _left_by_all.set()
            self.signal = self.signal or signal.SIGTERM
            raise Interrupted
        if self.signal == signal.SIGTERM:  # it came after the verdict: from here on JAX's service makes them agree
            self.signal = None
            os.kill(os.getpid(), signal.SIGTERM)
        return result  # pyright: ignore[reportReturnType]

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


class _Helper(threading.Thread):
    """A call that was started in a separate thread, with the JAX settings of this thread."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__(name=HELPER, daemon=True)
        self._call, self._arguments, self._settings = call, arguments, _settings()
        self._result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with _applied(self._settings):
                self._result = self._call(*self._arguments)
        except BaseException as error:  # raised again by `result`
            self.error = error

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self._result


_DONE, _STOP, _FAILED = "done", "stop", "failed"
_calls = itertools.count()  # every process makes the same calls of `together` in the same order
_left_by_all = threading.Event()


def _agree(helper: _Helper, asked: Callable[[], bool]) -> str:
    """ "done" when the call has returned in every process, "stop" when one was asked to stop, "failed".

    Process 0 decides and the others wait for its verdict, so that no two find different ones.
    """
    client, process, key, sent = _client(), jax.process_index(), f"fundax/together/{next(_calls)}", set()
    while True:
        helper.join(_POLL_S)
        ended = not helper.is_alive()
        state = {_DONE: ended, _STOP: asked(), _FAILED: ended and helper.error is not None}
        for word in [word for word, true in state.items() if true and word not in sent]:
            sent.add(word)
            client.key_value_set(f"{key}/{word}/{process}", "")
        found = [path.removeprefix(key).split("/")[1:] for path, _ in client.key_value_dir_get(key)]
        if process == 0 and (verdict := _verdict([word for word, _ in found], jax.process_count())):
            client.key_value_set(f"{key}/verdict/{verdict}", "")
            return verdict
        if verdict := next((word for kind, word in found if kind == "verdict"), ""):
            return verdict


def _verdict(words: Sequence[str], processes: int) -> str:
    return next((word for word in (_FAILED, _STOP) if word in words), _DONE if words.count(_DONE) == processes else "")


def _client() -> Any:
    """The key-value store of the processes, a private part of JAX."""
    from jax._src import distributed

    return distributed.global_state.client


@contextlib.contextmanager
def _sigterm(handler: Callable[[int, FrameType | None], None] | None) -> Iterator[None]:
    """A handler of SIGTERM in place of that of JAX's service. Python does not know that one, so libc puts it back."""
    if handler is None:
        yield
        return
    libc, before = ctypes.CDLL(None), ctypes.create_string_buffer(512)  # more than a struct sigaction
    libc.sigaction(int(signal.SIGTERM), None, before)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        libc.sigaction(int(signal.SIGTERM), before, None)


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
    """Whether a call that a signal interrupted is still running, so that the process should exit without waiting.

    If a signal ends several processes, this waits until all of them are about to exit: processes that outlive process 0
    would abort.
    """
    if _left_by_all.is_set():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().wait_at_barrier("fundax_leave", _LEAVE_S * 1000)
        time.sleep(0 if jax.process_index() else 1)
        return True
    return any(thread.name in (HELPER, "prefetch") for thread in threading.enumerate())
