"""Training speed: step time, TFLOP/s, MFU and memory in every row of the log, and traces for the profiler."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fundax.runtime import flops
from fundax.runtime.chips import GIB, chip_of
from fundax.types import Batch, Objective

WARM = 3  # steps before the profiler starts


class Speed:
    """The speed of a training step, counted from its program.

    Args:
        step: the jitted step. It is traced here, and not again when it is called.
        arguments: arguments of the step: the state and a batch, which may be abstract.
        objective: its loss, whose FLOPs without rematerialisation are those of the model.
        devices: the devices of the mesh.
        partly: only a part of the parameters trains, whose backward pass has fewer FLOPs than twice the forward pass.
    """

    def __init__(
        self,
        step: Any,
        arguments: tuple[Any, Batch],
        objective: Objective,
        devices: Sequence[Any],
        partly: bool = False,
    ) -> None:
        state, batch = arguments
        self._devices, self._chip = devices, chip_of(devices[0].device_kind)
        self._done = flops.program_flops(step.trace(state, batch).jaxpr)
        self._model = 0
        if self._chip is not None:  # another trace, which is not worth it where MFU cannot be known
            rng = jax.eval_shape(lambda: jax.random.key(0))
            self._model = flops.training_flops(objective.loss, state.params, state.extra, batch, rng, state.step)
            self._model = min(self._model, self._done) if partly else self._model

    def row(self, seconds: float) -> dict[str, float]:
        """Metrics of steps that take this many seconds each: step_seconds, tflops, mfu where the chip is known, memory_gib.

        tflops: TFLOP/s of each device, including rematerialisation. mfu: FLOP/s of the model over the chip's peak.
        memory_gib: the most that was in use so far: of a local device, or of this process where devices do not say.
        """
        count = len(self._devices)
        row = {"step_seconds": seconds, "tflops": self._done / seconds / count / 1e12, "memory_gib": memory_gib()}
        if self._chip is not None:
            row["mfu"] = self._model / seconds / count / self._chip.flops
        return row


def memory_gib() -> float:
    """The high-water mark of memory in GiB, see Speed.row."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return (max(used) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / GIB


class Profile:
    """A trace of `steps` steps in `<workdir>/profile`, for TensorBoard or Perfetto; nothing for 0 steps.

    It starts after the first WARM steps, or with the last steps of a shorter training. Process 0 decides nothing: every
    process traces its own devices.
    """

    def __init__(self, workdir: str | Path, steps: int, first: int, last: int) -> None:
        self._folder = Path(workdir) / "profile"
        start = max(first, min(first + WARM, last - steps))
        self._start, self._stop = (start, min(start + steps, last)) if steps else (-1, -1)

    def before(self, step: int) -> None:
        """Start the trace if this is its first step."""
        if step == self._start + 1:
            jax.profiler.start_trace(self._folder)

    def after(self, step: int, results: Mapping[str, Any]) -> bool:
        """End the trace if this was its last step, which is waited for; returns whether it ended."""
        if step != self._stop:
            return False
        jax.block_until_ready(dict(results))
        jax.profiler.stop_trace()
        return True
