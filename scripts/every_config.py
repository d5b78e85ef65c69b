"""Test that training on a mesh and in micro-batches is equal to training on one device, for every config.

    python scripts/every_config.py [--configs configs/flair.py ...] [--mesh 2,2,2] [--accumulate 2] [--steps 3]

Trains the smoke run of each config on 8 virtual CPU devices from the same parameters and batches: on one device, on the
mesh, in micro-batches, and in micro-batches on the mesh. Random numbers of the step (dropout, noise) are constants in the
comparison with micro-batches, which draw others. Prints the largest relative differences of a loss and of a gradient norm.
Exits with status 1 if a difference is above 1e-5 and REASONS gives no reason for the config.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)] if str(REPO) not in sys.path else []
TOLERANCE = 1e-5
# Reasons why a step in micro-batches differs from a step of the whole batch. One device and the mesh are then compared.
STATISTICS = "batch statistics are those of each micro-batch"
REASONS = {"flair": STATISTICS, "keepfit": STATISTICS}
UNTRAINED = "trains nothing by steps"


def losses(recipe: Any, batches: Sequence[Any]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of a step for each of the batches, from fresh parameters."""
    import jax

    from fundax.runtime import mesh as meshes
    from fundax.train import loop
    from fundax.train.state import fresh

    mesh = meshes.make_mesh(recipe.mesh)
    loop.check_batch(recipe, mesh)
    with jax.set_mesh(mesh):
        state, _ = fresh(recipe, mesh)
        step = loop.train_step(recipe)
        found = []
        with no_random_numbers():
            for batch in batches:
                state, metrics = step(state, meshes.shard_batch(batch, mesh))
                found.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return found


@contextlib.contextmanager
def no_random_numbers() -> Iterator[None]:
    """Inside, jax.random draws constants, which are the same for every division of a batch."""
    import jax
    import jax.numpy as jnp

    def bernoulli(key: Any, p: Any = 0.5, shape: Any = None, **_: Any) -> Any:
        return jnp.broadcast_to(jnp.asarray(p) >= 0.5, jnp.shape(p) if shape is None else shape)

    def normal(key: Any, shape: Any = (), dtype: Any = jnp.float32, **_: Any) -> Any:
        return jnp.full(shape, 0.5, dtype)

    def uniform(
        key: Any, shape: Any = (), dtype: Any = jnp.float32, minval: Any = 0.0, maxval: Any = 1.0, **_: Any
    ) -> Any:
        return jnp.broadcast_to(((minval + maxval) / 2), shape).astype(dtype)

    def randint(key: Any, shape: Any, minval: Any, maxval: Any, dtype: Any = jnp.int32, **_: Any) -> Any:
        return jnp.broadcast_to((minval + maxval) // 2, shape).astype(dtype)

    constants = {"bernoulli": bernoulli, "normal": normal, "uniform": uniform, "randint": randint}
    before = {name: getattr(jax.random, name) for name in constants}
    try:
        for name, function in constants.items():
            setattr(jax.random, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(jax.random, name, function)


def difference(ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The largest relative differences of a loss and of a gradient norm."""
    pairs = list(zip(ours, theirs, strict=True))
    return tuple(max(abs(a[k] - b[k]) / max(abs(b[k]), 1e-3) for a, b in pairs) for k in (0, 1))  # pyright: ignore


def smoke(config: str, steps: int, *more: str) -> tuple[Any, list[Any]]:
    """The recipe of a config's smoke run with a batch of 16, and its first batches."""
    from fundax.config import load
    from fundax.optim import adamw, constant

    recipe, _ = load(REPO / config, ["--smoke", *more])
    # The learning rate is large enough to change the loss. With the large epsilon, rounding cannot change the sign of an update.
    recipe = replace(recipe, optimizer=adamw(constant(1e-3), eps=1e-3), init_from=(), init_extra=())
    if not recipe.steps:
        return recipe, []
    data = recipe.train(0, 1)
    wanted = recipe.objective.batch_spec(recipe.batch)
    return recipe, [{key: batch[key] for key in wanted} for batch in (next(data) for _ in range(steps))]


def compare(config: str, mesh: tuple[int, ...], accumulate: int, steps: int) -> list[tuple[str, float, float]]:
    """(comparison, difference of the losses, difference of the gradient norms); [] for a config without training."""
    recipe, batches = smoke(config, steps)
    if not batches:
        return []
    variants = {
        "one": replace(recipe, mesh=(1, 1, 1), accumulate=1),
        "mesh": replace(recipe, mesh=mesh, accumulate=1),
        "parts": replace(recipe, mesh=(1, 1, 1), accumulate=accumulate),
        "both": replace(recipe, mesh=mesh, accumulate=accumulate),
    }
    found = {name: losses(variant, batches) for name, variant in variants.items()}
    shape = ",".join(map(str, mesh))
    return [
        (f"mesh {shape}", *difference(found["mesh"], found["one"])),
        (f"accumulate {accumulate}", *difference(found["parts"], found["one"])),
        (f"accumulate {accumulate}, mesh {shape} and one device", *difference(found["both"], found["parts"])),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", help="config files; default all")
    parser.add_argument("--mesh", default="2,2,2", help="data,fsdp,model")
    parser.add_argument("--accumulate", type=int, default=2, help="number of micro-batches")
    parser.add_argument("--steps", type=int, default=3, help="number of steps")
    own = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # These programs run for milliseconds, so skip optimizations that take seconds.
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {quick}"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # sharded programs read back from it can wait for each other
    from fundax.recipe import parse_mesh

    configs = own.configs or sorted(str(p.relative_to(REPO)) for p in (REPO / "configs").glob("*.py"))
    good = True
    for config in configs:
        start, name = time.monotonic(), Path(config).stem
        try:
            rows = compare(config, parse_mesh(own.mesh), own.accumulate, own.steps)
        except Exception as error:
            good = False
            print(f"{name:16s} FAILED {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        if not rows:
            print(f"{name:16s} {UNTRAINED}", flush=True)
        for k, (what, loss, norm) in enumerate(rows):
            why = REASONS.get(name, "") if k == 1 and max(loss, norm) > TOLERANCE else ""
            good &= max(loss, norm) <= TOLERANCE or bool(why)
            verdict = "" if max(loss, norm) <= TOLERANCE else f"  {why or 'DIFFERENT'}"
            print(f"{name:16s} {what:45s} loss {loss:.1e}  gradient {norm:.1e}{verdict}", flush=True)
        print(f"{name:16s} {time.monotonic() - start:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
