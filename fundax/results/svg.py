"""Curves as inline SVG, small enough to stand a dozen on a page, sharp in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fundax.results.html import Html, joined, tag

# Okabe and Ito's colours, told apart with any colour vision; lines also differ in their dashes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


DASHES = ("", "6 3", "2 2", "8 3 2 3")


WIDTH, HEIGHT = 236, 200


LEFT, RIGHT, TOP, BOTTOM = 40, 8, 22, 34  # margins


MOST = 160  # points of a line


@dataclass(frozen=True)
class Line:
    """x, y f64 [n]; style is its place in COLOURS and DASHES; dots mark each point."""

    x: np.ndarray
    y: np.ndarray
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """Axes: their limits and words; diagonal draws the line of no skill, or of agreement."""

    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    x_label: str = ""
    y_label: str = ""
    diagonal: bool = False
    level: float = math.nan  # a horizontal line of no skill


def panel(title: str, lines: Sequence[Line], frame: Frame, notes: Sequence[str] = ()) -> Html:
    """One set of axes with its lines; notes stand at the lower right, in the lines' colours where there are several.

    Points that are not finite are left out.
    """
    across, up = _scale(frame.x, LEFT, WIDTH - RIGHT), _scale(frame.y, HEIGHT - BOTTOM, TOP)
    grid = [_tick_x(value, across(value)) for value in ticks(*frame.x)]
    grid += [_tick_y(value, up(value)) for value in ticks(*frame.y)]
    level = {"fill": "none", "stroke": "#8a8a8a", "stroke_dasharray": "2 3"}
    if frame.diagonal:
        ends = max(frame.x[0], frame.y[0]), min(frame.x[1], frame.y[1])
        grid.append(tag("path", d=_path(np.array([across(e) for e in ends]), np.array([up(e) for e in ends])), **level))
    if not math.isnan(frame.level):
        ends = np.array([across(frame.x[0]), across(frame.x[1])])
        grid.append(tag("path", d=_path(ends, np.full(2, up(frame.level))), **level))
    drawn = [_drawn(line, across, up) for line in lines]
    said = [
        tag("text", note, x=WIDTH - RIGHT - 4, y=HEIGHT - BOTTOM - 6 - 12 * (len(notes) - 1 - k), text_anchor="end",
            class_="note", fill=COLOURS[k % len(COLOURS)] if len(notes) > 1 and len(lines) > 1 else "#1c2126")
        for k, note in enumerate(notes)
    ]  # fmt: skip
    words = [
        tag("text", _short(title, 35), tag("title", title), x=2, y=12, class_="title"),
        tag("text", frame.x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"),
        tag("text", frame.y_label, transform=f"translate(9 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)",
            text_anchor="middle"),
    ]  # fmt: skip
    box = tag("path", d=f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}", fill="none", stroke="#707070")
    label = f"{title}: {frame.y_label} over {frame.x_label}. {' '.join(notes)}"
    return tag("svg", *grid, box, *drawn, *said, *words, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def key(names: Sequence[str]) -> Html:
    """What the lines of all panels stand for."""
    entries = [
        tag("span", tag("svg", tag("path", d="M0 6H26", fill="none", **_stroke(k)), viewBox="0 0 26 12"), name)
        for k, name in enumerate(names)
    ]
    return tag("p", *entries, class_="key")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from low to high."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    round_ones = (1, 2, 2.5, 5, 10) if span < 3 else (1, 2, 5, 10)  # 132.5 takes too much room
    step = unit * min(round_ones, key=lambda m: abs(m * unit - rough))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points, evenly along the line as drawn in a unit square, both ends kept."""
    if len(x) <= most:
        return x, y
    spans = [max(float(np.ptp(v)), 1e-12) for v in (x, y)]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) / spans[0] + np.abs(np.diff(y)) / spans[1])])
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], most)))
    kept = np.unique(np.concatenate([[0], kept, [len(x) - 1]]))
    return x[kept], y[kept]


def _scale(ends: tuple[float, float], first: float, last: float):
    span = ends[1] - ends[0] or 1.0
    return lambda value: first + (value - ends[0]) / span * (last - first)


def _stroke(style: int) -> dict[str, str]:
    found = {"stroke": COLOURS[style % len(COLOURS)], "stroke_width": "1.8"}
    dash = DASHES[style % len(DASHES)]
    return found | ({"stroke_dasharray": dash} if dash else {})


def _drawn(line: Line, across, up) -> Html:
    finite = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = thin(np.asarray(line.x, np.float64)[finite], np.asarray(line.y, np.float64)[finite])
    if not len(x):
        return Html("")
    at_x, at_y = across(x), up(y)
    colour = COLOURS[line.style % len(COLOURS)]
    dots = [tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r="2.2", fill=colour) for a, b in zip(at_x, at_y, strict=True)]
    path = tag("path", d=_path(at_x, at_y), fill="none", **_stroke(line.style))
    return joined((path, *(dots if line.dots or len(x) == 1 else ())))


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _tick_x(value: float, at: float) -> Html:
    line = tag("path", d=f"M{at:.1f} {TOP}V{HEIGHT - BOTTOM}", stroke="#e4e4e4")
    return joined((line, tag("text", _figure(value), x=f"{at:.1f}", y=HEIGHT - BOTTOM + 12, text_anchor="middle")))


def _tick_y(value: float, at: float) -> Html:
    line = tag("path", d=f"M{LEFT} {at:.1f}H{WIDTH - RIGHT}", stroke="#e4e4e4")
    return joined((line, tag("text", _figure(value), x=LEFT - 4, y=f"{at + 3:.1f}", text_anchor="end")))


def _figure(value: float) -> str:
    """0.002 as 2e-3 and 20000 as 20k: what fits beside an axis."""
    if value and abs(value) < 0.01:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 6):g}"


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
