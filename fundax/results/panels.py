"""Plotting with matplotlib: panels of curves, figures as PNG files, and panels as SVG for the report page.

Matplotlib is imported at the first call. No display is used, and no global figure or setting is changed."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's colours, which are distinguishable with any colour vision. More lines also differ in their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
POINTS = 160  # maximum number of points of a line on the page
LONGEST = 120  # letters of a name in a figure

CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB", "Heiti SC"),
    *("Microsoft YaHei", "SimHei", "Droid Sans Fallback", "Arial Unicode MS"),
)


@dataclass(frozen=True)
class Line:
    """A line through x, y f64 [n]; `style` is an index of colours and dashes, or -1 for a grey line in the background."""

    x: np.ndarray
    y: np.ndarray
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """Limits and labels of axes. `diagonal` draws the diagonal and `level` a horizontal line, as references."""

    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    x_label: str = ""
    y_label: str = ""
    diagonal: bool = False
    level: float = math.nan


def panel(axes: Any, lines: Sequence[Line], frame: Frame, notes: Sequence[str] = ()) -> None:
    """Draw lines on axes. Notes are written at the lower right, in the colours of the lines if there are several."""
    grey = {"color": "#8a8a8a", "linewidth": 0.9, "linestyle": (0, (2, 3)), "zorder": 1}
    if frame.diagonal:
        ends = max(frame.x[0], frame.y[0]), min(frame.x[1], frame.y[1])
        axes.plot(ends, ends, **grey)
    if not math.isnan(frame.level):
        axes.plot(frame.x, (frame.level, frame.level), **grey)
    for line in lines:
        finite = np.isfinite(line.x) & np.isfinite(line.y)
        x, y = thin(np.asarray(line.x, np.float64)[finite], np.asarray(line.y, np.float64)[finite])
        shown = {"color": "#d4d4d4", "linewidth": 0.7} if line.style < 0 else style(line.style)
        axes.plot(x, y, marker="o" if line.dots or len(x) == 1 else "", markersize=3, **shown)
    coloured = len(notes) > 1 and len(lines) > 1
    for k, note in enumerate(notes):
        at = 0.04 + 0.1 * (len(notes) - 1 - k)
        colour = COLOURS[k % len(COLOURS)] if coloured else "#1c2126"
        axes.text(0.97, at, note, transform=axes.transAxes, ha="right", va="bottom", color=colour, fontweight="bold")
    room = [0.02 * (high - low) for low, high in (frame.x, frame.y)]
    axes.set_xlim(frame.x[0] - room[0], frame.x[1] + room[0])
    axes.set_ylim(frame.y[0] - room[1], frame.y[1] + room[1])
    axes.set(xlabel=frame.x_label, ylabel=frame.y_label)
    plain(axes)


def style(k: int) -> dict[str, Any]:
    """Colour and dashes of line k."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": DASHES[(k if k < len(DASHES) else k // len(COLOURS)) % len(DASHES)],
        "linewidth": 1.6,
    }


def plain(axes: Any) -> None:
    """Draw a light grid behind the data, and remove the frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def thin(x: np.ndarray, y: np.ndarray, most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a line to about `most` points at equal distances in a unit square, including both ends."""
    if len(x) <= most:
        return x, y
    spans = [max(float(np.ptp(v)), 1e-12) for v in (x, y)]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) / spans[0] + np.abs(np.diff(y)) / spans[1])])
    kept = np.unique([0, *np.searchsorted(along, np.linspace(0, along[-1], most)), len(x) - 1])
    return x[kept], y[kept]


def cjk_font() -> str | None:
    """The name of an installed font with Chinese characters, or None."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in installed), None)


@contextmanager
def png(
    path: str | Path, size: tuple[float, float], names: Sequence[str] = (), about: str = ""
) -> Iterator[tuple[Any, list[str]]]:
    """Context of a figure that is saved as a PNG file on exit, and of `names` for the installed fonts.

    `about`, the data, part and step, is written below the figure. If no font has Chinese characters, Chinese names are
    replaced by "class 0", "class 1", ..., and a note is added.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    font = cjk_font()
    foreign = [not name.isascii() and any(sign >= "\u2e80" for sign in name) for name in names]
    shown = [f"class {k}" if font is None and foreign[k] else name for k, name in enumerate(names)]
    lost = shown != list(names)
    with _settings(9, {"font.family": ["DejaVu Sans", *([font] if font else [])]}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield (
            figure,
            [textwrap.fill(textwrap.shorten(name, LONGEST, placeholder=" …") or name[:LONGEST], 26) for name in shown],
        )
        notes = [textwrap.fill(about, 110)] if about else []
        if lost:
            notes.append("No font with Chinese characters is installed, so classes are numbered from 0.")
        if notes:
            figure.text(0.01, -0.02, "\n".join(notes), fontsize=7.5, color="#606060", va="top")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)


def svg(draw: Callable[[Any], None]) -> str:
    """Draw a small panel as SVG for an HTML page. Text remains text, and equal panels give equal bytes.

    `draw` is called with the axes. Names from a run must be written into the page around the panel, where they are escaped
    and all scripts can be displayed; the panel has only fixed labels and numbers.
    """
    import io

    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    bare = {"figure.facecolor": "none", "axes.facecolor": "none", "xtick.major.size": 0, "ytick.major.size": 0}
    with _settings(7.5, {"svg.fonttype": "none", "svg.hashsalt": "fundax", "font.family": ["DejaVu Sans"]} | bare):
        figure = Figure(figsize=(2.6, 2.1))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.17, 0.19, 0.8, 0.78))
        axes.locator_params(nbins=4)
        draw(axes)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _smaller(file.getvalue())


@contextmanager
def _settings(size: float, more: dict[str, Any]) -> Iterator[None]:
    import matplotlib

    common: Any = {
        "font.size": size,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.edgecolor": "#808080",
        "text.parse_math": False,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(common | more):
        yield


_NUMBERS = re.compile(r' (d|x|y|transform)="[^"]*"')


def _smaller(text: str) -> str:
    """Reduce an SVG to a third of its size: remove prologue, name spaces, group names, fonts and digits below 0.01."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r" font-family: [^;\"]*;?| transform=\"rotate\(-0 [^)]*\)\"", "", text)
    text = _NUMBERS.sub(lambda match: re.sub(r"\.(\d\d)\d+", r".\1", match[0]), text)
    return re.sub(r"\s*\n\s*(?=[<\"])|(?<=>)\s+(?=<)", "", text).replace("\n", " ").strip()
