"""Contact sheets: the images of a source with captions, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.images.decode import load
from data_pipelines.records import DataError, Record, Source, View

MOST_PIXELS = 2**15  # of a side of a sheet
_TEXT, _GAP = 62, 8  # pixels below and between cells
_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")


def contact_sheet(
    source: Source, out: str | Path, count: int = 24, columns: int = 6, cell: int = 224, start: int = 0
) -> Path:
    """Draw `count` records of a source, starting at row `start`; each view is a cell with a caption below.

    Cells are `cell` pixels wide, and the views of a record are adjacent. The suffix of `out` is the format: .png, .jpg,
    .pdf, .svg, .tif or .webp. Returns the path. Raises DataError for another suffix, if the source has no such row, or
    if a view cannot be read.
    """
    path = Path(out)
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{out}: expected a file name that ends in {', '.join(_SUFFIXES)}")
    if not len(source):
        raise DataError("contact sheet: the source has no rows")
    if min(count, columns, cell) < 1:
        raise DataError(f"contact sheet: count={count}, columns={columns}, cell={cell}: expected at least 1 each")
    if not 0 <= start < len(source):
        raise DataError(f"contact sheet: start={start}, the source has the rows 0 to {len(source) - 1}")
    classes, cells = tuple(getattr(source, "classes", ())), []
    for row in range(start, min(len(source), start + count)):
        record = source[row]
        rows = -(-(len(cells) + len(record.views)) // columns)
        if rows * (cell + _TEXT) > MOST_PIXELS or columns * (cell + _GAP) > MOST_PIXELS:
            raise DataError(
                f"contact sheet: {len(cells) + len(record.views)} images in {columns} columns of {cell} pixels are more than "
                f"{MOST_PIXELS} pixels high or wide; ask for fewer with count"
            )
        for k, view in enumerate(record.views):
            cells.append((_pixels(record, view, row, cell), _words(record, k, row, classes)))
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(cells, min(columns, max(len(cells), 1)), cell, path)
    return path


def _pixels(record: Record, view: View, row: int, cell: int) -> np.ndarray:
    """The view, shrunk to fit into a cell."""
    try:
        picture = Image.fromarray(load(view.image, cell))
    except DataError as error:
        raise DataError(f"{record.where or f'row {row}'}: {error}") from error
    picture.thumbnail((cell, cell))
    return np.asarray(picture)


def _label(record: Record, view: View, classes: tuple[str, ...]) -> str:
    """The class of the view's eye if the record has one, otherwise the class of the record."""
    value: Any = record.targets.get(f"label_{view.eye}", record.targets.get("label"))
    if value is None or np.ndim(value):
        return ""
    return classes[int(value)] if 0 <= int(value) < len(classes) else f"label {int(value)}"


def _words(record: Record, k: int, row: int, classes: tuple[str, ...]) -> str:
    view = record.views[k]
    day = f"day {record.day}" if record.day else ""
    head = " · ".join(w for w in (f"#{row}", view.modality, view.eye, day, _label(record, view, classes)) if w)
    return f"{head}\n{record.report}" if record.report and k == 0 else head


def _fit(text: str, width: int, lines: int) -> str:
    """Wrap text into at most `lines` lines of `width` columns; a Chinese character takes two columns."""
    out: list[str] = []
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text[: 2 * width * lines])
    for part in text.split("\n"):
        line, used = "", 0
        for word in _split(part):
            wide = sum(2 if ord(c) > 0x2E80 else 1 for c in word)
            if used + wide > width and line:
                out.append(line.rstrip())
                line, used = "", 0
            while wide > width:  # a word that is longer than a line
                out.append(word[:width])
                word, wide = word[width:], wide - width
            line, used = line + word, used + wide
        out.append(line.rstrip())
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1][: max(1, width - 2)] + " …"]
    return "\n".join(out)


def _split(text: str) -> list[str]:
    """Split text into words with their trailing space, and Chinese text into characters."""
    out = [""]
    for c in text:
        if ord(c) > 0x2E80:
            out += [c, ""]
        else:
            out[-1] += c
            if c == " ":
                out.append("")
    return [w for w in out if w]


_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "SimHei",
    "Microsoft YaHei",
)


def _fonts() -> list[str]:
    """Fonts to draw with: matplotlib's own, then those of the usual Chinese fonts that are installed."""
    from matplotlib import font_manager

    known = {f.name for f in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CHINESE if name in known)]


def _legible(text: str, fonts: list[str]) -> str:
    """Replace Chinese lines by a note if no Chinese font is installed; avoids rendering missing glyphs as boxes."""
    if len(fonts) > 1 or not any(ord(c) > 0x2E80 for c in text):
        return text
    kept = [line for line in text.split("\n") if not any(ord(c) > 0x2E80 for c in line)]
    return "\n".join([*kept, "(Chinese text; this machine has no font for it)"])


def _draw(cells: list[tuple[np.ndarray, str]], columns: int, cell: int, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down, dpi, text = -(-len(cells) // columns), 100, _TEXT
    fonts = _fonts()
    with rc_context({"font.family": fonts, "text.parse_math": False}):
        figure = Figure(figsize=(columns * (cell + _GAP) / dpi, down * (cell + text) / dpi), dpi=dpi, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for k, (pixels, words) in enumerate(cells):
            left, top = (k % columns) / columns, 1 - (k // columns) / down
            share = cell / (cell + text) / down
            axes = figure.add_axes(
                (left + 0.5 * _GAP / (cell + _GAP) / columns, top - share, cell / (cell + _GAP) / columns, share)
            )
            axes.imshow(pixels, interpolation="nearest" if pixels.shape[0] < cell else "antialiased")
            axes.set_axis_off()
            size = 6.5
            figure.text(
                left + 0.006 / columns,
                top - share - 0.02 / down,
                _fit(_legible(words, fonts), int(cell / 5.4), 5),
                fontsize=size,
                va="top",
                linespacing=1.1,
            )
        canvas.print_figure(str(path), dpi=dpi, facecolor="white")
