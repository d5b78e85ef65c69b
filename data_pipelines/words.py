"""Open a source from a word of the command line.

    labels.csv                       a CSV with columns image, text, and optionally label, patient, eye, modality, ...
    labels.csv,mask=disc+cup         a path in each column; points=fovea+disc reads fovea_x, fovea_y, disc_x, disc_y
    labels.csv,text=report,weight=2  options after commas: our column name = theirs, or a template ("text=eye with {grade}")
    labels.csv,visits=true           the visits of a table: days=3 joins images up to 3 days apart, by_eye=true parts the eyes
    folder/,visits=true              the visits in a folder of DICOM files, by their tags
    folder/                          images in <class>/, or in train|val|test/<class>/; split=test takes one part only
    training_labels.txt              VisionFM's lists without a header: path;label, or path,label,days for forecasts
    tfds:idrid                       a data set built by `launch.py data build`; tfds:idrid/test is its test split
    array_record:folder              a folder written by `launch.py data convert`
    synthetic                        synthetic eyes, with n=, start=, seed=, size=, language=, modalities=CFP+OCT
    synthetic,visits=true            synthetic visits, with those options and missing=0.4, the share of absent views

A path may contain commas. An option with a comma is quoted: '"text=eye, {grade}"'.

Further options of a CSV: images=DIR (paths are relative to it), sep=tab, encoding=gb18030, only=COLUMN:VALUE, modality=CFP
for all rows, text= (an empty value leaves a column out), empty=drop (or keep, for missing values in several labels),
keep=age+sex (columns for subgroups). label=A+B+C reads several labels (0, 1 or missing), value=A+B numbers to predict,
values=0:cup,128:disc what the pixels of a mask mean. For a CSV and a folder: depth=, orientation= (see images), and
classes=A+B+C for the order of class names, or classes=h:healthy+g:glaucoma to rename codes. declare=OCTA+SLO names modalities
that are not ours; visits (sources.visit_columns) also have the columns report=, eye_report=, eye_label=, visit_label=, and
those of views (cfp_left=THEIRS). Options of all sources:
weight= (sampling weight; by default the number of rows), name=, others=drop (leave out rows of classes that are not asked
for)."""

from __future__ import annotations

import csv
import functools
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.datasets import source as built
from data_pipelines.images.decode import EXTENSIONS, ReadOptions, read_options
from data_pipelines.records import MODALITIES, DataError, Source
from data_pipelines.sources.csv import CsvSource, csv_source
from data_pipelines.sources.folders import image_folder, parts_of
from data_pipelines.sources.label_list import LabelList
from data_pipelines.sources.matching import Matched
from data_pipelines.sources.parts import column_parts
from data_pipelines.sources.shards import array_records
from data_pipelines.sources.visit_columns import known_names
from data_pipelines.sources.visit_tables import VisitSource
from data_pipelines.synthetic.sources import Eyes, Visits

DATA_DIR = os.environ.get("FUNDAX_DATA_DIR", "data")  # the default folder of `launch.py data build`
_COLUMNS = ("image", "text", "label", "modality", "eye", "patient", "day", "value")
_DENSE = ("mask", "fov", "points")  # columns that are read only on request
READING = ("depth", "orientation", "max_pixels")  # how image files are read
_CSV = (
    *_COLUMNS,
    *_DENSE,
    *READING,
    "images",
    "sep",
    "encoding",
    "only",
    "empty",
    "keep",
    "classes",
    "values",
    "declare",
)
_FOLDER = ("split", "modality", "classes", "declare", *READING)
_ALL = ("weight", "name", "others")
_SYNTHETIC = {"n": 10_000_000, "size": 4096}  # the most of each
_LONGEST = 64  # commas that a path is expected to hold
_VISITS = ("visits", "days", "by_eye")


@dataclass(frozen=True)
class Named:
    """A source with its name and its sampling weight (None: its number of rows).

    `word` and `options` are what it was opened by; `given` are its own parts, where it is a folder that has them.
    """

    name: str
    source: Source
    weight: float | None = None
    word: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Source] = field(default_factory=dict)


def value_names(one: Named) -> tuple[str, ...]:
    """Names of the columns that the option value=A+B of a source reads."""
    return tuple(one.options.get("value", "").split("+")) if one.options.get("value") else ()


def word_of(word: str) -> tuple[str, dict[str, str]]:
    """The head of a word (a path, which may contain commas) and its options. Raises DataError for anything else."""
    try:
        cells = next(csv.reader([word]), [""])
    except csv.Error as error:
        raise DataError(f"{word[:60]!r}: not a source with options after commas ({error})") from None
    paths = (count for count in range(min(len(cells), _LONGEST), 1, -1) if os.path.exists(",".join(cells[:count])))
    count = next(paths, 1)
    options: list[str] = []
    for cell in cells[count:]:
        goes_on = options and options[-1].startswith("values=") and "=" not in cell  # values=0:cup,128:disc
        options[-1:] = [f"{options[-1]},{cell}"] if goes_on else [*options[-1:], cell]
    return ",".join(cells[:count]), dict(_option(part, word) for part in options)


