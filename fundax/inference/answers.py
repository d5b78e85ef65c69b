"""Write the predictions of a model as CSV, JSON or a console table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fundax.types import UserError

SUFFIXES = (".csv", ".json")
SHOWN = 8  # number of answers in a row of the console; a file has all of them


def check_out(out: str | Path | None, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise UserError for a file that exists, has another suffix, or cannot be written. A missing folder is created.

    Called before the work starts, so that its result is not lost at the end.
    """
    if not out:
        return
    path = Path(out)
    if path.exists():
        raise UserError(f"{out} already exists; choose another --out")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"--out {out}: expected a file that ends in {' or '.join(suffixes)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error


def write_rows(out: str | Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of predictions, with four digits, to a .csv or .json file; does nothing without `out`.

    In JSON, numbers stay numbers and a row is an object.
    """
    if not out:
        return
    temporary = Path(out).with_name(f".{Path(out).name}.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        if Path(out).suffix.lower() == ".json":
            json.dump([{key: _number(value) for key, value in row.items()} for row in rows], file, indent=1)
        else:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    temporary.replace(out)


def table_of(rows: Sequence[Mapping[str, Any]], fixed: Iterable[str] = ("image",), caption: str = "") -> Table:
    """A console table of the columns `fixed` and the first SHOWN others; the caption counts the rest."""
    names = list(rows[0]) if rows else []
    kept = [name for name in names if name in fixed]
    answers = [name for name in names if name not in kept]
    left = len(answers) - SHOWN
    note = f"and {left} more columns: --out writes all" if left > 0 else caption
    table = Table(*kept, *answers[:SHOWN], caption=note or None)
    for row in rows:
        table.add_row(*(_text(row[name]) for name in (*kept, *answers[:SHOWN])))
    return table


def _number(value: Any) -> Any:
    return round(float(value), 4) if hasattr(value, "dtype") or isinstance(value, float) else value


def _text(value: Any) -> str:
    return f"{value:.4f}" if hasattr(value, "dtype") or isinstance(value, float) else str(value)
