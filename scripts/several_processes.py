"""Test that training with several processes is equal to training with one device.

    python scripts/several_processes.py [--configs configs/mm_fundus_clip.py configs/ret_clip.py] [--mesh 1,-1,1] [--steps 10]

Processes on this machine, connected over loopback, train the smoke run of each config: on one device to the end, as 2
processes x 4 devices to the middle, and from this checkpoint as 1 x 8, 2 x 2 and 4 x 1. Compares every loss and the rows of
every batch with those of one device. Exits with status 1 if a loss differs by more than 1e-5 (relative) or any row differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)] if str(REPO) not in sys.path else []
CONFIGS = ("configs/mm_fundus_clip.py", "configs/ret_clip.py")
LAST = 4
TOLERANCE = 1e-5
FAILED = 3


@dataclass(frozen=True)
class Shape:
    """Number of processes, and of devices per process."""

    processes: int
    devices: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}"


ONE, SAVING = Shape(1, 1), Shape(2, 4)
LATER = (Shape(1, 8), Shape(2, 2), Shape(4, 1))
# These programs run for milliseconds, so skip optimizations that take seconds.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Variables = Callable[[int, int], dict[str, str]]


def flags(port: int, process: int) -> dict[str, str]:
    """The FUNDAX_* variables of a process."""
    return {"FUNDAX_COORDINATOR": f"127.0.0.1:{port}", "FUNDAX_PROCESS_ID": str(process)}


def together(shape: Shape, work: Callable[[], None], variables: Variables = flags) -> None:
    """Run `work` in forked processes, which form a cluster by the variables `variables(port, process)`.

    The calling process must not have used a device.
    """
    port = free_port()
    number = {"FUNDAX_NUM_PROCESSES": str(shape.processes)} if variables is flags else {}
    children = [_fork(shape, {**number, **variables(port, k)}, work) for k in range(shape.processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"{shape}: exit codes {codes}")


def _fork(shape: Shape, variables: dict[str, str], work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={shape.devices} {QUICK}"
        from fundax.runtime.distributed import initialize, resolve_distributed

        print(initialize(resolve_distributed(variables), timeout_s=240), flush=True)
        work()
        code = 0
        sys.stdout.flush()
        if shape.processes > 1:
            import jax

            jax.distributed.shutdown()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(config: str, workdir: Path, steps: int, mesh: str = "-1,1", save: int = 2) -> None:
    """Train the smoke run of a config for `steps` steps without evaluations."""
    import optax

    from fundax.config import load
    from fundax.optim import adamw, clip_params, constant
    from fundax.recipe import Intervals

    recipe, _ = load(REPO / config, ["--smoke", "--mesh", mesh])
    # a learning rate that changes the loss, and an epsilon so large that rounding cannot flip the sign of an update
    optimizer = optax.chain(adamw(constant(1e-3), eps=1e-3), clip_params({"^log_scale": (0.0, 4.6)}))
    fit_noting(
        replace(recipe, steps=steps, intervals=Intervals(1, save, 0), evals={}, best=None, optimizer=optimizer),
        workdir,
    )


def fit_noting(recipe: Any, workdir: Path) -> None:
    """Train a recipe, and write the rows that process k of n reads to rows-k-of-n.jsonl."""
    import jax

    from fundax.train.loop import fit

    workdir.mkdir(parents=True, exist_ok=True)
    rows = workdir / f"rows-{jax.process_index()}-of-{jax.process_count()}.jsonl"
    fit(replace(recipe, train=_noting(recipe.train, rows)), workdir)


def _noting(data: Any, path: Path) -> Callable[[int, int], Any]:
    """Wrap `data` so that the `index` of every batch is written to a file."""

    def start(shard: int, shards: int) -> Any:
        batches = data(shard, shards)
        take = type(batches).__next__

        class Noting(type(batches)):
            def __next__(self) -> Any:
                batch = take(self)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([self.get_state()["step"], shard, batch["index"].tolist()]) + "\n")
                return batch

        batches.__class__ = Noting
        return batches

    return start


def losses(workdir: Path) -> dict[int, float]:
    """Loss by step."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def indices(workdir: Path, processes: int) -> dict[int, list[int]]:
    """Rows of the global batch by step, in order, as read by `processes` processes."""
    steps: dict[int, dict[int, list[int]]] = {}
    for path in workdir.glob(f"rows-*-of-{processes}.jsonl"):
        for step, shard, rows in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            steps.setdefault(step, {})[shard] = rows
    return {step: [row for _, rows in sorted(parts.items()) for row in rows] for step, parts in steps.items()}


def compare(
    config: str,
    folder: Path,
    shapes: Sequence[Shape] = LATER,
    mesh: str = "-1,1",
    steps: int = LAST,
    saving: Shape = SAVING,
) -> list[tuple[str, Shape, int, int, float, bool]]:
    """(config, shape, first step, last step, largest relative difference of a loss, same rows) of every run of a config."""
    name, middle = Path(config).stem, steps // 2
    jobs = [(ONE, 0, steps), (saving, 0, middle), *((shape, middle, steps) for shape in shapes)]
    table = []
    for shape, first, last in jobs:
        workdir = folder / name / str(shape).replace(" ", "")
        if first:
            shutil.copytree(folder / name / str(saving).replace(" ", ""), workdir)
        over = "-1,1" if shape is ONE else mesh
        together(shape, lambda workdir=workdir, last=last, over=over: run(config, workdir, last, over, middle))
        whole = folder / name / str(ONE).replace(" ", "")
        table.append(
            (name, shape, first, last, *difference(workdir, whole, shape.processes, range(first + 1, last + 1)))
        )
    return table


def difference(workdir: Path, whole: Path, processes: int, steps: Iterable[int]) -> tuple[float, bool]:
    """(Largest relative difference of a loss, whether all batches had the same rows) from the run of one process."""
    expected, actual = losses(whole), losses(workdir)
    here, there = indices(workdir, processes), indices(whole, 1)
    off = max(abs(actual[s] - expected[s]) / abs(expected[s]) for s in steps)
    return off, all(here[s] == there[s] for s in steps)


def _shape(word: str) -> Shape:
    return Shape(*map(int, word.split("x")))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every config and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="config files")
    parser.add_argument("--shapes", nargs="*", help="shapes to resume as, such as 1x8 2x2; default all")
    parser.add_argument("--saving", default="2x4", help="shape of the run that is saved in the middle")
    parser.add_argument("--mesh", default="-1,1", help="mesh of all runs but the first, such as 1,-1,1 for FSDP")
    parser.add_argument("--steps", type=int, default=LAST, help="number of steps")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    options = parser.parse_args(argv)
    shapes = LATER if options.shapes is None else tuple(map(_shape, options.shapes))
    import fundax.train.loop  # noqa: F401 (imported once, before the processes fork)

    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for config in options.configs:
            start = time.monotonic()
            for name, shape, first, last, off, same in compare(
                config, options.out or Path(scratch), shapes, options.mesh, options.steps, _shape(options.saving)
            ):
                good &= same and off <= TOLERANCE
                rows = "same rows" if same else "DIFFERENT ROWS"
                print(f"{name:16s} {shape!s:6s} steps {first + 1}-{last}  loss off by {off:.1e}  {rows}", flush=True)
            print(f"{Path(config).stem:16s} {time.monotonic() - start:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
