"""HTML in pieces: whatever is not Html already is escaped, so no name from a file can become markup.

A report as one HTML file: no script, no request, readable on a phone and on paper.

The contents come as sections of ready markup (fundax/results/page.py makes them of run directories)."""

from __future__ import annotations

import base64
import html
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fundax.metrics.statistics import Estimate
from fundax.types import UserError


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


MOST = 5_000_000  # bytes of a page


# nothing is loaded, whatever a name in a run contains
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


STYLE = """
:root{--ink:#1c2126;--soft:#56606b;--line:#dde2e6;--wash:#f5f7f8}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);margin:0 auto;max-width:76rem;
padding:1rem 1.25rem 3rem;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.25rem;margin:2.2rem 0 .4rem;padding-top:.8rem;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:1.5rem 0 .3rem}p{margin:.3rem 0 .6rem}.soft,small,.caption,figcaption{color:var(--soft)}
.soft,.caption{font-size:.88rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.7rem 0}nav a{color:#005a92}
.wide{overflow-x:auto;margin:.4rem 0 1rem;max-width:100%;min-width:0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
.boxed{min-width:0;max-width:100%}.caption{margin:.6rem 0 -.2rem}
td,th{padding:.22rem .6rem;overflow-wrap:normal;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
thead th{border-bottom:1.5px solid var(--ink);vertical-align:bottom;font-weight:600}
th[scope=row]{text-align:left;overflow-wrap:break-word;font-weight:500;position:sticky;left:0;background:#fff;
min-width:7rem;max-width:22rem}
thead th:first-child{text-align:left;position:sticky;left:0;background:#fff}
td b{font-weight:600}td small,.blank small{display:block;font-size:.8em;white-space:nowrap}
.blank small,td small.why{white-space:normal;min-width:7rem;max-width:11rem}
table.words td{text-align:left;overflow-wrap:anywhere;max-width:34rem;min-width:8rem}
table.words thead th{text-align:left}
td em{font-style:normal;background:#fff0cc;padding:0 .2rem}
table.matrix td{text-align:center;min-width:2.1rem;padding:.22rem .15rem;border:1px solid var(--line)}
table.matrix thead th+th{text-align:center}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(13.5rem,46%),1fr));gap:.4rem .6rem;margin:.3rem 0 .8rem}
.panels.few{grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));max-width:66rem}
svg{width:100%;height:auto;display:block;font:10px system-ui,sans-serif;fill:var(--ink)}svg .title{font-weight:600}
svg .note{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:3px}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;font-size:.88rem}
.key span{display:inline-flex;align-items:center;gap:.4rem}.key svg{width:26px;flex:none}
.groups{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(28rem,100%),1fr));gap:0 1.5rem}
.groups h3{margin:.6rem 0 .2rem}
.beside{display:flex;flex-wrap:wrap;gap:0 2.5rem}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.7rem;margin:.3rem 0 1rem}
.cases.broad{grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr))}.cases.broad img{aspect-ratio:auto}
figure{margin:0}figure img{width:100%;aspect-ratio:1;object-fit:contain;background:#000;display:block}
figure img+img{margin-top:2px}
figcaption{font-size:.8rem;line-height:1.3;margin-top:.2rem}figcaption b{color:var(--ink)}
@media(max-width:40rem){body{padding:.6rem .8rem 2rem;font-size:14px}td,th{padding:.2rem .4rem}
th[scope=row]{max-width:9.5rem;min-width:5.5rem}
.cases:not(.broad){grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr))}}
@media print{@page{margin:14mm}body{max-width:none;padding:0;font-size:9.5pt}nav{display:none}.wide{overflow:visible}
table{font-size:7.5pt}td,th{padding:.12rem .3rem}td small,.blank small{white-space:normal;min-width:0}
th[scope=row],thead th:first-child{position:static}
.panels{grid-template-columns:repeat(4,1fr)}.panels.few{grid-template-columns:repeat(3,1fr)}
.groups{grid-template-columns:1fr 1fr}.cases{grid-template-columns:repeat(4,1fr)}
.cases.broad{grid-template-columns:1fr}
h2,h3,.key,.caption{break-after:avoid}figure,svg,tr{break-inside:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
a{color:inherit;text-decoration:none}}
"""


class Section(NamedTuple):
    """A heading with what stands below it."""

    title: str
    body: Html


def write(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """The page, replaced whole. Raises UserError where it would pass 5 MB, or the folder cannot be written."""
    text = page(title, lead, sections)
    if len(text.encode()) > MOST:
        raise UserError(f"{path}: the page would have {len(text.encode()) / 1e6:.1f} MB; give fewer runs at once")
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


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = [tag("a", section.title, href=f"#s{k}") for k, section in enumerate(sections)]
    bodies = [tag("section", tag("h2", section.title, id=f"s{k}"), section.body) for k, section in enumerate(sections)]
    head = joined(
        (
            Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            tag("title", title),
            Html(f"<style>{STYLE}</style>"),
        )
    )
    body = tag("body", tag("h1", title), tag("p", lead, class_="soft"), tag("nav", *links), *bodies)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
