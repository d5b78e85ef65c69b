"""python scripts/kill_and_resume.py [--kills 10] [--steps 60]

Trains the same small CLIP twice: once undisturbed, once killed (SIGKILL) at random moments and started again each
time. Prints a hash of the final parameters of both, which must be the same, and exits with 1 if it is not.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from fundax.checkpoint import load_params

REPO = Path(__file__).resolve().parent.parent


def command(workdir: Path, steps: int, patients: int) -> list[str]:
    """A run of the quickstart, made small."""
    given = f"--steps {steps} --patients {patients} --width 32 --depth 1 --image-size 32 --batch 8 --save-every 3"
    return [sys.executable, str(REPO / "launch.py"), "train", str(REPO / "configs" / "quickstart.py"),
            "--workdir", str(workdir), *given.split()]  # fmt: skip


def digest(workdir: Path) -> str:
    """SHA-256 of every parameter's bytes in path order."""
    params, _ = load_params(workdir)
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def progress(workdir: Path) -> int:
    """The last complete checkpoint, -1 where there is none."""
    found = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(found, default=-1)


def killed(argv: list[str], workdir: Path, rng: random.Random) -> bool:
    """Start a run and kill it a random moment after it trains; False where it ended before that."""
    before, log = progress(workdir), workdir / "metrics.jsonl"
    start = time.time()
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and not (log.exists() and log.stat().st_mtime > start and progress(workdir) != before):
        time.sleep(0.002)
    try:
        run.wait(timeout=rng.uniform(0.0, 0.4))
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        return True
    return False


def main() -> int:
    """Both runs and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    rng = random.Random(own.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        subprocess.run(command(whole, own.steps, 64), check=True, capture_output=True)
        argv = command(parts, own.steps, 64)
        kills = 0
        while kills < own.kills and killed(argv, parts, rng):
            kills += 1
            print(f"kill {kills}: latest complete checkpoint {progress(parts)}", flush=True)
        subprocess.run(argv, check=True, capture_output=True)
        first, second = digest(whole), digest(parts)
    print(f"uninterrupted      {first}\nkilled {kills:2d} times    {second}")
    return 0 if first == second and kills == own.kills else 1


if __name__ == "__main__":
    sys.exit(main())
