"""What a benchmark found: printed for the one who runs it, and kept in docs/performance.md with machine and date."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
GIB = 2**30


@dataclass(frozen=True)
class Table:
    """Rows of words under columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def printed(self) -> Printed:
        """For a terminal."""
        table = Printed(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the page."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"{self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """'2 x86_64 cores, 24 GiB, Python 3.11, jax 0.10.2', with the accelerator where there is one."""
    import jax

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    parts = [f"{os.cpu_count()} {platform.machine()} cores", f"{memory:.0f} GiB", f"Python {platform.python_version()}"]
    device = jax.devices()[0]
    parts += [f"{jax.device_count()} x {device.device_kind}"] if device.platform != "cpu" else []
    return ", ".join([*parts, f"jax {version('jax')}"])


def record(section: str, tables: Sequence[Table], *, keep: bool = True, page: Path = PAGE) -> None:
    """Print the tables; with `keep`, add them to the page's `section`, the newest first."""
    said = f"{machine()}; {datetime.date.today()}; load {os.getloadavg()[0]:.1f}"
    command = "python " + " ".join([os.path.relpath(sys.argv[0], page.parent.parent), *sys.argv[1:]])
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table.printed())
    console.print(said, highlight=False)
    if not keep:
        return
    text = page.read_text() if page.exists() else "# Performance\n"
    heading, block = f"## {section}\n", [f"`{command}` ({said})", *(table.markdown() for table in tables)]
    if heading not in text:
        text = text.rstrip() + f"\n\n{heading}"
    before, after = text.split(heading)
    intro, rest = _after_intro(after)
    page.write_text(before + heading + intro + "\n" + "\n\n".join(block) + "\n" + rest)
    console.print(f"kept in {page}")


def _after_intro(body: str) -> tuple[str, str]:
    """A section's own words, which stay on top, and the blocks of earlier runs, which open with a command."""
    lines = body.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.startswith(("`python ", "## ")):
            return "".join(lines[:i]), "\n" + "".join(lines[i:])
    return body if not body or body.endswith("\n") else body + "\n", ""
