"""Show a finished run: print tables on the console and draw figures into its folder."""

from __future__ import annotations

from pathlib import Path

from fundax.results import figures
from fundax.results.kinds import KINDS, draw
from fundax.results.read import read_curves, read_result, result_files
from fundax.runtime import log
from fundax.runtime.remote import shown
from fundax.types import UserError


def draw_run(workdir: str | Path) -> list[Path]:
    """Draw the training curves of a run and the figures of its evaluations into figures/. Returns their paths.

    Raises UserError if there is nothing to draw.
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
    """Print the tables of the evaluations of a run, draw its figures, and print the paths of the figures."""
    for file in result_files(workdir):
        result = read_result(file)
        if (console := KINDS[result.kind].console) is not None and (table := console(result, file.stem)) is not None:
            log.console(stderr=False, soft_wrap=False).print(table)
    for path in draw_run(workdir):
        print(str(path).replace(str(workdir), shown(workdir)))
