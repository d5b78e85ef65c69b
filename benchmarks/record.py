"""Print the tables of a benchmark, and write them to benchmarks/results/NAME.json, which the documentation includes.

    python benchmarks/record.py FOLDER    # collect the results of a folder in all.json and all.md; see gpu.sh

FUNDAX_RESULTS names another folder than benchmarks/results.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

REPO = Path(__file__).parent.parent
RESULTS = Path(os.environ.get("FUNDAX_RESULTS", REPO / "benchmarks" / "results"))
LOAD = round(os.getloadavg()[0], 1)  # before the start: what is measured adds to the load itself
GIB = 2**30


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def printed(self) -> Printed:
        """Convert to a table of rich for the terminal."""
        table = Printed(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table


def machine() -> str:
    """Describe the machine, for example '2 x86_64 cores, 24 GiB, Python 3.11.7, jax 0.10.2', with its accelerator."""
    import jax

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    parts = [f"{os.cpu_count()} {platform.machine()} cores", f"{memory:.0f} GiB", f"Python {platform.python_version()}"]
    device = jax.devices()[0]
    parts += [f"{jax.device_count()} x {device.device_kind}"] if device.platform != "cpu" else []
    return ", ".join([*parts, f"jax {version('jax')}"])


def record(name: str, tables: Sequence[Table], *, keep: bool = True, results: Path = RESULTS) -> None:
    """Print `tables`; with `keep`, write them to `results`/NAME.json with command, machine, date and system load.

    The load is the mean number of running processes in the minute before the benchmark began. Publish times only if it
    is below 0.5.
    """
    result = {
        "command": "python " + " ".join([os.path.relpath(sys.argv[0], REPO), *sys.argv[1:]]),
        "machine": machine(),
        "date": str(datetime.date.today()),
        "load": LOAD,
        "tables": [asdict(table) for table in tables],
    }
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.printed())
    console.print(f"{result['machine']}; {result['date']}; load {result['load']}", highlight=False)
    if keep:
        results.mkdir(exist_ok=True, parents=True)
        path = results / f"{name}.json"
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"written to {path}")


def collect(folder: Path) -> None:
    """Write all results of `folder` to all.json, by name, and their tables to all.md."""
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    results.pop("all", None)
    lines: list[str] = []
    for name, result in results.items():
        lines += [
            f"## {name}",
            "",
            f"`{result['command']}` ({result['machine']}; {result['date']}; load {result['load']})",
            "",
        ]
        for table in result["tables"]:
            rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
            lines += [table["title"], "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    (folder / "all.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "all.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"{folder / 'all.md'}: {', '.join(results) or 'no results'}")


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
