"""Run programs by turns, each in a process of its own, so that they share neither threads nor memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

Step = Callable[[], object]  # returns when its work is done
Start = Callable[[], Step]  # prepares a program; must be picklable


def alternate(programs: Mapping[str, Start], rounds: int) -> dict[str, np.ndarray]:
    """(wall, processor) seconds [rounds 2] of a step of each program, after two warm-up rounds.

    Raises RuntimeError if a program fails, with its error.
    """
    context, workers = get_context("spawn"), {}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share an accelerator
    try:
        for name, start in programs.items():
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(start, theirs), daemon=True)
            worker.start()
            workers[name] = (worker, ours)
            _answer(name, ours)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for i in range(rounds + 2):
            for name, (_, pipe) in workers.items():
                pipe.send(True)
                answer = _answer(name, pipe)
                if i >= 2:
                    times[name].append(answer)
    finally:
        for worker, _ in workers.values():
            worker.kill()
    return {name: np.array(rows) for name, rows in times.items()}


def _answer(name: str, pipe: Connection) -> tuple[float, float]:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"{name}: the process ended") from None
    if isinstance(answer, str):
        raise RuntimeError(f"{name}: {answer}")
    return answer


def _serve(start: Start, pipe: Connection) -> None:
    try:
        step = start()
        pipe.send((0.0, 0.0))
        while pipe.recv():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
