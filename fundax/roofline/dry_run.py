"""Run the training step of a recipe at full size on random arrays, to measure memory and speed without data."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import numpy as np

from fundax.recipe import Recipe
from fundax.runtime import mesh as meshes
from fundax.runtime.log import say
from fundax.runtime.preemption import Preemption
from fundax.runtime.process import configure_orbax
from fundax.runtime.speed import Profile
from fundax.train import loop
from fundax.train.state import fresh


def dry_run(recipe: Recipe, steps: int, folder: str = "") -> list[dict[str, float]]:
    """Run `steps` steps on one made-up batch and print each; returns the rows that training would log, without losses.

    Nothing is read or saved. A profile (Recipe.profile) is written to `folder`. Losses mean nothing. Raises UserError for
    a batch or mesh that does not divide.
    """
    configure_orbax()
    mesh = meshes.make_mesh(recipe.mesh)
    loop.check_batch(recipe, mesh)
    rows: list[dict[str, float]] = []
    with jax.set_mesh(mesh):
        start = time.monotonic()
        state, _ = fresh(recipe, mesh, pretrained=False)
        spec = recipe.objective.batch_spec(recipe.batch // jax.process_count())
        batch = meshes.shard_batch({key: made_up(one) for key, one in spec.items()}, mesh)
        step = loop.train_step(recipe)
        speed = Preemption().together(loop.compiled, recipe, mesh, step, state, batch)
        trace = Profile(folder, recipe.profile, 0, steps + 1)
        for number in range(1, steps + 2):
            trace.before(number)
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            trace.after(number, metrics)
            seconds, start = time.monotonic() - start, time.monotonic()
            if number == 1:  # it compiles
                say(f"ready after {seconds:.1f} s")
                continue
            row = {"images_per_second": recipe.batch / seconds, **speed.row(seconds), "data_wait": 0.0}
            say(f"step {number - 1}/{steps}  {describe(row)}")
            rows.append(row)
    return rows


def made_up(spec: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of this shape: random pixels and numbers, and ones, which every vocabulary and list of classes has."""
    rng = np.random.default_rng(0)
    if spec.dtype == np.uint8:
        return rng.integers(0, 256, spec.shape, np.uint8)
    if np.issubdtype(spec.dtype, np.floating):
        return rng.random(spec.shape, np.float32).astype(spec.dtype)
    return np.ones(spec.shape, spec.dtype)


def describe(row: Mapping[str, float]) -> str:
    """A row of the log as text."""
    mfu = f"  MFU {row['mfu']:.0%}" if "mfu" in row else ""
    return (
        f"{1000 * row['step_seconds']:,.0f} ms  {row['images_per_second']:,.0f} images/s  {row['tflops']:.3g} TFLOP/s per "
        f"device{mfu}  memory {row['memory_gib']:.2f} GiB"
    )
