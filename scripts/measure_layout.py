"""Print the size of the project and the structure of its imports.

    python scripts/measure_layout.py [--limits]

Prints the number of entries at the roots, the packages ("rooms") with their levels, imports between packages and cycles, and
the lengths of functions, files and configs. With --limits, exits with status 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
HALVES = ("fundax", "data_pipelines")
CODE = (*HALVES, "configs", "launch.py")
LINES_BEFORE = 33_443  # lines of CODE at commit 711372e, when all modules were in three folders


def tracked(*paths: str) -> list[Path]:
    """Files that git tracks below `paths`."""
    done = subprocess.run(["git", "ls-files", *paths], cwd=REPO, capture_output=True, text=True, check=True)
    return [REPO / line for line in done.stdout.splitlines() if (REPO / line).is_file()]


def python_files(*paths: str) -> list[Path]:
    return [path for path in tracked(*paths) if path.suffix == ".py"]


def entries(root: str) -> int:
    """Files and folders directly below a root."""
    return len({path.relative_to(REPO / root).parts[0] for path in tracked(root)})


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of this project that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules or node.module in modules:
                    yield full if full in modules else node.module


def room_imports() -> dict[str, set[str]]:
    """The rooms that each room imports. The top-level `__init__.py` files belong to no room."""
    files = {module_of(path): path for path in python_files(*HALVES)}
    rooms: dict[str, set[str]] = {room_of(module): set() for module in files if module not in HALVES}
    for module, path in files.items():
        if module not in HALVES:
            others = {room_of(name) for name in imported(path, set(files)) if name not in HALVES}
            rooms[room_of(module)] |= others - {room_of(module)}
    return rooms


def levels(rooms: dict[str, set[str]]) -> list[list[str]]:
    """Sort rooms into levels, each of which imports only lower levels. Raises graphlib.CycleError for a cycle."""
    sorter = graphlib.TopologicalSorter(rooms)
    sorter.prepare()
    out = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        out.append(ready)
        sorter.done(*ready)
    return out


def function_lengths(paths: list[Path]) -> list[tuple[int, str]]:
    """(number of lines, place) of every function, the longest last."""
    lengths = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths.append((lines, f"{path.relative_to(REPO)}:{node.name}"))
    return sorted(lengths)


def line_counts(paths: list[Path]) -> dict[str, int]:
    return {str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", action="store_true", help="exit with status 1 if a limit is exceeded")
    limits_apply = parser.parse_args().limits
    rooms = room_imports()
    stairs = levels(rooms)
    functions = function_lengths(python_files(*CODE))
    files, configs = (
        line_counts(python_files(*CODE, "tests", "benchmarks", "scripts")),
        line_counts(python_files("configs")),
    )
    total = sum(line_counts(python_files(*CODE)).values())
    median = statistics.median(lines for lines, _ in functions)
    print("entries at the roots: " + ", ".join(f"{root} {entries(root)}" for root in (*HALVES, "tests")))
    arrows = sum(map(len, rooms.values()))
    print(f"rooms: {len(rooms)}; levels: {len(stairs)}; import arrows between rooms: {arrows}; circles: 0")
    for number, level in enumerate(stairs):
        print(f"  level {number}: {', '.join(level)}")
    print(f"functions: {len(functions)}; median {median:g} lines; longest {functions[-1][0]} ({functions[-1][1]})")
    longest = max(files, key=files.__getitem__)
    print(f"files: {len(files)}; longest {files[longest]} lines ({longest})")
    mean, most = statistics.mean(configs.values()), max(configs.values())
    print(f"configs: {len(configs)}; mean {mean:.1f} lines; longest {most}")
    change = 100 * (total / LINES_BEFORE - 1)
    print(f"lines of fundax, data_pipelines, configs and launch.py: {total} ({change:+.1f} % of {LINES_BEFORE})")
    bad = median > 8 or functions[-1][0] > 80 or files[longest] > 400 or mean > 60 or most > 80 or change > -12
    return int(limits_apply and bad)


if __name__ == "__main__":
    sys.exit(main())
