"""Open sources from words of the command line, so that several data sets can be mixed in one run.

    labels.csv                       a CSV with columns image, text, and optionally label, patient, eye, modality, ...
    labels.csv,mask=disc+cup         a path in each column; points=fovea+disc reads fovea_x, fovea_y, disc_x, disc_y
    labels.csv,text=report,weight=2  options after commas: our column name = theirs, or a template ("text=eye with {grade}")
    folder/                          an image folder train|val|test/<class>/; split=test selects another part than train
    tfds:idrid                       a data set built by `launch.py data build`; tfds:idrid/test is its test split
    array_record:folder              a folder written by `launch.py data convert`
    synthetic                        synthetic eyes, with n=, start=, seed=, size=, language=

Further options of a CSV: images=DIR (paths are relative to it), sep=tab, only=COLUMN:VALUE, modality=CFP for all rows,
empty=drop (or keep, for missing values in several labels). label=A+B+C reads several labels (0, 1 or missing), value=A+B
numbers to predict, and classes=A+B+C sets the order of class names. Options of all sources: weight= (sampling weight; by
default the number of rows), name=."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.datasets import source as built
from data_pipelines.records import MODALITIES, DataError, Record, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.csv import csv_source
from data_pipelines.sources.folders import image_folder
from data_pipelines.sources.shards import array_records
from data_pipelines.sources.splits import Concatenated, split
from data_pipelines.synthetic.sources import Eyes, Patients

DATA_DIR = os.environ.get("FUNDAX_DATA_DIR", "data")  # the default folder of `launch.py data build`
_COLUMNS = ("image", "text", "label", "modality", "eye", "patient", "day", "value")
_DENSE = ("mask", "fov", "points")  # columns that are read only on request
_CSV = (*_COLUMNS, *_DENSE, "images", "sep", "only", "empty", "classes")
_ALL = ("weight", "name")


@dataclass(frozen=True)
class Named:
    """A source with its name and its sampling weight (None: its number of rows)."""

    name: str
    source: Source
    weight: float | None = None


PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Sources:
    """The images to train on.

    Args:
        data: Sources to train on: CSV files, folders, tfds:NAME, array_record:FOLDER, synthetic; options follow commas.
        image_dir: Folder that the image paths of a CSV start from; empty takes the folder of the CSV.
        data_dir: Folder of the data sets that `launch.py data build` wrote.
        patients: Number of synthetic patients to train on if there is no --data.
        modalities: Modalities to train on if a source has several; synthetic eyes have CFP, UWF, FFA and OCT.
    """

    data: tuple[str, ...] = ()
    image_dir: str = ""
    data_dir: str = DATA_DIR
    patients: int = 3000
    modalities: tuple[str, ...] = ("CFP",)

    @functools.cached_property
    def used(self) -> dict[str, Any]:
        """What has been read so far, as JSON, for a run to store; not an argument.

        "sources": a list of {"name", "word", "rows", "digest"}. "classes": the names that labels were matched to.
        "split": the content of a split file (see sources.splits), which `split` can read again.
        """
        return {"sources": []}

    def eyes(self, seed: int, size: int, **fields: Any) -> Eyes:
        """The synthetic eyes to train on, with `size` pixels; `fields` are further fields of Eyes."""
        return Eyes(self.patients, seed, modalities=self.modalities, size=size, **fields)


@dataclass(frozen=True)
class Data(Sources):
    """The images to train and evaluate on.

    Args:
        val: Sources to evaluate on; without them, some patients of --data are held out.
        split: JSON file with the part of each patient; it is written at the first use and read afterwards.
        part: Part to evaluate on: val, test or all (every row of --data, not split); empty takes val.
        classes: Names of the classes (findings, values, structures) in order; empty takes those of the data.
        fractions: Shares of the patients in the parts train, val and test.
        image_column: Column of a CSV with the image paths; empty takes "image".
        text_column: Column of a CSV with the texts; empty takes "text".
        separator: Separator of the columns of a CSV; "tab" for a tab.
    """

    val: tuple[str, ...] = ()
    split: str = ""
    part: str = ""
    classes: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (0.9, 0.1)
    image_column: str = ""
    text_column: str = ""
    separator: str = ","

    def open(self, words: Sequence[str], **columns: str) -> list[Named]:
        """Open the sources of `words`; `columns` are default options of a CSV."""
        own = {"image": self.image_column, "text": self.text_column, "images": self.image_dir, "sep": self.separator}
        return [named(word, columns | {k: v for k, v in own.items() if v}, self.data_dir) for word in words]

    def parts(
        self,
        synthetic: Mapping[str, Source],
        seed: int,
        labels: Callable[[Record], Any] | None = None,
        names: Sequence[str] = PARTS,
        **columns: str,
    ) -> dict[str, list[Named]]:
        """The sources of each part. Parts share no patient; there are as many as `fractions`, named by `names`.

        Args:
            synthetic: the parts to use if there is no --data (synthetic_parts).
            labels: the label of a record to stratify by (sources.splits.split).
            columns: default options of a CSV.

        Raises DataError for a split file with several sources, and as `named` and `split` do.
        """
        if not self.data:
            return {name: [Named("synthetic", source)] for name, source in synthetic.items()}
        if not 1 <= len(self.fractions) <= len(names):
            raise DataError(
                f"--fractions {self.fractions}: expected at most {len(names)} numbers, for {', '.join(names)}"
            )
        if self.split and len(self.data) > 1:
            raise DataError(f"--split {self.split}: a split file is of one source, and --data has {len(self.data)}")
        if self.part == "all":
            whole = self.open(self.data, **columns)
            return {name: whole for name in (*names[: len(self.fractions)], "all")}
        shares = dict(zip(names, self.fractions, strict=False))
        if self.val:
            shares = {name: share for name, share in shares.items() if name != "val"}
        shares = {name: share / sum(shares.values()) if self.val else share for name, share in shares.items()}
        parts: dict[str, list[Named]] = {name: [] for name in shares}
        for word, one in zip(self.data, self.open(self.data, **columns), strict=True):
            for name, source in self._split(word, one.source, shares, seed, labels).items():
                parts[name].append(Named(one.name, source, one.weight))
        return parts | ({"val": self.open(self.val, **columns)} if self.val else {})

    def _split(
        self, word: str, source: Source, shares: Mapping[str, float], seed: int, labels: Any
    ) -> Mapping[str, Source]:
        folder = Path(word.split(",")[0])
        if isinstance(source, Eyes):
            few = max(16, len(source) // 50)
            return {name: source if name == "train" else source.split(_TASKLESS[name], few) for name in shares}
        if "split=" not in word and all((folder / name).is_dir() for name in shares):
            return {name: named(f"{word},split={name}", None, self.data_dir).source for name in shares}
        if len(shares) == 1:
            return dict.fromkeys(shares, source)
        return split(source, shares, file=self.split, seed=seed, labels=labels, source=word)


_TASKLESS: Mapping[str, Any] = {"train": "train", "val": "val", "test": "test"}
_OF_TASK: Mapping[str, Any] = {"train": "task_train", "val": "task_val", "test": "test"}


def synthetic_parts(
    source: Eyes | Patients, *, keep: bool, val: int, test: int = 0, task: bool = False
) -> dict[str, Source]:
    """Parts of synthetic patients: `source` for training, and `val` and `test` other patients; 0 omits the test part.

    keep: keep the training images in memory (without worker processes). task: use patients that no pretraining has seen.
    """
    names = _OF_TASK if task else _TASKLESS
    counts = {"train": source.n, "val": val} | ({"test": test} if test else {})
    made = {name: source.split(names[name], n) for name, n in counts.items()}
    return {name: CachedSource(one) if keep or name != "train" else one for name, one in made.items()}


def joined(sources: Sequence[Named]) -> Source:
    """Concatenate sources with the same classes. Raises DataError if the classes differ."""
    if len(sources) == 1:
        return sources[0].source
    classes = [tuple(getattr(one.source, "classes", ())) for one in sources]
    if len(set(classes)) > 1:
        raise DataError(f"{sources[0].name} and {sources[1].name} have different classes; name them: classes=A+B")
    return Concatenated(tuple(one.source for one in sources), classes[0])


def named(word: str, defaults: Mapping[str, str] | None = None, data_dir: str | Path = DATA_DIR) -> Named:
    """Open the source of a word; `defaults` are default options of a CSV.

    Raises DataError for an unknown kind or option, listing the known ones. Files are checked at the first use.
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
    if "points" in columns:  # from landmark names to coordinate columns
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
        raise DataError(f"{word}: {part!r} is not an option; expected NAME=VALUE after each comma")
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
