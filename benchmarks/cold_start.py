"""Measure the start-up time of a new process: imports, help, first training step, first prediction.

    python benchmarks/cold_start.py

Prints medians over processes that run alternately. Processor time depends less than wall time on the load of the
machine. The first step is `launch.py train configs/mm_fundus_clip.py --smoke --steps 1`, with an empty and with a filled
compilation cache; the prediction loads that run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from record import Table, record

REPO = Path(__file__).parent.parent
PREDICT = """
import sys, fundax, numpy as np
fundax.load(sys.argv[1]).zero_shot([np.zeros((32, 32, 3), np.uint8)], ["healthy", "glaucoma"])
"""


def seconds(command: list[str], cache: str) -> tuple[float, float]:
    """(wall, processor) seconds of a process. If it fails, its output is printed."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env["PYTHONPATH"] = str(REPO)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], cwd=REPO, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, used


def in_turn(commands: dict[str, list[str]], cache: str, repeats: int) -> dict[str, np.ndarray]:
    """Median (wall, processor) seconds of each command over alternated runs."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command, cache))
    return {name: np.median(its, axis=0) for name, its in times.items()}


def main(repeats: int = 3, keep: bool = True) -> None:
    """Run every process `repeats` times. --no-keep does not write benchmarks/results."""
    with tempfile.TemporaryDirectory() as scratch:
        cache, runs = f"{scratch}/cache", iter(range(99))
        imports = {
            "import jax": ["-c", "import jax"],
            "import fundax": ["-c", "import fundax"],
            "import fundax.train.loop": ["-c", "import fundax.train.loop"],
            "launch.py --help": ["launch.py", "--help"],
        }
        times = in_turn(imports, cache, repeats)

        def first_step() -> tuple[float, float]:
            words = [
                "launch.py",
                "train",
                "configs/mm_fundus_clip.py",
                "--smoke",
                "--steps",
                "1",
                "--fractions",
                "1",
            ]
            return seconds([*words, "--workdir", f"{scratch}/{next(runs)}"], cache)

        times["first step, empty cache"] = np.array(first_step())
        times["first step, filled cache"] = np.median([first_step() for _ in range(repeats)], axis=0)
        predict = ["-c", PREDICT, f"{scratch}/0"]
        times["first prediction, empty cache"] = np.array(seconds(predict, cache))
        times["first prediction, filled cache"] = np.median([seconds(predict, cache) for _ in range(repeats)], axis=0)
    jax = times["import jax"][1]
    rows = [[name, f"{wall:.2f}", f"{cpu:.2f}", f"{cpu / jax:.2f}"] for name, (wall, cpu) in times.items()]
    title = f"Fresh processes, medians of {repeats}"
    record("cold_start", [Table(title, ("what", "wall, s", "processor, s", "processor / import jax"), rows)], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
