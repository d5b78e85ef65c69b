"""HTML in pieces: whatever is not Html already is escaped, so no name from a file can become markup."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fundax.estimate import Estimate


class Html(str):
    """Text that is markup already; everything else is escaped where it is put in."""

    __slots__ = ()


def safe(part: Any) -> Html:
    """Html as it is, anything else as escaped text."""
    return part if isinstance(part, Html) else Html(html.escape(str(part), quote=True))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """<name ...>children</name>. An attribute's underscore at the end goes (class_), others become hyphens."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"' for key, value in attributes.items())
    inside = "".join(safe(child) for child in children)
    return Html(f"<{name}{words}>{inside}" + ("" if name in ("img", "br") else f"</{name}>"))


def joined(parts: Iterable[Any]) -> Html:
    """The parts, one after the other."""
    return Html("".join(safe(part) for part in parts))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: Any = "", kind: str = "") -> Html:
    """A table that scrolls by itself where the window is narrow; the first column names the rows and stays."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = joined(
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows if len(row)
    )
    return captioned(tag("table", tag("thead", top), tag("tbody", body), class_=kind), caption)


def captioned(one: Html, caption: Any = "") -> Html:
    """A wide element in a box that scrolls, its caption above and outside, where it stays readable."""
    said = tag("p", caption, class_="caption") if caption else ""
    return tag("div", said, tag("div", one, class_="wide"), class_="boxed")


def number(estimate: Estimate, digits: int = 3) -> Html:
    """A cell: the value, its interval below; or a dash with the reason."""
    if not estimate.defined:
        return tag("span", "–", tag("small", estimate.note or "not defined"), class_="blank")
    low, high = estimate.low, estimate.high
    below: Any = ""
    if low == low:
        below = tag("small", f"{low:.{digits}f} to {high:.{digits}f}")
    elif estimate.note:
        below = tag("small", estimate.note, class_="why")
    return joined((tag("b", f"{estimate.value:.{digits}f}"), below))


def plain(value: float, digits: int = 3) -> Html:
    """A number without an interval, or a dash."""
    return safe(f"{value:.{digits}f}") if value == value else tag("span", "–", class_="blank")


def picture(image: np.ndarray, said: str, quality: int = 85) -> Html:
    """An image u8 [H W 3] or [H W] inside the page, as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).convert("RGB").save(file, "JPEG", quality=quality)
    data = base64.b64encode(file.getvalue()).decode()
    return tag("img", src=f"data:image/jpeg;base64,{data}", alt=said, loading="eager")
