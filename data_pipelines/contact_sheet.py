"""Contact sheets: the images of a source in one picture, with captions."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.images.decode import load
from data_pipelines.records import EYES, MODALITIES, DataError, Record, Source, View

MOST_PIXELS = 2**15  # maximum width and height of a sheet
_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")


_GAP, _CAPTION, _HEAD = 8, 62, 34  # pixels between cells, below a cell, and above a visit


def contact_sheet(
    source: Source, out: str | Path, count: int = 24, columns: int = 6, cell: int = 224, start: int = 0
) -> Path:
    """Draw `count` records of a source, starting at row `start`; each view is a cell with a caption below.

    Cells are `cell` pixels wide. Records with one view are drawn in lines of `columns` cells. If any record has several
    views (a visit), each record is drawn in a line: a header with its report, and a column for each modality and eye, which
    is blank if the view is missing. The suffix of `out` is the format: .png, .jpg, .pdf, .svg, .tif or .webp. Returns the
    path. Raises DataError for another suffix, if the source has no such row, or if a view cannot be read.
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
    classes = tuple(getattr(source, "classes", ()))
    records = {row: source[row] for row in range(start, min(len(source), start + count))}
    visits = any(len(record.views) > 1 for record in records.values())
    images = sum(len(record.views) for record in records.values())
    down = len(records) if visits else -(-images // columns)
    if down * (cell + _CAPTION) > MOST_PIXELS or columns * (cell + _GAP) > MOST_PIXELS:
        raise DataError(
            f"contact sheet: {images} images in {columns} columns of {cell} pixels are more than {MOST_PIXELS} pixels high "
            "or wide; ask for fewer with count"
        )
    sheet = _visits(records, classes, cell) if visits else _images(records, classes, columns, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(sheet, cell, path)
    return path


class _Sheet(NamedTuple):
    """The content of a sheet: size in pixels, images and captions by (left, top), and headers by their top."""

    size: tuple[int, int]
    images: dict[tuple[int, int], np.ndarray]
    captions: dict[tuple[int, int], str]
    heads: dict[int, str]


def _images(records: Mapping[int, Record], classes: tuple[str, ...], columns: int, cell: int) -> _Sheet:
    """Lay out single images in lines of `columns` cells."""
    images, captions = {}, {}
    for k, (row, record) in enumerate((row, record) for row, record in records.items() if record.views):
        at = k % columns * (cell + _GAP), k // columns * (cell + _CAPTION)
        images[at], captions[at] = _pixels(record, record.views[0], row, cell), _words(record, 0, row, classes)
    columns = min(columns, max(len(images), 1))
    return _Sheet((columns * (cell + _GAP), -(-len(images) // columns) * (cell + _CAPTION)), images, captions, {})


def _visits(records: Mapping[int, Record], classes: tuple[str, ...], cell: int) -> _Sheet:
    """Lay out a line for each visit."""
    slots = sorted({slot for record in records.values() for slot in _slots(record)}, key=_order)
    tall = cell + _CAPTION + _HEAD
    images, captions, heads = {}, {}, {}
    for line, (row, record) in enumerate(records.items()):
        heads[line * tall] = _head(record, row, classes)
        for slot, view in _slots(record).items():
            at = slots.index(slot) * (cell + _GAP), line * tall + _HEAD
            images[at] = _pixels(record, view, row, cell)
            label = _label(record, view, classes)
            captions[at] = " · ".join(filter(None, (view.modality, view.eye, label))) + f"\n{view.report}"
        for slot in slots:
            at = slots.index(slot) * (cell + _GAP), line * tall + _HEAD
            captions.setdefault(at, " ".join(("no", *filter(None, slot[:2]))))
    return _Sheet((len(slots) * (cell + _GAP), len(records) * tall), images, captions, heads)


def _slots(record: Record) -> dict[tuple[str, str, int], View]:
    """The views of a record by modality, eye and the number of earlier views with the same modality and eye."""
    found: dict[tuple[str, str, int], View] = {}
    for view in record.views:
        number = next(k for k in itertools.count() if (view.modality, view.eye, k) not in found)
        found[view.modality, view.eye, number] = view
    return found


def _order(slot: tuple[str, str, int]) -> tuple[int, str, int, int]:
    modality, eye, number = slot
    known = MODALITIES.index(modality) if modality in MODALITIES else len(MODALITIES)
    return known, modality, EYES.index(eye), number


def _head(record: Record, row: int, classes: tuple[str, ...]) -> str:
    """The header of a visit: patient, day, class, attributes and report."""
    dated = record.day > 366 * 1800  # a date counts days from the year 1
    day = datetime.date.fromordinal(record.day).isoformat() if dated else f"day {record.day}" * bool(record.day)
    label = _class(record.targets.get("label"), classes)
    attributes = [f"{name} {value}" for name, value in record.attributes.items() if value]
    head = " · ".join(filter(None, (f"#{row}", record.patient, day, label, *attributes)))
    return f"{head}\n{record.report}" if record.report else head


def _pixels(record: Record, view: View, row: int, cell: int) -> np.ndarray:
    """The view, shrunk to fit into a cell."""
    try:
        picture = Image.fromarray(load(view.image, cell))
    except DataError as error:
        raise DataError(f"{record.where or f'row {row}'}: {error}") from error
    picture.thumbnail((cell, cell))
    return np.asarray(picture)


def _label(record: Record, view: View, classes: tuple[str, ...]) -> str:
    """The class of the view, or of its eye, if the record has one, otherwise the class of the record."""
    known = view.targets.get("label", record.targets.get(f"label_{view.eye}", record.targets.get("label")))
    return _class(known, classes)


def _class(value: Any, classes: tuple[str, ...]) -> str:
    if value is None or np.ndim(value) or (int(value) < 0 and classes):
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
    """Names of the fonts: matplotlib's default, then the installed Chinese fonts."""
    from matplotlib import font_manager

    known = {f.name for f in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CHINESE if name in known)]


def _legible(text: str, fonts: list[str]) -> str:
    """Replace Chinese lines by a note if no Chinese font is installed; avoids rendering missing glyphs as boxes."""
    if len(fonts) > 1 or not any(ord(c) > 0x2E80 for c in text):
        return text
    kept = [line for line in text.split("\n") if not any(ord(c) > 0x2E80 for c in line)]
    return "\n".join([*kept, "(Chinese text; this machine has no font for it)"])


def _draw(sheet: _Sheet, cell: int, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (width, height), dpi, fonts = sheet.size, 100, _fonts()
    words = {"fontsize": 6.5, "va": "top", "linespacing": 1.1}
    with rc_context({"font.family": fonts, "text.parse_math": False}):
        figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for (left, top), pixels in sheet.images.items():
            place = ((left + _GAP / 2) / width, 1 - (top + cell) / height, cell / width, cell / height)
            axes = figure.add_axes(place)
            axes.imshow(pixels, interpolation="nearest" if pixels.shape[0] < cell else "antialiased")
            axes.set_axis_off()
        for (left, top), text in sheet.captions.items():
            fitted = _fit(_legible(text, fonts), int(cell / 5.4), 5)
            figure.text((left + _GAP / 2) / width, 1 - (top + cell + 1.5) / height, fitted, **words)
        for top, text in sheet.heads.items():
            fitted = _fit(_legible(text, fonts), int(width / 5.4), 3)
            figure.text(_GAP / 2 / width, 1 - (top + 3) / height, fitted, **words)
        canvas.print_figure(str(path), dpi=dpi, facecolor="white")
