"""Test that a killed run resumes bit-exactly.

    python scripts/kill_and_resume.py [--kills 30] [--steps 240]

Trains the same small CLIP twice: once uninterrupted, and once killed (SIGKILL) at random times and restarted each time. A
third of the kills happen at any time after the start of the process, a third at the beginning of a save, and a third just
after a save. After each kill, all complete checkpoints are read. Prints a hash of the final parameters of both runs. Exits
with status 1 if the hashes differ or a checkpoint was unreadable.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from fundax.runtime.checkpoint import load_params
from fundax.types import UserError

REPO = Path(__file__).resolve().parent.parent
KINDS = ("any time", "in a save", "after a save")


def command(workdir: Path, steps: int, save_every: int = 2) -> list[str]:
    """The command of a small quickstart run."""
    given = f"--smoke --steps {steps} --patients 64 --save-every {save_every}"
    return [sys.executable, str(REPO / "launch.py"), "train", str(REPO / "configs" / "quickstart.py"),
            "--workdir", str(workdir), *given.split()]  # fmt: skip


def digest(workdir: Path) -> str:
    """SHA-256 of the bytes of all parameters in path order."""
    params, _ = load_params(workdir)
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def complete(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def under_way(workdir: Path) -> set[str]:
    """Names of unfinished saves."""
    return {p.name for p in (workdir / "checkpoints").glob("[0-9]*") if not p.name.isdigit()}


def killed(argv: list[str], workdir: Path, when: str, rng: random.Random, life: float) -> bool:
    """Start a run and kill it. Returns False if it ended before. `life` is the time from the start to the first save."""
    before, left = complete(workdir)[-1:], under_way(workdir)
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    due = time.monotonic() + rng.uniform(0.0, life)
    ready = {
        "any time": lambda: time.monotonic() >= due,
        "in a save": lambda: bool(under_way(workdir) - left) and complete(workdir)[-1:] != before,
        "after a save": lambda: complete(workdir)[-1:] != before,
    }[when]
    while run.poll() is None and not ready():
        time.sleep(0.0005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(timeout=rng.uniform(0.0, 0.02 if when == "in a save" else 0.2))
    ended = run.poll() is not None
    run.kill()
    run.wait()
    return not ended


def unreadable(workdir: Path) -> list[str]:
    """Error messages of complete checkpoints that cannot be read."""
    messages = []
    for step in complete(workdir):
        try:
            load_params(workdir, step)
        except UserError as problem:
            messages.append(str(problem))
    return messages


def main() -> int:
    """Train both runs and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of kills")
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kills")
    options = parser.parse_args()
    rng, started = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        subprocess.run(command(whole, options.steps, options.steps), check=True, capture_output=True)
        argv, kills, torn, broken, life = command(parts, options.steps), 0, 0, [], 20.0
        for kills in range(1, options.kills + 1):
            when, begun, left = KINDS[kills % len(KINDS)], time.monotonic(), under_way(parts)
            if not killed(argv, parts, when, rng, life):
                kills -= 1
                break
            life = time.monotonic() - begun if when == "after a save" else life
            saving = sorted(under_way(parts) - left)
            torn += bool(saving)
            broken += unreadable(parts)
            state = f"in the middle of {saving[0]}" if saving else "between saves"
            print(f"kill {kills} ({when}): {state}; complete: {complete(parts)}", flush=True)
        subprocess.run(argv, check=True, capture_output=True)
        first, second = digest(whole), digest(parts)
    for problem in broken:
        print(problem)
    print(f"{kills} kills, {torn} in the middle of a save, {len(broken)} unreadable checkpoints, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    print(f"uninterrupted      {first}\nkilled {kills:2d} times    {second}")
    return 0 if first == second and kills == options.kills and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
