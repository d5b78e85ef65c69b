"""The one reader of tables: CSV and TSV in any encoding, Excel and Parquet, all as rows of stripped texts.

A table is recognised by its first bytes, not by its name. Every table of the project is read with `read_rows`.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import difflib
import itertools
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.notices import warn_line
from data_pipelines.records import DataError

_log = logging.getLogger(__name__)
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a report can be longer than csv's default of 128 KiB

SEPARATORS = {"tab": "\t", "semicolon": ";", "comma": ",", "bar": "|"}  # as words of the command line
SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".parquet")
# how pandas, R, SQL, Excel, Stata and people write a missing value
EMPTY = frozenset({
    *("", "nan", "null", "nul", "na", "n/a", "n.a.", "<na>", "none", "nil", "nat", "\\n", "(null)", "(none)", "[null]"),
    *("#n/a", "#n/d", "#null!", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "-", "--", "---", "–", "—", "－"),
    *("/", ".", "?"),
})  # fmt: skip

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a compressed file; unpack it first"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls) or one with a password; save it as .xlsx or CSV"),
    (b"<", "a web page or XML; save it as .xlsx or CSV"),
    (b"\x89HDF", "an HDF5 file"),
)
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which look like nothing
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jfif")


def is_empty(cell: str) -> bool:
    """Whether a stripped cell is one of the ways to write a missing value."""
    return cell.lower() in EMPTY


def where(path: Path, row: int, line: int) -> str:
    """Format the position of a row for messages: its number from 1, without the header, and its first line (0: unknown)."""
    return f"{path} row {row} (line {line})" if line else f"{path} row {row}"


def plain(cell: str) -> str:
    """Strip white space and invisible characters from a cell."""
    cell = cell.strip()
    return cell if cell.isascii() else cell.strip(_INVISIBLE).strip()


def read_rows(path: Path, sep: str = ",", encoding: str = "") -> Iterator[tuple[int, int, list[str]]]:
    """Yield (row, line, cells) of a table: first the header as row 0, then the data rows from 1. Cells are stripped.

    Args:
        path: a text file, an Excel file (.xlsx, its first sheet) or a Parquet file.
        sep: the separator of a text file, or its name in SEPARATORS. With a comma, a header without commas may also be
            separated by semicolons, tabs or vertical bars, which is logged.
        encoding: encoding of a text file without a byte order mark; "" is UTF-8. A byte order mark decides by itself.

    `line` is the line of the file where the row starts. Rows without any content are skipped. Raises DataError for a file
    that is not a readable table, a quotation mark that stays open, a row with more or fewer fields than the header,
    and content in a column without a name.
    """
    if len(sep := SEPARATORS.get(sep, sep)) > 1:
        raise DataError(f"sep must be one character or one of {', '.join(SEPARATORS)}, not {sep!r}")
    header: list[str] = []
    nameless: list[int] = []
    row = 0
    for line, raw in _lines(path, sep, encoding):
        cells = [cell.strip() if cell.isascii() else plain(cell) for cell in raw]
        if not any(cells):
            continue
        if not header:
            header = cells
            first = next(k for k, name in enumerate(header) if name)
            nameless = [k for k, name in enumerate(header) if not name and k > first]  # pandas' index stands before
        elif len(cells) != len(header):
            hint = "; a text with a separator in it needs quotation marks" if len(cells) > len(header) else ""
            raise DataError(f"{where(path, row, line)}: has {len(cells)} fields, the header has {len(header)}{hint}")
        elif stray := next((cells[k] for k in nameless if cells[k]), ""):
            raise DataError(f"{where(path, row, line)}: {stray[:40]!r} is in a column without a name")
        yield row, line, cells
        row += 1
    if not row:
        raise DataError(f"{path}: the file is empty, its first line should name columns")


def read_named(path: Path, *columns: str, sep: str = ",", encoding: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (`where`, cells by column) of the data rows of a table. Raises DataError if one of `columns` is missing."""
    rows = read_rows(path, sep, encoding)
    header = next(rows)[2]
    if missing := [column for column in columns if column not in header]:
        near = difflib.get_close_matches(missing[0].lower(), [name.lower() for name in header], 1)
        hint = "; is it " + next(repr(name) for name in header if name.lower() == near[0]) + "?" if near else ""
        raise DataError(f"{path}: no column {missing[0]!r}, it has {', '.join(filter(None, header)) or 'none'}{hint}")
    for row, line, cells in rows:
        yield where(path, row, line), {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _lines(path: Path, sep: str, encoding: str) -> Iterable[tuple[int, list[str]]]:
    """(line, cells) of a file of any kind."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: cannot be opened ({'Is a directory' if path.is_dir() else 'not a file'})")
    try:
        with path.open("rb") as file:
            head = file.read(2**16)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    if head.startswith(b"PK\x03\x04"):
        return _excel(path)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if other := next((what for magic, what in _OTHERS if head.lstrip().startswith(magic)), ""):
        raise DataError(f"{path}: is not a table, but {other}")
    return _text(path, sep, _codec(path, head, encoding))


def _codec(path: Path, head: bytes, encoding: str) -> str:
    """The encoding of a text file, from its byte order mark or as given. Raises DataError for an unknown one."""
    if marked := next((codec for mark, codec in _BOMS if head.startswith(mark)), ""):
        return marked
    if not encoding or codecs_name(path, encoding) == "utf-8":
        if b"\0" in head:
            raise DataError(f"{path}: holds zero bytes; if it is UTF-16, add encoding=utf-16-le or encoding=utf-16-be")
        return "utf-8"
    if found := re.sub("[\0-\x7f]", "", _as_utf8(head)):
        if max(found) >= "\u0800":  # three bytes that fit; two of them may be a letter of GB18030 by chance
            raise DataError(f"{path}: is UTF-8, not {encoding}; leave the option encoding out")
        warn_line(_log, "%s: looks like UTF-8, and is read as %s as asked", path, encoding)
    return encoding


def codecs_name(path: Path, encoding: str) -> str:
    """Python's name of a text encoding. Raises DataError if there is none."""
    try:
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError, UnicodeError):
        raise DataError(f"{path}: encoding {encoding!r} is unknown; expected such as gb18030, big5, cp1252") from None


