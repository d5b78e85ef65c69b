"""Fuzz the file readers: damage files in many ways and open them. Every case must load or raise a one-line error.

    python scripts/fuzz.py [--cases 5000] [--seed 0] [--area images tables] [--show]

The areas are images, tables (with lists, LMDB and splits), weights, runs, shards, knowledge (with tokenizers) and verbs of the
command line. A case is a small valid file with a few random changes (scripts/fuzz_damage.py), which is opened by the readers of
its area (scripts/fuzz_areas.py) in a child process. Exits with status 1 if a case ended with a traceback, took more than 5 s of
processor time or 1 GiB of memory beyond the undamaged files, crashed or ran code. `--show` prints the tracebacks of such cases;
`--only N` runs a case in this process.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # the children compile the same small programs
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fundax_fuzz_jax"))
REPO = Path(__file__).resolve().parent.parent
os.chdir(REPO)
sys.path[:0] = [str(REPO)]

import fuzz_areas  # noqa: E402 (the environment comes first)
import fuzz_verbs  # noqa: E402
from fuzz_areas import Area  # noqa: E402
from fuzz_damage import CANARY  # noqa: E402

import data_pipelines  # noqa: E402
import fundax  # noqa: E402

AREAS = {
    "images": Area(fuzz_areas.image_files, fuzz_areas.open_image, 24),
    "tables": Area(fuzz_areas.table_files, fuzz_areas.open_table, 24),
    "weights": Area(fuzz_areas.weight_files, fuzz_areas.open_weights, 14),
    "runs": Area(fuzz_areas.run_files, fuzz_areas.open_run, 12),
    "shards": Area(fuzz_areas.shard_files, fuzz_areas.open_shards, 10),
    "knowledge": Area(fuzz_areas.word_files, fuzz_areas.open_words, 10),
    "verbs": Area(fuzz_verbs.verb_files, fuzz_verbs.open_verb, 6, whole=True),
}
SECONDS, MEMORY = 5, 2**30
LONGEST = 120  # seconds of wall time after which a waiting child is ended
CLEAR, ACCEPTED, TRACEBACK, MEMORY_ERROR, CODE = range(10, 15)  # exit codes of a child
NAMES = {CLEAR: "clear", ACCEPTED: "accepted", TRACEBACK: "traceback", MEMORY_ERROR: "memory", CODE: "code"}
BAD = ("traceback", "memory", "code", "hang", "crash")
LAZY = (
    *("grain", "jinja2", "lmdb", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.figure"),
    *("openpyxl", "rich.console", "rich.table", "scipy.stats", "sklearn.linear_model", "sklearn.metrics", "tensorflow_datasets"),
)  # fmt: skip
CALLS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.spawn", "pty.spawn", "webbrowser.open")


class Ended(NamedTuple):
    """The exit code (or minus the signal), processor seconds, and peak memory in bytes (beyond the parent's) of a child."""

    code: int
    seconds: float
    memory: int


def preload() -> None:
    """Import what the readers import, some of it within functions, so that no child has to. It starts no threads."""
    for package in (data_pipelines, fundax):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in LAZY:
        with contextlib.suppress(ImportError):  # some belong to extras
            importlib.import_module(name)


def in_child(function: Callable[[], int], seconds: float, longest: int = LONGEST) -> Ended:
    """Run a function that returns an exit code in a forked process."""
    before = _resident()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        signal.alarm(longest)
        code = TRACEBACK
        try:
            code = function()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    return Ended(code, usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss * 1024 - before))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@functools.cache
