"""Tables of results for the console."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from fundax.evals.kinds import ClassificationResult
from fundax.metrics.classification import nanmean
from fundax.results.about import about


def by_class(result: ClassificationResult, title: str) -> Table | None:
    """A table with the number of images, AUC, average precision and recall of each class, and their macro averages.

    An undefined value is a dash, with the reason in the last column. Returns None if the result has no metrics by class.
    """
    per = result.by_class
    if per is None or per.count is None or per.auc is None or per.ap is None or per.recall is None:
        return None
    columns, notes = (per.auc, per.ap, per.recall), [] if per.note is None else list(map(str, per.note))
    source = ", ".join(filter(None, (f"{len(result.labels)} images", about(result).text())))
    table = Table(title=f"{title}: {source}", title_justify="left")
    table.add_column("class")
    for name in ("n", "AUC", "AP", "recall"):
        table.add_column(name, justify="right")
    if any(notes):
        table.add_column("", style="dim")
    for k, name in enumerate(result.classes):
        note = [notes[k]] if any(notes) else []
        table.add_row(str(name), str(per.count[k]), *(_cell(column[k]) for column in columns), *note)
    table.add_section()
    macro = [
        _cell(nanmean(np.where(column < 0, np.nan, column))) for column in columns
    ]  # parity_rows gives -1 for an absent class
    table.add_row("macro average", str(per.count.sum()), *macro, style="bold")
    return table


def _cell(value: float) -> str:
    return "–" if np.isnan(value) or value < 0 else f"{value:.3f}"