def named(word: str, defaults: Mapping[str, str] | None = None, data_dir: str | Path = DATA_DIR) -> Named:
    """Open the source of a word; `defaults` are default options of a CSV.

    Raises DataError for an unknown kind or option, listing the known ones. Files are checked at the first use.
    """
    head, options = word_of(word)
    shared = {key: options.pop(key) for key in _ALL if key in options}
    weight = _number("weight", shared["weight"], word) if "weight" in shared else None
    if weight == 0:
        raise DataError(f"{word}: weight=0; expected more, or leave the source out")
    if shared.get("others", "drop") != "drop":
        raise DataError(f"{word}: others={shared['others']!r}; expected drop")
    name, source, given = _opened(head, options, dict(defaults or {}), word, data_dir)
    name = _file_name(shared.get("name", name), word)
    if any(":" in entry for entry in options.get("classes", "").split("+")):
        rename = functools.partial(_renamed, options["classes"], name, shared.get("others") != "drop")
        source, given = rename(source), {part: rename(one) for part, one in given.items()}
    return Named(name, source, weight, word, {**(defaults or {}), **options, **shared}, given)


def _opened(
    head: str, options: dict[str, str], defaults: dict[str, str], word: str, data_dir: str | Path
) -> tuple[str, Source, Mapping[str, Source]]:
    """The default name, the source and its own parts."""
    kind, colon, rest = head.partition(":")
    if colon and kind in ("tfds", "array_record"):
        _known(options, (), word)
        if kind == "array_record":
            return Path(rest).name, array_records(Path(rest)), {}
        name, _, part = rest.partition("/")
        return name, built(name, part or "train", data_dir), {}
    if head == "synthetic":
        return head, _synthetic(options, word), {}
    path = Path(head)
    if not os.path.exists(path):  # also for what is too long to be a name of a file
        kinds = "a CSV, an image folder, tfds:NAME, array_record:FOLDER or synthetic"
        raise DataError(f"{head[:200]}: no such file; expected {kinds}")
    if path.exists() and path.suffix != ".txt" and _truth(options, "visits", word):
        names = tuple(name for name in options if known_names(name, _several(options, "declare")))
        _known(options, (*_CSV, *_VISITS, *names), word)
        return _table_name(path), _visits(path, {**defaults, **options}, word), {}
    if path.is_dir():
        options = {**_declared(defaults), **options}
        _known(options, (*_FOLDER, *_VISITS), word)
        classes = tuple(options["classes"].split("+")) if _plain_classes(options) else ()
        fields = {"classes": classes, "modality": options.get("modality", "CFP"), "reading": _reading(options)}
        fields |= {"declare": _several(options, "declare")}
        parts = {} if "split" in options else {part: image_folder(path, part, **fields) for part in parts_of(path)}
        return path.name, image_folder(path, options.get("split", "all"), **fields), parts
    if not path.is_file():
        raise DataError(f"{head}: a pipe or device; expected a file or a folder")
    if path.suffix.lower() in EXTENSIONS:
        raise DataError(f"{head}: is an image; expected a table of images, or a folder of them")
    if path.suffix.lower() == ".txt":
        _known(options, ("images", "modality", *READING), word)
        folder = Path(options["images"]) if options.get("images") else None
        return path.stem, LabelList(path, folder, options.get("modality", "CFP"), _reading(options)), {}
    _known(options, (*_CSV, *_VISITS), word)
    return _table_name(path), _csv(path, {**defaults, **options}), {}


def _table_name(path: Path) -> str:
    return (
        path.parent.name if path.stem in ("labels", "train", "data", "visits", "images") else path.stem
    ) or path.stem


