"""Sources by one word of the command line, so that several data sets can be mixed in one run.

    labels.csv                       a CSV: columns image, text, and label, patient, eye, modality, ... where it has them
    labels.csv,mask=disc+cup         a path in each column; points=fovea+disc reads fovea_x, fovea_y, disc_x, disc_y
    labels.csv,text=report,weight=2  options after commas: our column name = theirs, or a template ("text=eye with {grade}")
    folder/                          an image folder train|val|test/<class>/, with split=test for another than train
    tfds:idrid                       a data set built by `launch.py data build`; tfds:idrid/test is its test split
    array_record:folder              what `launch.py data convert` wrote
    synthetic                        synthetic eyes, with n=, start=, seed=, size=, language=

Options of a CSV beside the columns: images=DIR (paths begin there), sep=tab, only=COLUMN:VALUE, modality=CFP for all its
rows, empty=drop (or keep: gaps in several labels). label=A+B+C are several labels of 0, 1 and gaps, value=A+B numbers to
predict, classes=A+B+C the order of class names. Options of all: weight= (share of the mix; the number of rows by
default), name=."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.datasets import source as built
from data_pipelines.records import MODALITIES, DataError, Source
from data_pipelines.sources.csv import csv_source, image_folder
from data_pipelines.sources.shards import array_records
from data_pipelines.synthetic.sources import Eyes

DATA_DIR = os.environ.get("FUNDAX_DATA_DIR", "data")  # where `launch.py data build` writes unless told otherwise


_COLUMNS = ("image", "text", "label", "modality", "eye", "patient", "day", "value")


_DENSE = ("mask", "fov", "points")  # columns that are read where they are asked for


_CSV = (*_COLUMNS, *_DENSE, "images", "sep", "only", "empty", "classes")


_ALL = ("weight", "name")


@dataclass(frozen=True)
class Named:
    """A source, what to call it, and its share of a mix (None: its number of rows)."""

    name: str
    source: Source
    weight: float | None = None


def named(word: str, defaults: Mapping[str, str] | None = None, data_dir: str | Path = DATA_DIR) -> Named:
    """The source that a word stands for; `defaults` are options every CSV has unless it says otherwise.

    Raises DataError for an unknown kind or option, with those that are known; files are checked at the first use.
    """
    head, *rest = word.split(",")
    options = dict(_option(part, word) for part in rest)
    shared = {key: options.pop(key) for key in _ALL if key in options}
    weight = _number("weight", shared["weight"], word) if "weight" in shared else None
    if head.startswith("tfds:"):
        _known(options, (), word)
        name, _, split = head.removeprefix("tfds:").partition("/")
        return Named(shared.get("name", name), built(name, split or "train", data_dir), weight)
    if head.startswith("array_record:"):
        _known(options, (), word)
        folder = Path(head.removeprefix("array_record:"))
        return Named(shared.get("name", folder.name), array_records(folder), weight)
    if head == "synthetic":
        _known(options, ("n", "start", "seed", "size", "language"), word)
        fields: dict[str, Any] = {"n": 1000}
        fields |= {k: v if k == "language" else int(_number(k, v, word)) for k, v in options.items()}
        return Named(shared.get("name", head), Eyes(**fields), weight)
    path = Path(head)
    if path.is_dir():
        _known(options, ("split", "modality"), word)
        return Named(shared.get("name", path.name), image_folder(path, **options), weight)
    if not path.is_file():
        raise DataError(
            f"{head}: no such file; expected a CSV, an image folder, tfds:NAME, array_record:FOLDER or synthetic"
        )
    _known(options, _CSV, word)
    default_name = path.parent.name if path.stem in ("labels", "train", "data") else path.stem
    return Named(shared.get("name", default_name or path.stem), _csv(path, {**(defaults or {}), **options}), weight)


def _csv(path: Path, options: Mapping[str, str]) -> Source:
    columns: dict[str, Any] = {name: options[name] for name in _COLUMNS if options.get(name)}
    columns |= {name: options[name] for name in _DENSE if options.get(name)}
    fields: dict[str, Any] = {"classes": tuple(options["classes"].split("+"))} if options.get("classes") else {}
    for name in ("label", "value", "mask", "points"):
        if "+" in columns.get(name, "") and "{" not in columns[name]:
            columns[name] = tuple(columns[name].split("+"))
    if "points" in columns:  # of a landmark's name
        points = columns["points"]
        parts = (points,) if isinstance(points, str) else points
        columns["points"] = tuple(f"{part}_{axis}" for part in parts for axis in "xy")
    if columns.get("modality", "").upper() in MODALITIES:
        fields["modality"] = columns.pop("modality").upper()
    if options.get("only"):
        column, _, value = options["only"].partition(":")
        fields["only"] = {column: value}
    sep = {"tab": "\t", "semicolon": ";", "comma": ","}.get(options.get("sep", ","), options.get("sep", ","))
    return csv_source(path, options.get("images") or None, sep, columns, empty=options.get("empty", "error"), **fields)


def _option(part: str, word: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not equals:
        raise DataError(f"{word}: {part!r} is no option; expected NAME=VALUE after each comma")
    return name, value


def _known(options: Mapping[str, str], names: tuple[str, ...], word: str) -> None:
    for name in options:
        if name not in names:
            raise DataError(f"{word}: unknown option {name!r}; expected one of {', '.join((*names, *_ALL))}")


def _number(name: str, value: str, word: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise DataError(f"{word}: {name}={value!r} is not a number") from None