def _as_utf8(data: bytes) -> str:
    """The first bytes of a file as UTF-8; "" if they are not."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return ""


def _text(path: Path, sep: str, codec: str) -> Iterator[tuple[int, list[str]]]:
    line, row = 1, 0
    try:
        with path.open(newline="", encoding=codec) as file:
            first = file.readline()
            declared = re.fullmatch(r"\ufeff?sep=(.)\s*", first)  # Excel's own way to name the separator
            sep = declared[1] if declared else _separator(path, first, sep)
            reader = csv.reader(_checked(itertools.chain([first] * (not declared), file)), delimiter=sep, strict=True)
            start = line = 2 if declared else 1
            for cells in reader:
                several = reader.line_num + start > line + 1
                if several and (inner := _swallowed(cells, sep)):
                    raise csv.Error(f"a cell holds the line {inner[:60]!r}, which looks like a row")
                yield line, cells
                row += any(map(str.strip, cells))
                line = reader.line_num + start
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except UnicodeError as error:
        hint = (
            ""
            if codec.startswith("utf-16")
            else "; add encoding=gb18030 (Excel in Chinese) or encoding=cp1252 (Western)"
        )
        raise DataError(f"{path}: is not {codec} ({error}){hint}, or save it as UTF-8") from error
    except csv.Error as error:
        hint = "is a quotation mark left open, or one inside a cell not doubled?"
        raise DataError(f"{where(path, row, line)}: {error}; {hint}") from error


def _checked(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise csv.Error("zero bytes: the file is damaged, or in UTF-16")
        yield line


def _separator(path: Path, header: str, sep: str) -> str:
    """The separator of a header line. A comma, the default, gives way to the only separator that the header has."""
    if sep not in ("", ","):
        return sep
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    if usual in header:
        return usual
    names = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}
    found = next((other for other in names if other in header), usual)
    if found != usual:
        warn_line(_log, "%s: its columns are separated by %s", path, names[found])
    return found


def _swallowed(cells: list[str], sep: str) -> str:
    """Find a line inside a cell that looks like a row, as after an unclosed quotation mark; "" if there is none.

    It must have the fields of a row, and a first field like the row's own (the same up to its digits) or an image path.
    """
    for place, cell in enumerate(cells):
        lines = [line.split(sep) for line in cell.splitlines()]
        tails = [len(cells)] * (len(lines) - 2) + [place + 1]
        if len(cells) < 2 or len(lines) < 2 or any(len(x) < n for x, n in zip(lines[1:], tails, strict=True)):
            continue
        name = _shape(lines[1][0])
        alike = "0" in name and name == _shape(cells[0])
        if alike or any(field.strip().lower().endswith(_IMAGES) for field in lines[1]):
            return sep.join(lines[1])
    return ""


def _shape(field: str) -> str:
    return re.sub(r"\d+", "0", field.strip())


def _excel(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(f"{path}: reading Excel needs `pip install -e '.[excel]'`; or save it as CSV") from None
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # about styles, which no value depends on
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs write wrong ones
            rows = [[_as_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]
            others = [name for name in book.sheetnames if name != sheet.title]
            book.close()
    except Exception as error:  # a damaged archive raises almost anything
        raise DataError(
            f"{path}: is a zip archive, but not an Excel table that can be read ({_line(error)})"
        ) from error
    if others:
        warn_line(_log, "%s: reads its first sheet %r, not %s", path, sheet.title, ", ".join(others))
    width = 0
    for line, cells in enumerate(rows, 1):
        while len(cells) > width and cells and not cells[-1]:
            cells.pop()
        width = width or len(cells)
        yield line, cells + [""] * (width - len(cells))


def _parquet(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        from pyarrow import parquet, types
    except ModuleNotFoundError:
        raise DataError(f"{path}: reading Parquet needs `pip install -e '.[parquet]'`; or save it as CSV") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            kept = [
                f.name
                for f in schema
                if not (types.is_nested(f.type) or types.is_binary(f.type)) or types.is_list(f.type)
            ]
            if left := [name for name in schema.names if name not in kept]:
                warn_line(_log, "%s: ignores %s, which are neither texts nor numbers", path, ", ".join(left))
            yield 0, kept
            for batch in file.iter_batches(columns=kept):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield 0, [_as_text(value) for value in row]
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: is not a Parquet table that can be read ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Shorten an error to one line; Parquet's have several."""
    return " ".join(str(error).split())[:200]


def _as_text(value: Any) -> str:
    """A value of Excel or Parquet as a CSV file would have it: whole numbers without a point, midnight as a date."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return str(value.date() if value.time() == datetime.time() else value)
    return str(value)