def valid_files(name: str) -> tuple[Path, list[Path]]:
    """A folder with the valid files of an area, and the paths of the files to damage."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def make() -> int:  # in a child: this process starts no threads, so that it can be forked
        with contextlib.redirect_stdout(sys.stderr):
            paths = AREAS[name].make(folder)
        (folder / "paths").write_text("\n".join(sorted(str(path.relative_to(folder)) for path in paths)))
        return 0

    if (made := in_child(make, 600, 900)).code:
        raise SystemExit(f"{name}: the valid files could not be made ({made.code})")
    return folder, [Path(line) for line in (folder / "paths").read_text().split("\n")]


@functools.cache
def baseline(name: str) -> Ended:
    """The maximum seconds and memory for undamaged files of an area; 0 for areas that only read files."""
    if not AREAS[name].whole:
        return Ended(0, 0.0, 0)
    valid_files(name)
    runs = [run_in_child(name, seed, 600, False, damaged=False) for seed in range(12)]
    if wrong := [(seed, run.code) for seed, run in enumerate(runs) if run.code not in (CLEAR, ACCEPTED)]:
        seed, code = wrong[0]
        run_in_child(name, seed, 600, True, damaged=False)  # again, with its traceback
        raise SystemExit(f"{name}: the undamaged case of seed {seed} ended with {NAMES.get(code, code)}")
    return Ended(0, max(run.seconds for run in runs), max(run.memory for run in runs))


def run_case(name: str, folder: Path, seed: int, damaged: bool = True) -> None:
    """Write and open the case of a seed. The file, the damage and the reader are drawn from generators of their own."""
    valid, paths = valid_files(name)
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    path = folder / _drawn(paths, random.Random(f"{seed} file"))
    if damaged:
        fuzz_areas.damage(path, [valid / other for other in paths[:20]], random.Random(f"{seed} damage"))
    AREAS[name].open(path, random.Random(f"{seed} reader"))


def _drawn(paths: Sequence[Path], rng: random.Random) -> Path:
    """A file to damage. The arrays of a checkpoint are as likely as its config: files of one kind are drawn together."""
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        kinds.setdefault((path.parts[0], path.name if path.suffix else path.parent.name), []).append(path)
    return rng.choice(rng.choice(list(kinds.values())))


def run_in_child(name: str, seed: int, seconds: float, show: bool, damaged: bool = True) -> Ended:
    """Run the case of a seed in a child with limited processor time."""
    valid_files(name)  # once, before the fork
    with tempfile.TemporaryDirectory() as folder:
        longest = LONGEST * (2 if AREAS[name].whole else 1)
        return in_child(lambda: _quietly(name, Path(folder), seed, show, damaged), seconds, longest)


def kind_of(name: str, seed: int, show: bool) -> str:
    """Run a case; returns clear (a reader refused it in one line), accepted (none did), or one of BAD."""
    usual = baseline(name)
    ended = run_in_child(name, seed, SECONDS + usual.seconds, show)
    if ended.code in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL) or ended.seconds > SECONDS + usual.seconds:
        return "hang"
    if ended.memory > MEMORY + usual.memory:
        return "memory"
    return NAMES.get(ended.code, "crash")


def _quietly(name: str, folder: Path, seed: int, show: bool, damaged: bool) -> int:
    """Run a case in a child without output, and return the exit code for its result."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    if not show:
        os.dup2(silent, 2)
    called: list[str] = []
    sys.addaudithook(lambda event, _: called.append(event) if event in CALLS else None)
    CANARY.unlink(missing_ok=True)
    try:
        run_case(name, folder, seed, damaged)
    except MemoryError:
        return MEMORY_ERROR
    except BaseException:
        traceback.print_exc()
        return TRACEBACK
    return CODE if called or CANARY.exists() else CLEAR if fuzz_areas.refused else ACCEPTED


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns the exit code."""
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # this process computes nothing with JAX
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", type=int, default=5000, help="number of cases, over all areas (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default: %(default)s)")
    parser.add_argument("--area", choices=sorted(AREAS), nargs="+", default=list(AREAS), help="these areas only")
    parser.add_argument("--show", action="store_true", help="print the tracebacks")
    parser.add_argument("--only", type=int, help="run the case of this seed in this process; needs one --area")
    args = parser.parse_args(argv)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            run_case(args.area[0], Path(folder), args.only)
        return 0
    preload()
    names = [name for name in args.area for _ in range(AREAS[name].share)]
    random.Random(0).shuffle(names)
    counts, start = {name: Counter[str]() for name in AREAS if name in names}, time.monotonic()
    for number in range(args.cases):
        name = names[number % len(names)]
        kind = kind_of(name, args.seed + number, args.show)
        counts[name][kind] += 1
        if number % 250 == 249:
            print(f"{number + 1} cases, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if kind in BAD:
            print(f"{name} {args.seed + number}: {kind}", file=sys.stderr, flush=True)
    for name, count in counts.items():
        print(f"{name:10} {count.total():5}  " + ", ".join(f"{kind} {n}" for kind, n in sorted(count.items())))
    bad = sum(count[kind] for count in counts.values() for kind in BAD)
    print(f"{args.cases} cases, {bad} bad, {time.monotonic() - start:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
