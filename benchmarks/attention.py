"""Time self-attention, forward and backward, with every implementation of fundax/encoders/attention.py.

    python benchmarks/attention.py                        # 197 to 1,025 tokens of ViT-B heads, fp32 on a CPU
    python benchmarks/attention.py --dtype bfloat16 --batch 64 --heads 16 --width 64    # a GPU or TPU

Prints median milliseconds of alternated runs, and the ratio to "plain". An implementation that is not available on this
machine is shown as "not here".
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import tyro
from record import Table, record

from fundax.encoders.attention import PATHS, attend
from fundax.types import UserError


def step(path, shape: tuple[int, ...], dtype: str):
    """Compile the gradient with respect to queries, keys and values of a shape; None if the path is not available."""
    arrays = [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(3)]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attend(q, k, v, path=path).astype(jnp.float32) ** 2).sum()

    try:
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
    except UserError:
        return None
    return lambda: jax.block_until_ready(compiled(*arrays))


def medians(steps: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each step over alternated runs, after one warm-up run."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(its[1:]) for name, its in times.items()}


def main(
    tokens: tuple[int, ...] = (197, 257, 577, 730, 1025),
    batch: int = 4,
    heads: int = 12,
    width: int = 64,
    dtype: str = "float32",
    repeats: int = 5,
    keep: bool = True,
) -> None:
    """Time every path; `width` is the width of a head. --no-keep does not write benchmarks/results."""
    rows = []
    for n in tokens:
        made = {path: step(path, (batch, n, heads, width), dtype) for path in PATHS}
        seconds = medians({name: run for name, run in made.items() if run}, repeats)
        cells = [
            f"{1000 * seconds[p]:.1f} ({seconds[p] / seconds['plain']:.2f})" if p in seconds else "not here"
            for p in PATHS
        ]
        rows.append([str(n), *cells])
    title = f"Forward and backward, ms (ratio to plain): batch {batch}, {heads} heads of {width}, {dtype}"
    record("attention", [Table(title, ("tokens", *PATHS), rows)], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
