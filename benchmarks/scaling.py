"""Measure weak scaling (constant images per device) on virtual CPU devices, or compiled for TPU slices.

    python benchmarks/scaling.py                       # the real train step on 1, 2, 4, 8 virtual devices of this machine
    python benchmarks/scaling.py --compile v5e:2x4 v5e:4x4 v5e:8x8 v5e:16x16 --size B/16 --batch 128    # 8 to 256 chips

Virtual devices share the cores: with perfect scaling, a step on n devices takes n times as long, so the efficiency shows
the overhead of sharding but not of links. Programs for slices are compiled but not run (extra `tpu`); their efficiency is
that of the roofline without overlap. The compilation for a slice takes minutes.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=1800"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import tyro
from record import Table, record

from fundax.config import load
from fundax.recipe import Recipe
from fundax.roofline import compile as aot
from fundax.runtime import mesh as meshes
from fundax.train import loop
from fundax.train.state import fresh

CONFIG = Path(__file__).parent.parent / "configs" / "mm_fundus_clip.py"


def recipe_of(size: str, batch: int, mesh: tuple[int, ...]) -> Recipe:
    """MM-Fundus-CLIP of a size, or the smoke model if `size` is empty, with a global batch."""
    argv = ["--size", size] if size else ["--smoke"]
    return replace(load(CONFIG, [*argv, "--batch", str(batch)])[0], batch=batch, mesh=mesh)


def seconds_of_a_step(recipe: Recipe, steps: int) -> float:
    """Median seconds over `steps` steps, after a step for compilation."""
    mesh = meshes.make_mesh(recipe.mesh)
    rng = np.random.default_rng(0)
    batch = {
        k: rng.integers(0, 200, s.shape).astype(s.dtype) for k, s in recipe.objective.batch_spec(recipe.batch).items()
    }
    with jax.set_mesh(mesh):
        state, _ = fresh(recipe, mesh)
        step, data, times = loop.train_step(recipe), meshes.shard_batch(batch, mesh), []
        for _ in range(steps + 1):
            start = time.perf_counter()
            state, metrics = step(state, data)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def run_here(size: str, batch: int, steps: int) -> Table:
    """Measure 1, 2, 4 and 8 devices of this machine."""
    counts = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
    seconds = {n: seconds_of_a_step(recipe_of(size, n * batch, (n, 1)), steps) for n in counts}
    rows = [
        [str(n), str(n * batch), f"{s:.3f}", f"{n * batch / s:,.1f}", f"{n * seconds[1] / s:.2f}"]
        for n, s in seconds.items()
    ]
    title = f"{size or 'the smoke model'}, {batch} images per virtual device, medians of {steps} steps"
    return Table(title, ("devices", "batch", "step, s", "images/s", "efficiency"), rows)


def compile_slices(topologies: tuple[str, ...], size: str, batch: int) -> Table:
    """Compile for every slice. A slice that is too small is shown as "does not fit"."""
    rows, first = [], 0.0
    for topology in topologies:
        mesh, _ = aot.target(recipe_of(size, batch, (-1, 1)), topology)
        report = aot.compile_step(recipe_of(size, batch * mesh.size, (-1, 1)), topology)
        seconds = report.roofline()
        if not seconds:
            rows.append([topology, str(mesh.size), str(batch * mesh.size), "does not fit", "", "", "", ""])
            continue
        step = sum(seconds.values())
        each = report.images / step / report.devices
        first = first or each
        parts = [f"{1000 * s:.1f}" for s in seconds.values()]
        rows.append([topology, str(mesh.size), str(report.batch), *parts, f"{each:,.0f}", f"{each / first:.2f}"])
    columns = ("slice", "chips", "batch", "compute, ms", "memory, ms", "links, ms", "images/s/chip", "efficiency")
    return Table(f"{size}, {batch} images per chip, compiled, not run", columns, rows)


def main(compile: tuple[str, ...] = (), size: str = "", batch: int = 4, steps: int = 5, keep: bool = True) -> None:
    """Measure weak scaling with `batch` images per device. --no-keep does not write benchmarks/results."""
    table = compile_slices(compile, size or "B/16", batch) if compile else run_here(size, batch, steps)
    record("scaling_slices" if compile else "scaling", [table], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
