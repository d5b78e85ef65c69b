"""Memory and time of a contrastive loss with its gradient: on global arrays, and as a ring.

    python benchmarks/loss_memory.py                     # memory at 4k to 64k, compiled and never run
    python benchmarks/loss_memory.py --time --batch 32768 --repeats 3

Eight virtual CPU devices (or the accelerators there are). Memory is XLA's own count of temporaries per device.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from datetime import date
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from fundax import losses, ring

LOSSES = {
    "softmax": (losses.softmax_contrastive, ring.softmax, 1),
    "sigmoid": (losses.sigmoid_contrastive, ring.sigmoid, 2),
}


def compiled(loss, numbers: int, batch: int, width: int, mesh):
    """The compiled value-and-gradient of a loss on features sharded over the data axis."""
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * numbers
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(rows, rows, *scalars).compile()


def memory_table(batches: tuple[int, ...], width: int, mesh) -> Table:
    """Temporaries in MiB per device; the ratio is the naive loss's over the ring's."""
    table = Table(
        "loss", "batch", "global arrays, MiB", "ring, MiB", "ratio", title=f"width {width}, {mesh.size} devices"
    )
    for name, (naive, ringed, numbers) in LOSSES.items():
        for batch in batches:
            analyses: list[Any] = [compiled(f, numbers, batch, width, mesh).memory_analysis() for f in (naive, ringed)]
            sizes = [analysis.temp_size_in_bytes / 2**20 for analysis in analyses]
            table.add_row(name, f"{batch:,}", f"{sizes[0]:,.0f}", f"{sizes[1]:,.0f}", f"{sizes[0] / sizes[1]:.1f}x")
    return table


def features(batch: int, width: int, mesh) -> tuple:
    """Image and text features that resemble each other, unit rows, sharded."""
    keys = jax.random.split(jax.random.key(0))
    image = jax.random.normal(keys[0], (batch, width))
    text = image + 2 * jax.random.normal(keys[1], (batch, width))
    on = NamedSharding(mesh, PartitionSpec("data"))
    return tuple(jax.device_put(x / jnp.linalg.norm(x, axis=-1, keepdims=True), on) for x in (image, text))


def time_table(batch: int, width: int, repeats: int, mesh) -> Table:
    """Medians of alternated runs; the ratio is the ring's time over the naive loss's."""
    table = Table(
        "loss", "batch", "global arrays, s", "ring, s", "ring / global", title=f"width {width}, {mesh.size} devices"
    )
    pair = features(batch, width, mesh)
    for name, (naive, ringed, numbers) in LOSSES.items():
        arguments = (*pair, *(jnp.float32(x) for x in (20.0, -10.0)[:numbers]))
        steps = [compiled(f, numbers, batch, width, mesh) for f in (naive, ringed)]
        seconds: list[list[float]] = [[], []]
        for _ in range(repeats + 1):
            for step, times in zip(steps, seconds, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(step(*arguments))
                times.append(time.perf_counter() - start)
        slow, fast = (statistics.median(times[1:]) for times in seconds)
        table.add_row(name, f"{batch:,}", f"{slow:.2f}", f"{fast:.2f}", f"{fast / slow:.2f}")
    return table


def main(batch: int = 32768, width: int = 512, repeats: int = 3, time: bool = False) -> None:
    """Print the table; `--time` runs the losses at `batch`, else their memory is compiled for 4k to 64k."""
    mesh = jax.make_mesh((len(jax.devices()), 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    console = Console()
    console.print(time_table(batch, width, repeats, mesh) if time else memory_table((4096, 16384, 65536), width, mesh))
    device = jax.devices()[0].device_kind
    console.print(
        f"{device}, {os.cpu_count()} cores, {platform.machine()}; jax {jax.__version__}; {date.today()}; {' '.join(sys.argv)}"
    )


if __name__ == "__main__":
    tyro.cli(main)
