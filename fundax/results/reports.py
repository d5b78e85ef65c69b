"""Written reports beside the true ones, to be looked at: a page without network, and a contact sheet.

Both are drawn from evals/NAME.npz of a WrittenReports eval."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fundax.types import UserError

NEEDED = ("image", "written", "true", "names", "values")


# right, written though it is not in the true report, left out: a sign as well as a colour
MARKS = {"right": ("✓", "#009E73"), "extra": ("+", "#D55E00"), "missed": ("−", "#56606b")}


_LINE = 0.155  # inches of a line of the sheet's words


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:72rem;padding:0 1rem;color:#1c2126}
table{border-collapse:collapse;margin:.4rem 0 1rem}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #dde2e6}
td:first-child,th:first-child{text-align:left}.tables{display:flex;flex-wrap:wrap;gap:0 3rem;align-items:flex-start}
.case{display:flex;gap:1rem;border-top:1px solid #dde2e6;padding:1rem 0;break-inside:avoid}
.case img{width:11rem;height:11rem;object-fit:contain;background:#000;flex:none}
h4{margin:.1rem 0;font-size:.8rem;color:#56606b;font-weight:600}p{margin:0 0 .5rem}
.chip{display:inline-block;border:1px solid;border-radius:.8rem;padding:0 .6rem;margin:.1rem .3rem .1rem 0;font-size:.85rem}
@media(max-width:32rem){body{margin:1rem auto}td,th{padding:.15rem .3rem}
.case{flex-direction:column;gap:.5rem}.case img{width:9rem;height:9rem}}
@media print{body{max-width:none;padding:0;font-size:9.5pt}
.case img{width:7rem;height:7rem}tr{break-inside:avoid}*{print-color-adjust:exact}}
"""


def draw_reports(workdir: str | Path) -> list[Path]:
    """figures/NAME.html and NAME.png for every eval of written reports in a run; the paths written, perhaps none."""
    workdir, written = Path(workdir), []
    for file in sorted((workdir / "evals").glob("[!.]*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            if not set(NEEDED) <= set(stored):
                continue
            arrays = {key: stored[key] for key in stored}
        written.append(page(arrays, workdir / "figures" / f"{file.stem}.html", str(workdir.resolve().name)))
        written.append(sheet(arrays, workdir / "figures" / f"{file.stem}.png"))
    return written


def page(arrays: Mapping[str, np.ndarray], path: str | Path, title: str = "") -> Path:
    """One HTML file: the scores, how often each finding was right, and each image with both reports.

    Raises UserError where the arrays are not those of a WrittenReports eval. Returns the path.
    """
    _check(arrays)
    groups = _groups(arrays)
    tables = [_scores(arrays)] + [_table(name, arrays) for name in groups]
    cases = [_case(arrays, k, groups) for k in range(len(arrays["image"]))]
    head = html.escape(f"Reports of unseen patients: {title}".rstrip(": "))
    keys = ", ".join(f"{sign} {what}" for what, (sign, _) in MARKS.items())
    body = f"<h1>{head}</h1><div class=tables>{''.join(tables)}</div><p>Findings: {keys}.</p>{''.join(cases)}"
    text = (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{head}</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def sheet(arrays: Mapping[str, np.ndarray], path: str | Path, columns: int = 4, rows: int = 3) -> Path:
    """The first columns x rows images as a PNG, with both reports below. Returns the path; raises UserError as page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check(arrays)
    count = min(columns * rows, len(arrays["image"]))
    rows = -(-count // columns)
    words = [_words(arrays, k) for k in range(count)]
    lines = [max(_lines(words[k]) for k in range(r * columns, min((r + 1) * columns, count))) for r in range(rows)]
    heights = [inches for most in lines for inches in (3.2, most * _LINE)]  # a row of images, and of the words below
    figure = Figure(figsize=(3.5 * columns, sum(heights) + 0.25 * rows))
    FigureCanvasAgg(figure)
    whole = {"left": 0, "right": 1, "bottom": 0, "top": 1, "hspace": 0.08, "height_ratios": heights}
    grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw=whole)
    for axes in grid.ravel():
        axes.axis("off")
    for k in range(count):
        row, column = divmod(k, columns)
        grid[2 * row, column].imshow(arrays["image"][k], interpolation="nearest")
        _write(grid[2 * row + 1, column], words[k], lines[row])
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.15)
    return Path(path)


def _words(arrays: Mapping[str, np.ndarray], k: int) -> list[tuple[str, str]]:
    """What stands below image k, wrapped, each with its colour: both reports, and the findings."""
    found = _marked(arrays, k, _groups(arrays))
    marks = [f"{MARKS[kind][0]}\u00a0{name}".replace(" ", "\u00a0") for kind, names in found.items() for name in names]
    return [
        (textwrap.fill(f"written: {arrays['written'][k]}", 44), "#0072B2"),
        (textwrap.fill(f"true: {arrays['true'][k]}", 44), "#1c2126"),
        (textwrap.fill("  ".join(marks), 42), "#56606b"),
    ]


def _lines(words: list[tuple[str, str]]) -> float:
    return sum(said.count("\n") + 1.4 for said, _ in words)


def _write(axes: Any, words: list[tuple[str, str]], most: float) -> None:
    """The words from the top of an area that is `most` lines high."""
    at = 1.0
    for said, colour in words:
        axes.text(0, at, said, transform=axes.transAxes, va="top", fontsize=7.5, color=colour, parse_math=False)
        at -= (said.count("\n") + 1.4) / most


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    if missing := [key for key in NEEDED if key not in arrays]:
        raise UserError(f"no {', '.join(missing)} among the arrays; expected those of an eval of written reports")


def _groups(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [key.removesuffix("_count") for key in arrays if key.endswith("_count")]


def _marked(arrays: Mapping[str, np.ndarray], k: int, groups: list[str]) -> dict[str, list[str]]:
    """The findings of image k of all groups, as right, extra and missed."""

    def names(side: str) -> set[str]:
        return {name for group in groups for name in str(arrays[f"{group}_{side}"][k]).split("; ") if name}

    written, true = names("written"), names("true")
    return {"right": sorted(written & true), "extra": sorted(written - true), "missed": sorted(true - written)}


def _scores(arrays: Mapping[str, np.ndarray]) -> str:
    pairs = zip(arrays["names"], arrays["values"], strict=True)
    rows = "".join(f"<tr><td>{html.escape(str(name))}<td>{value:.3f}" for name, value in pairs)
    return f"<table><tr><th>score<th>{rows}</table>"


def _table(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    rows = []
    for finding, (right, extra, missed) in zip(arrays[name], arrays[f"{name}_count"], strict=True):
        f1 = 2 * right / max(2 * right + extra + missed, 1)
        rows.append(f"<tr><td>{html.escape(str(finding))}<td>{right}<td>{extra}<td>{missed}<td>{f1:.2f}")
    return f"<table><tr><th>{html.escape(name)}<th>right<th>extra<th>missed<th>F1{''.join(rows)}</table>"


def _case(arrays: Mapping[str, np.ndarray], k: int, groups: list[str]) -> str:
    chips = [
        f'<span class=chip style="color:{MARKS[kind][1]}">{MARKS[kind][0]} {html.escape(name)}</span>'
        for kind, names in _marked(arrays, k, groups).items()
        for name in names
    ]
    texts = "".join(f"<h4>{what}</h4><p>{html.escape(str(arrays[what][k]))}</p>" for what in ("written", "true"))
    return f'<div class=case><img alt="image {k + 1}" src="{_encoded(arrays["image"][k])}"><div>{texts}{"".join(chips)}</div></div>'


def _encoded(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
