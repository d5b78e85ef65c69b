"""The blocks of a report page: headings, tables, panels and cases as plain data, rendered by the template page.html.

The template escapes all text, so that names from a file cannot become markup. A page is a single file without scripts or
external requests."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fundax.metrics.statistics import Estimate
from fundax.types import UserError

MOST = 5_000_000  # bytes of a page


@dataclass(frozen=True)
class Cell:
    """A table cell: text with a smaller line below. `kind` is "" (plain), "value" (bold), "blank" or "differs" (marked)."""

    text: str
    small: str = ""
    kind: str = ""


def number(estimate: Estimate, digits: int = 3) -> Cell:
    """A value with its interval below, or a dash with the reason why it is undefined."""
    if not estimate.defined:
        return Cell("–", estimate.note or "undefined", "blank")
    if not np.isnan(estimate.low):
        return Cell(f"{estimate.value:.{digits}f}", f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}", "value")
    return Cell(f"{estimate.value:.{digits}f}", estimate.note, "value")


def plain(value: float, digits: int = 3) -> Cell:
    """A number without an interval, or a dash."""
    return Cell("–", kind="blank") if np.isnan(value) else Cell(f"{value:.{digits}f}")


class Block:
    """Base class of blocks; `block` is the name of the template macro that renders it."""

    block: ClassVar[str]


@dataclass(frozen=True)
class Heading(Block):
    """A heading inside a section."""

    block = "heading"
    text: str


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; `soft` for notes."""

    block = "text"
    text: str
    soft: bool = True


@dataclass(frozen=True)
class Table(Block):
    """A table; the first column has the names of the rows. `kind="words"` aligns the cells to the left."""

    block = "table"
    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Matrix(Block):
    """A confusion matrix: names of the true classes, and (count, share of the row, fill, text colour) of each cell."""

    block = "matrix"
    caption: str
    names: Sequence[str]
    cells: Sequence[Sequence[tuple[int, float, str, str]]]


@dataclass(frozen=True)
class Panels(Block):
    """Small plots (title, SVG, description) in a row; `runs` are the names of the lines with their CSS styles."""

    block = "panels"
    panels: Sequence[tuple[str, str, str]]
    runs: Sequence[tuple[str, str]] = ()
    few: bool = False


@dataclass(frozen=True)
class Columns(Block):
    """Blocks placed next to each other if there is room."""

    block = "columns"
    parts: Sequence[Block]


@dataclass(frozen=True)
class Case:
    """Images (source, description) below each other, with a title and a text below."""

    images: Sequence[tuple[str, str]]
    title: str
    words: str
    row: str = ""
    marks: Sequence[tuple[str, str]] = ()  # (text, colour) of findings


@dataclass(frozen=True)
class Gallery(Block):
    """Groups of cases, each with a title; `broad` if the images are wide."""

    block = "gallery"
    groups: Sequence[tuple[str, Sequence[Case]]]
    broad: bool = False
    note: str = ""


@dataclass(frozen=True)
class Reports(Block):
    """Cases with generated and reference reports."""

    block = "reports"
    cases: Sequence[Case]


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]


def picture(image: np.ndarray, quality: int = 85) -> str:
    """Encode an image u8 [H W 3] or [H W] as a JPEG data URL for <img>."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).convert("RGB").save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Render the page as HTML."""
    return _template().render(title=title, lead=lead, sections=list(sections)) + "\n"


def write(path: str | Path, title: str, lead: str, sections: Iterable[Section]) -> Path:
    """Write the page atomically. Raises UserError if it would exceed 5 MB or cannot be written."""
    text = page(title, lead, sections)
    if len(text.encode()) > MOST:
        raise UserError(f"{path}: the page would have {len(text.encode()) / 1e6:.1f} MB; pass fewer runs at once")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path


@cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.filters["cell"] = lambda value: value if isinstance(value, Cell) else Cell(str(value))
    return made.get_template("page.html")
