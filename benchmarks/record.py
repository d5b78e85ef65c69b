"""Print the tables of a benchmark, and write them to benchmarks/results/NAME.json, which the documentation includes."""

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

RESULTS = Path(__file__).parent / "results"
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

    The load is the number of running processes when the benchmark ended. Publish times only if it is not above the
    number of cores.
    """
    result = {
        "command": "python " + " ".join([os.path.relpath(sys.argv[0], RESULTS.parent.parent), *sys.argv[1:]]),
        "machine": machine(),
        "date": str(datetime.date.today()),
        "load": round(os.getloadavg()[0], 1),
        "tables": [asdict(table) for table in tables],
    }
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.printed())
    console.print(f"{result['machine']}; {result['date']}; load {result['load']}", highlight=False)
    if keep:
        results.mkdir(exist_ok=True)
        path = results / f"{name}.json"
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"written to {path}")
