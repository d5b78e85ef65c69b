"""Generated and reference reports next to each other, on an HTML page and as a contact sheet."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from fundax.evals.kinds import ReportResult
from fundax.results.blocks import Block, Case, Columns, Reports, Section, Table, Text, picture, plain, write

# Sign and colour of findings that are correct, only in the generated report, or only in the reference.
MARKS = {"correct": ("✓", "#007A5A"), "extra": ("+", "#B84A00"), "missed": ("−", "#56606b")}
_LINE = 0.155  # height of a line of text on the sheet in inches


def blocks(result: ReportResult) -> list[Block]:
    """Blocks with the scores, the counts of each finding, and each image with both reports."""
    scores = [(name, plain(value)) for name, value in result.metrics.items()]
    tables: list[Block] = [Table(("score", "value"), scores)]
    tables += [_findings(group, result) for group in dict.fromkeys(map(str, _or_empty(result.finding_group)))]
    keys = ", ".join(f"{sign} {kind}" for kind, (sign, _) in MARKS.items())
    return [
        Columns(tables),
        Text(f"Findings: {keys}."),
        Reports([_case(result, k) for k in range(len(result.image))]),
    ]


def page(result: ReportResult, path: str | Path, title: str = "") -> Path:
    """Write the blocks as an HTML file. Returns the path."""
    head = f"Reports of unseen patients: {title}".rstrip(": ")
    return write(path, head, "", [Section("Reports", blocks(result))])


def sheet(result: ReportResult, path: str | Path, columns: int = 4, rows: int = 3) -> Path:
    """Write the first columns x rows images as a PNG file, with both reports below. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(columns * rows, len(result.image))
    rows = -(-count // columns)
    words = [_words(result, k) for k in range(count)]
    lines = [max(_lines(words[k]) for k in range(r * columns, min((r + 1) * columns, count))) for r in range(rows)]
    heights = [
        inches for most in lines for inches in (3.2, most * _LINE)
    ]  # of a row of images, and of the texts below it
    figure = Figure(figsize=(3.5 * columns, sum(heights) + 0.25 * rows))
    FigureCanvasAgg(figure)
    whole = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": 0.08, "height_ratios": heights}
    grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw=whole)
    for axes in grid.ravel():
        axes.axis("off")
    for k in range(count):
        row, column = divmod(k, columns)
        grid[2 * row, column].imshow(result.image[k], interpolation="nearest")
        _write(grid[2 * row + 1, column], words[k], lines[row])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.15)
    return Path(path)


def _words(result: ReportResult, k: int) -> list[tuple[str, str]]:
    """The wrapped texts below image k with their colours: both reports and the findings."""
    marked = _marked(result, k)
    marks = [f"{MARKS[kind][0]}\u00a0{name}".replace(" ", "\u00a0") for kind, names in marked.items() for name in names]
    return [
        (textwrap.fill(f"generated: {result.written[k]}", 44), "#0072B2"),
        (textwrap.fill(f"reference: {result.true[k]}", 44), "#1c2126"),
        (textwrap.fill("  ".join(marks), 42), "#56606b"),
    ]


def _lines(words: list[tuple[str, str]]) -> float:
    return sum(text.count("\n") + 1.4 for text, _ in words)


def _write(axes: Any, words: list[tuple[str, str]], most: float) -> None:
    """Write the texts from the top of an area that is `most` lines high."""
    at = 1.0
    for text, colour in words:
        axes.text(0, at, text, transform=axes.transAxes, va="top", fontsize=7.5, color=colour, parse_math=False)
        at -= (text.count("\n") + 1.4) / most


def _or_empty(array: Any) -> Any:
    return () if array is None else array


def _marked(result: ReportResult, k: int) -> dict[str, list[str]]:
    """The correct, extra and missed findings of image k."""
    if result.written_findings is None or result.true_findings is None:
        return {}
    lists = (str(side[k]).split("; ") for side in (result.written_findings, result.true_findings))
    written, true = ({name for name in names if name} for names in lists)
    return {"correct": sorted(written & true), "extra": sorted(written - true), "missed": sorted(true - written)}


def _findings(group: str, result: ReportResult) -> Table:
    rows = []
    for own_group, name, counts in zip(
        *map(_or_empty, (result.finding_group, result.finding, result.finding_count)), strict=True
    ):
        if str(own_group) == group:
            correct, extra, missed = map(int, counts)
            rows.append(
                (str(name), correct, extra, missed, f"{2 * correct / max(2 * correct + extra + missed, 1):.2f}")
            )
    return Table((group, "correct", "extra", "missed", "F1"), rows)


def _case(result: ReportResult, k: int) -> Case:
    marks = [
        (f"{MARKS[kind][0]} {name}", MARKS[kind][1]) for kind, names in _marked(result, k).items() for name in names
    ]
    return Case(
        [(picture(result.image[k]), f"image {k + 1}")], str(result.written[k]), str(result.true[k]), marks=marks
    )
