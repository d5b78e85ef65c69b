"""Tables for the console."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from fundax.evals.kinds import ClassificationResult
from fundax.metrics.classification import nanmean
from fundax.results.about import about


def by_class(result: ClassificationResult, title: str) -> Table | None:
    """Per class the number of images, AUC, average precision and recall, then the macro averages.

    An undefined value is a dash, with the reason beside it. None for a result that kept no metrics by class.
    """
    found = result.by_class
    if found is None or found.count is None or found.auc is None or found.ap is None or found.recall is None:
        return None
    columns, notes = (found.auc, found.ap, found.recall), [] if found.note is None else list(map(str, found.note))
    of = ", ".join(filter(None, (f"{len(result.labels)} images", about(result).text())))
    table = Table(title=f"{title}: {of}", title_justify="left")
    table.add_column("class")
    for name in ("n", "AUC", "AP", "recall"):
        table.add_column(name, justify="right")
    if any(notes):
        table.add_column("", style="dim")
    for k, name in enumerate(result.classes):
        note = [notes[k]] if any(notes) else []
        table.add_row(str(name), str(found.count[k]), *(_cell(column[k]) for column in columns), *note)
    table.add_section()
    macro = [_cell(nanmean(np.where(column < 0, np.nan, column))) for column in columns]  # -1: absent, by parity_rows
    table.add_row("macro average", str(found.count.sum()), *macro, style="bold")
    return table


def _cell(value: float) -> str:
    return "–" if np.isnan(value) or value < 0 else f"{value:.3f}"
