"""Test that a killed run resumes bit-exactly.

    python scripts/kill_and_resume.py [--any 50] [--saves 30] [--workers 10] [--processes 10] [--seed 0] [--out FOLDER]

Trains a small model (scripts/small_run.py) three times without interruption: in one process, with two worker processes that
read data, and with two training processes. Then repeats the three runs, killing (SIGKILL) and restarting them many times: the
process at any time or just after a save (--any) and during a save (--saves), a worker process (--workers), and one of the two
training processes, half of the time during a save (--processes). Every run keeps a single checkpoint. After each kill, all
complete checkpoints are read.

Prints each kill and a digest of the final state of each run. Exits with status 1 if digests differ, a checkpoint was
unreadable, or a surviving process did not end with a one-line error. The times of kills are drawn from --seed, but also
depend on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import multiprocessing.context
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO)] if str(REPO) not in sys.path else []

import fundax.inference.dispatch  # noqa: E402, F401 (imported once, before the processes fork)
import launch  # noqa: E402
from fundax import encoders, objectives  # noqa: E402, F401
from fundax.runtime.checkpoint import load_params  # noqa: E402
from fundax.train.loop import fit  # noqa: E402, F401
from fundax.types import UserError  # noqa: E402
from scripts.several_processes import QUICK, free_port  # noqa: E402

FORK = multiprocessing.get_context("fork")
Process = multiprocessing.context.ForkProcess
ENDS_S = 180  # maximum time until a surviving process ends
ANY, AFTER, IN_SAVE, WORKER, ONE_OF_TWO = "any time", "after a save", "in a save", "a worker", "one of two"


@dataclass
class Trial:
    """A run that is killed and restarted, and the results."""

    workdir: Path
    steps: int
    rng: random.Random
    workers: int = 0
    processes: int = 1
    life: float = 3.0  # seconds from the start of a process to its first save
    kills: int = 0
    torn: int = 0  # kills in the middle of a save
    broken: list[str] = field(default_factory=list)

    def start(self, save_every: int = 2) -> list[Process]:
        """Start the processes of the run."""
        words = f"--steps {self.steps} --workers {self.workers} --save-every {save_every} --keep 1"
        argv = ["train", str(REPO / "scripts" / "small_run.py"), "--workdir", str(self.workdir), *words.split()]
        where = f"127.0.0.1:{free_port()}"
        joined = [f"--coordinator {where} --num-processes {self.processes} --process-id {k}".split()
                  for k in range(self.processes)] if self.processes > 1 else [[]]  # fmt: skip
        runs = [FORK.Process(target=_train, args=([*argv, *more], self.log(k)), name=str(k))
                for k, more in enumerate(joined)]  # fmt: skip
        for run in runs:
            run.start()
        return runs

    def log(self, process: int) -> Path:
        """The file that holds what a process printed."""
        return self.workdir.with_name(f"{self.workdir.name}_{process}.log")

    def finish(self, save_every: int) -> str:
        """Run to the end; returns a digest of the parameters."""
        for k, run in enumerate(self.start(save_every)):
            run.join()
            if run.exitcode:
                raise SystemExit(f"{self.workdir}: exit code {run.exitcode}: {self.log(k).read_text()[-2000:]}")
        return in_child(digest, self.workdir)

    def kill(self, kind: str) -> None:
        """Start the run, kill it according to `kind`, and read its complete checkpoints."""
        before, left, begun = self.complete()[-1:], self.under_way(), time.monotonic()
        runs = self.start()
        due = begun + self.rng.uniform(0.0, self.life)
        in_save = kind == IN_SAVE or (kind == ONE_OF_TWO and self.kills % 2 == 0)
        self._wait(runs, lambda: time.monotonic() >= due if kind == ANY else self.complete()[-1:] != before)
        if in_save:
            self._wait(runs, lambda: bool(self.under_way() - left))
        time.sleep(self.rng.uniform(0.0, 0.02 if in_save else 0.2))
        victim = self.rng.randrange(len(runs))
        if kind == WORKER:
            os.kill(self.rng.choice(workers_of(runs[0].pid or 0)), 9)
        else:
            runs[victim].kill()
        self.life = time.monotonic() - begun if kind == AFTER else self.life
        messages = [self._end(run, k, killed=kind != WORKER and k == victim) for k, run in enumerate(runs)]
        saving = sorted(self.under_way() - left)
        self.kills, self.torn = self.kills + 1, self.torn + bool(saving)
        self.broken += in_child(unreadable, self.workdir, self.complete())
        state = f"in the middle of {saving[0]}" if saving else "between saves"
        print(
            f"{self.kills} {kind}, {time.monotonic() - begun:.0f} s: {state}; complete: {self.complete()}{''.join(messages)}",
            flush=True,
        )

    def _wait(self, runs: Sequence[Process], ready: Callable[[], bool]) -> None:
        while not ready():
            if any(run.exitcode is not None for run in runs):
                printed = [self.log(k).read_text()[-2000:] for k in range(len(runs))]
                raise SystemExit(f"{self.workdir}: ended before it was killed: {printed}")
            time.sleep(0.0005)

    def _end(self, run: Process, number: int, killed: bool) -> str:
        """Wait for a process to end; return the last line of a surviving process."""
        run.join(ENDS_S)
        if run.exitcode is None:
            run.kill()
            self.broken.append(f"a survivor had not ended after {ENDS_S} s")
            return ""
        if killed:
            return ""
        lines = self.log(number).read_text().strip().splitlines() or [""]
        if not lines[-1].startswith("error: ") or run.exitcode not in (1, 2) or any("Traceback" in x for x in lines):
            self.broken.append(f"a survivor ended with exit code {run.exitcode}: {' | '.join(lines[-8:])}")
        return f"; the survivor: {lines[-1][:100]}"

    def complete(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(p.name) for p in (self.workdir / "checkpoints").glob("*") if p.name.isdigit())

    def under_way(self) -> set[str]:
        """Names of unfinished saves."""
        return {p.name for p in (self.workdir / "checkpoints").glob("[0-9]*") if not p.name.isdigit()}


def _train(argv: Sequence[str], log: Path) -> None:
    """launch.py in a forked process, which has imported everything but started nothing."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main_module = sys.modules["__main__"]
    main_module.__spec__, main_module.__file__ = None, None  # workers that read data need not import this script
    os.environ["XLA_FLAGS"] = QUICK
    if "--coordinator" not in argv:  # with several processes on CPUs, a cached program can hang
        jax.config.update("jax_compilation_cache_dir", str(log.with_name("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        launch._leave(launch._code(list(argv)))
    except SystemExit as end:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        os._exit(int(end.code or 0))  # not what this process has registered for its own exit


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a forked process: this one must not start JAX, as it could not be forked afterwards."""
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: theirs.send(function(*arguments)))
    child.start()
    theirs.close()
    result = ours.recv()
    child.join()
    return result


def digest(workdir: Path) -> str:
    """SHA-256 of the bytes of all parameters in path order."""
    params, _ = load_params(workdir)
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def unreadable(workdir: Path, steps: Sequence[int]) -> list[str]:
    """The errors of complete checkpoints that cannot be read."""
    problems = []
    for step in steps:
        try:
            load_params(workdir, step)
        except UserError as problem:
            problems.append(str(problem))
    return problems


def workers_of(process: int) -> list[int]:
    """Process ids of the workers that read data for a process."""
    workers, parents = [], {process}
    for _ in range(2):  # the parent of a worker may be a fork server
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                words = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                command = status.with_name("cmdline").read_text()
                if int(words["PPid"]) in parents and re.search("multiprocessing.(spawn|forkserver)", command):
                    workers.append(int(words["Pid"]))
        parents |= set(workers)
    return sorted(set(workers))


def main() -> int:
    """Train, kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count, kind in (
        ("any", 50, "kills at any time or just after a save"), ("saves", 30, "kills during a save"),
        ("workers", 10, "kills of a worker process"), ("processes", 10, "kills of one of two training processes"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=count, help=f"number of {kind}")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kills")
    parser.add_argument("--out", type=Path, help="folder in which the runs are kept")
    options = parser.parse_args()
    kinds = [ANY, AFTER] * (options.any // 2) + [ANY] * (options.any % 2) + [IN_SAVE] * options.saves
    plans = {"one": (kinds, {}), "readers": ([WORKER] * options.workers, {"workers": 2}),
             "two": ([ONE_OF_TWO] * options.processes, {"processes": 2})}  # fmt: skip
    started, good, kills, torn, broken = time.monotonic(), True, 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (planned, fields) in plans.items():
            if not planned:
                continue
            rng = random.Random(f"{options.seed} {name}")
            rng.shuffle(planned)
            folder, steps = options.out or Path(scratch), 100 + 20 * len(planned)
            folder.mkdir(parents=True, exist_ok=True)
            whole = Trial(folder / f"{name}_whole", steps, rng, **fields).finish(steps)
            trial = Trial(folder / f"{name}_killed", steps, rng, **fields)
            for kind in planned:
                trial.kill(kind)
            parts = trial.finish(steps)
            good &= whole == parts
            kills, torn, broken = kills + trial.kills, torn + trial.torn, broken + trial.broken
            print(f"undisturbed     {whole}\nkilled {trial.kills:2d} times {parts}", flush=True)
    print(*broken, sep="\n")
    print(f"{kills} kills, {torn} in the middle of a save, {len(broken)} failures, "
          f"{'all' if good else 'NOT ALL'} runs end with the same bits, {time.monotonic() - started:.0f} s")  # fmt: skip
    return 0 if good and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
