"""Measure memory and time of a contrastive loss with its gradient, dense and as a ring.

    python benchmarks/loss_memory.py                                   # memory at 4k to 64k; compiled, not run
    python benchmarks/loss_memory.py --time --batches 2048 8192 32768  # and time

Uses eight virtual CPU devices, or the accelerators of this machine. Memory is XLA's count of temporaries per device. Times
are medians of alternated runs: wall time, and processor time over all threads, which depends less on the load of the
machine.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# with eight devices on a few cores, collectives take long at large batches
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=1800"

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from record import Table, record

from fundax.losses import contrastive, ring
from fundax.runtime.mesh import batch_sharding, make_mesh

LOSSES = {
    "softmax": (contrastive.softmax_contrastive, ring.softmax, 1),
    "sigmoid": (contrastive.sigmoid_contrastive, ring.sigmoid, 2),
}


def compiled(loss, numbers: int, batch: int, width: int, mesh: Mesh):
    """Compile the value and gradient of a loss for features with rows sharded over the devices."""
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=batch_sharding(mesh))
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * numbers
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(rows, rows, *scalars).compile()


def memory_table(chosen: dict, batches: tuple[int, ...], width: int, mesh: Mesh) -> Table:
    """Temporary memory in MiB per device, and the ratio of the dense loss to the ring."""
    rows = []
    for name, (plain, ringed, numbers) in chosen.items():
        for batch in batches:
            analyses: list[Any] = [compiled(f, numbers, batch, width, mesh).memory_analysis() for f in (plain, ringed)]
            sizes = [analysis.temp_size_in_bytes / 2**20 for analysis in analyses]
            rows.append([name, f"{batch:,}", *(f"{s:,.0f}" for s in sizes), f"{sizes[0] / sizes[1]:.1f}"])
    title = f"Temporary memory, width {width}, {mesh.size} devices"
    return Table(title, ("loss", "batch", "plain, MiB/device", "ring, MiB/device", "plain / ring"), rows)


def features(batch: int, width: int, mesh: Mesh) -> tuple:
    """Correlated image and text features with unit rows, sharded over the devices."""
    keys = jax.random.split(jax.random.key(0))
    image = jax.random.normal(keys[0], (batch, width))
    text = image + 2 * jax.random.normal(keys[1], (batch, width))
    rows = batch_sharding(mesh)
    return tuple(jax.device_put(x / jnp.linalg.norm(x, axis=-1, keepdims=True), rows) for x in (image, text))


def seconds(steps: list, arguments: tuple, repeats: int) -> list[np.ndarray]:
    """Median (wall, processor) seconds of alternated runs, after one warm-up run of each."""
    times: list[list[tuple[float, float]]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, its in zip(steps, times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(step(*arguments))
            its.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [np.median(its[1:], axis=0) for its in times]


def time_table(chosen: dict, batches: tuple[int, ...], width: int, repeats: int, mesh: Mesh) -> Table:
    """Time of loss and gradients; ratios are the ring over the dense loss."""
    rows = []
    for batch in batches:
        pair = features(batch, width, mesh)
        for name, (plain, ringed, numbers) in chosen.items():
            arguments = (*pair, *(jnp.float32(x) for x in (20.0, -10.0)[:numbers]))
            steps = [compiled(f, numbers, batch, width, mesh) for f in (plain, ringed)]
            first, second = seconds(steps, arguments, repeats)
            cells = [f"{b / a:.2f} = {b:.2f} s / {a:.2f} s" for a, b in zip(first, second, strict=True)]
            rows.append([name, f"{batch:,}", *cells])
    title = f"Time of loss and gradients, width {width}, {mesh.size} devices, medians of {repeats}: ring / plain"
    return Table(title, ("loss", "batch", "wall", "processor"), rows)


def main(
    batches: tuple[int, ...] = (4096, 16384, 65536),
    width: int = 512,
    repeats: int = 3,
    time: bool = False,
    only: str = "",
    keep: bool = True,
) -> None:
    """Measure memory, or time with --time, at `batches`. --only selects a loss. --no-keep does not write results."""
    chosen = {name: row for name, row in LOSSES.items() if only in ("", name)}
    mesh = make_mesh((-1, 1))
    table = time_table(chosen, batches, width, repeats, mesh) if time else memory_table(chosen, batches, width, mesh)
    record("loss_time" if time else "loss_memory", [table], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