def _several(options: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(options[name].split("+")) if options.get(name) else ()


def _declared(defaults: Mapping[str, str]) -> dict[str, str]:
    return {name: defaults[name] for name in ("declare",) if name in defaults}


def _visits(path: Path, options: Mapping[str, str], word: str) -> VisitSource:
    days = _number("days", options.get("days", "0"), word)
    if days < 0 or days != int(days):
        raise DataError(f"{word}: days={options['days']}: expected a whole number of days")
    names = [name for name in options if known_names(name, _several(options, "declare"))]
    return VisitSource(_csv(path, options, tuple(names), visits=True), int(days), _truth(options, "by_eye", word))


def _synthetic(options: Mapping[str, str], word: str) -> Eyes | Visits:
    visits = _truth(options, "visits", word)
    _known(options, ("n", "start", "seed", "size", "language", "modalities", "visits", *["missing"] * visits), word)
    fields: dict[str, Any] = {
        k: int(_number(k, options[k], word)) for k in ("n", "start", "seed", "size") if k in options
    }
    if wrong := [name for name, most in _SYNTHETIC.items() if not 1 <= fields.get(name, 1) <= most]:
        raise DataError(f"{word}: {wrong[0]}={options[wrong[0]]}; expected 1 to {_SYNTHETIC[wrong[0]]}")
    fields |= {"language": options["language"]} if "language" in options else {}
    fields |= {"missing": _number("missing", options["missing"], word)} if "missing" in options else {}
    fields |= {"modalities": tuple(options["modalities"].split("+"))} if "modalities" in options else {}
    return (Visits if visits else Eyes)(**{"n": 1000, **fields})


def _truth(options: Mapping[str, str], name: str, word: str) -> bool:
    """An option that is true or false, by default false."""
    value = options.get(name, "false")
    if value not in ("true", "false"):
        raise DataError(f"{word}: {name}={value!r}; expected true or false")
    return value == "true"


def _csv(path: Path, options: Mapping[str, str], further: tuple[str, ...] = (), *, visits: bool = False) -> CsvSource:
    """Open a CSV file; `further` are names of columns in addition to ours."""
    columns: dict[str, Any] = {
        name: options[name] or None for name in (*_COLUMNS, *_DENSE, *further) if name in options
    }
    fields: dict[str, Any] = {name: options[name] for name in ("encoding", *READING) if options.get(name)}
    fields |= {"classes": tuple(options["classes"].split("+"))} if _plain_classes(options) else {}
    fields |= {name: _several(options, name) for name in ("keep", "declare")} | {"visits": visits}
    fields |= {"values": options["values"]} if options.get("values") else {}
    for name in ("label", "value", "mask", "points"):
        if "+" in (columns.get(name) or "") and "{" not in columns[name]:
            columns[name] = tuple(columns[name].split("+"))
    if columns.get("points"):  # from landmark names to coordinate columns
        points = columns["points"]
        landmarks = (points,) if isinstance(points, str) else points
        columns["points"] = tuple(f"{name}_{axis}" for name in landmarks for axis in "xy")
    if (modality := columns.get("modality") or "").upper() in MODALITIES or modality in fields["declare"]:
        fields["modality"] = columns.pop("modality")
    if options.get("only"):
        column, _, value = options["only"].partition(":")
        fields["only"] = {column: value}
    images, empty = options.get("images") or None, options.get("empty", "error")
    return csv_source(path, images, options.get("sep") or ",", columns, empty=empty, **fields)


def _reading(options: Mapping[str, str]) -> ReadOptions:
    """Parse the options for reading image files."""
    values = options.get("values", "") if options.get("mask") else ""
    return read_options(**{name: options.get(name, "") for name in READING}, values=values)


def _plain_classes(options: Mapping[str, str]) -> bool:
    """Whether the option classes names the classes as they are in the data, without codes."""
    return bool(options.get("classes")) and not any(":" in one for one in options["classes"].split("+"))


def _renamed(classes: str, name: str, strict: bool, source: Source) -> Source:
    return Matched(source, tuple(classes.split("+")), name, strict=strict)


def split_column(one: Named) -> Mapping[str, Source]:
    """The parts that a table's column `split` names; {} without one."""
    table = one.source.source if isinstance(one.source, Matched) else one.source
    cells = table.column("split") if isinstance(table, CsvSource | VisitSource) else None
    if cells is None:
        return {}
    chosen = one.source.rows if isinstance(one.source, Matched) else range(len(cells))
    return column_parts(one.source, [cells[int(row)] for row in chosen], one.name)


def digest(one: Named) -> str:
    """Digest of a table's bytes, of the names and sizes of a folder's files, or of the description of another source."""
    path = Path(word_of(one.word)[0]) if one.word else Path()
    state = hashlib.sha256()
    if path.is_file():
        state.update(path.read_bytes())
    elif one.word and path.is_dir():
        for file in sorted(path.rglob("*")):
            state.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode() if file.is_file() else b"")
    else:
        state.update(f"{one.word} {len(one.source)}".encode())
    return state.hexdigest()[:20]


def _file_name(name: str, word: str) -> str:
    """Check that results can be stored under a name. Raises DataError if it is not a valid file name."""
    if not name or "/" in name or "\\" in name or name.startswith(".") or not name.isprintable() or len(name) > 100:
        raise DataError(f"{word[:200]}: the name {name[:100]!r} cannot be that of a file; give another with name=")
    return name


def _option(part: str, word: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not equals:
        raise DataError(f"{word}: {part!r} is not an option; expected NAME=VALUE after each comma")
    return name, value


def _known(options: Mapping[str, str], names: tuple[str, ...], word: str) -> None:
    for name in options:
        if name not in names:
            raise DataError(f"{word}: unknown option {name!r}; expected one of {', '.join((*names, *_ALL))}")


def _number(name: str, value: str, word: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or number > 2**53:
        raise DataError(f"{word}: {name}={value!r} is not a number from 0 up")
    return number
