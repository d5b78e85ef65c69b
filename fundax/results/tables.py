"""Tables for the console, by rich."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from fundax.types import UserError


def zero_shot_table(path: str | Path) -> Table:
    """Per class the number of images, AUC, average precision and recall, then the macro averages.

    path: evals/<name>.npz of a zero-shot eval. A value that is not defined is a dash, with the reason beside it.
    Raises UserError where the file is missing or of another eval.
    """
    needed = ("classes", "count", "auc", "ap", "recall", "note")
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in needed if key not in stored]
            if missing:
                raise UserError(f"{path}: no {', '.join(missing)}; expected the arrays of a zero-shot eval")
            classes, count, auc, ap, recall, note = (stored[key] for key in needed)
    except OSError as error:
        raise UserError(f"{path}: expected the .npz of a zero-shot eval: {error}") from error
    table = Table(title=f"{Path(path).stem}: {count.sum()} images", title_justify="left")
    table.add_column("class")
    for name in ("n", "AUC", "AP", "recall"):
        table.add_column(name, justify="right")
    noted = any(note)
    if noted:
        table.add_column("", style="dim")
    for k, name in enumerate(classes):
        values = [_cell(column[k]) for column in (auc, ap, recall)]
        table.add_row(str(name), str(count[k]), *values, *([str(note[k])] if noted else []))
    table.add_section()
    macro = [_cell(_mean(column)) for column in (auc, ap, recall)]
    table.add_row("macro average", str(count.sum()), *macro, style="bold")
    return table


def _mean(column: np.ndarray) -> float:
    present = column[~np.isnan(column) & (column >= 0)]  # the peer's mark for an absent class is -1
    return float(present.mean()) if len(present) else float("nan")


def _cell(value: float) -> str:
    return "–" if np.isnan(value) or value < 0 else f"{value:.3f}"
