"""What a finished run shows: tables on the console, and figures in its folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fundax.results import figures
from fundax.results.kinds import KINDS, draw
from fundax.results.read import read_curves, read_result, result_files
from fundax.runtime.remote import shown
from fundax.types import UserError


def draw_run(workdir: str | Path) -> list[Path]:
    """Draw a run's training curves and the figures of its evaluations into figures/. Returns the paths written.

    Raises UserError where there is nothing to draw.
    """
    workdir = Path(workdir)
    folder, metrics, files = workdir / "figures", workdir / "metrics.jsonl", result_files(workdir)
    if not files and not metrics.exists():
        raise UserError(f"{workdir}: neither metrics.jsonl nor evals/*.npz; expected the folder of a run")
    written = []
    if metrics.exists() and figures.panels_of(read_curves(metrics)):  # a run that was only evaluated has no curves
        written.append(figures.curves(metrics, folder / "training_curves.png"))
    for file in files:
        written += draw(read_result(file), folder, file.stem)
    return written


def show(workdir: str | Path) -> None:
    """Print the tables of a run's evaluations, draw its figures, and print their paths."""
    for file in result_files(workdir):
        result = read_result(file)
        if (console := KINDS[result.kind].console) is not None and (table := console(result, file.stem)) is not None:
            Console().print(table)
    for path in draw_run(workdir):
        print(str(path).replace(str(workdir), shown(workdir)))
