"""How long one waits for a fresh process: imports, help, the first step, the first prediction.

    python benchmarks/cold_start.py

Every row is processes of their own, in turn, medians. A first step is `launch.py train configs/mm_fundus_clip.py --smoke`
from start to end with one step, with an empty compilation cache and again with the one that left; a prediction loads that run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from record import Table, record

REPO = Path(__file__).parent.parent
PREDICT = """
import sys, numpy as np
from fundax.predict import load
load(sys.argv[1]).zero_shot([np.zeros((32, 32, 3), np.uint8)], ["healthy", "glaucoma"])
"""


def seconds(command: list[str], cache: str) -> float:
    """Wall time of one process; its output is shown if it fails."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env["PYTHONPATH"] = str(REPO)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=REPO, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def in_turn(commands: dict[str, list[str]], cache: str, repeats: int) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command, cache))
    return {name: statistics.median(its) for name, its in times.items()}


def main(repeats: int = 3, keep: bool = True) -> None:
    """--no-keep leaves docs/performance.md alone."""
    with tempfile.TemporaryDirectory() as scratch:
        cache, runs = f"{scratch}/cache", iter(range(99))
        imports = {
            "import jax": ["-c", "import jax"],
            "import fundax": ["-c", "import fundax"],
            "import fundax.train": ["-c", "import fundax.train"],
            "launch.py --help": ["launch.py", "--help"],
        }
        found = in_turn(imports, cache, repeats)

        def first_step() -> float:
            words = [
                "launch.py",
                "train",
                "configs/mm_fundus_clip.py",
                "--smoke",
                "--steps",
                "1",
                "--val-fraction",
                "0",
            ]
            return seconds([*words, "--workdir", f"{scratch}/{next(runs)}"], cache)

        found["first step, nothing compiled before"] = first_step()
        found["first step, again"] = statistics.median(first_step() for _ in range(repeats))
        predict = ["-c", PREDICT, f"{scratch}/0"]
        found["first prediction, nothing compiled before"] = seconds(predict, cache)
        found["first prediction, again"] = statistics.median(seconds(predict, cache) for _ in range(repeats))
    rows = [[name, f"{s:.2f}", f"{s / found['import jax']:.2f}"] for name, s in found.items()]
    title = f"Fresh processes, medians of {repeats}"
    record("Cold start", [Table(title, ("what", "seconds", "/ import jax"), rows)], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
