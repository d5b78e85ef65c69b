"""Sources of records: a CSV file, a folder of classes, any object with a length and items; and parts of these.

Building a source opens nothing; the first use reads the index, which then travels to worker processes ready made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.images import EXTENSIONS
from data_pipelines.records import DataError, Record, View, eye_name, modality_name
from data_pipelines.sources.columns import Stored, Strings, StringWriter, read_once
from data_pipelines.sources.csv_table import EMPTY, Columns, Layout, Table, class_index, read_table, where

SPLITS = ("train", "val", "test")


class _Indexed:
    """Pickling reads the index first, so that it is read once and not by every worker."""

    def __getstate__(self) -> dict[str, Any]:
        len(self)  # type: ignore[arg-type]
        return self.__dict__


def csv_source(
    path: str | Path,
    image_dir: str | Path | None = None,
    sep: str = ",",
    columns: Columns | None = None,
    *,
    only: Mapping[str, str] | None = None,
    require: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    modality: str = "CFP",
    empty: str = "error",
    encoding: str = "utf-8",
) -> CsvSource:
    """A CSV file, one image a row: `image` and, where there are such columns, text, label, modality, eye, patient, day.

    `image_dir`: what image and mask paths are relative to; None is the folder of the file.
    `columns`: our name -> theirs, or a template over theirs ("{ID}.png", "photograph of {diagnosis}"), or None to leave
    one out. Beside the names above: mask (a path, or several columns with one for each class that may overlap; an empty
    cell beside others is a class the image does not have), fov (the mask of what the camera saw), points
    (x, y, x, y, ... as a tuple of theirs) and value (one or several). Several columns as the label are a multi-label f32 [K].
    `only`: their column -> the value that rows must have, such as {"split": "train"}; `require`: our names that
    must be there beside image.
    `classes`: None takes class numbers 0..max as they are, and sorts class names. `modality`: of rows that have none.
    `empty`: rows whose image, text, label or patient is empty or NaN are an "error", or "drop" (their number is logged);
    "keep" keeps gaps in a multi-label as NaN (not labelled).
    Rows are counted from 1 without the header; messages also give the line of the file. A row without a patient is
    a patient of its own. Raises DataError at the first use (not here) naming the file, its row or its columns.
    """
    mapped = tuple((ours, v if isinstance(v, str) else tuple(v or ())) for ours, v in (columns or {}).items())
    layout = Layout(
        path=Path(path),
        sep=sep,
        columns=mapped,
        only=tuple((only or {}).items()),
        require=tuple(require),
        classes=None if classes is None else tuple(classes),
        modality=modality_name(modality),
        empty=empty,
        encoding=encoding,
    )
    return CsvSource(layout, Path(image_dir) if image_dir is not None else Path(path).parent)


@dataclass(frozen=True)
class CsvSource(_Indexed):
    """See csv_source."""

    layout: Layout
    image_dir: Path

    @read_once
    def table(self) -> Table:
        """The index, read at the first use."""
        if not self.image_dir.is_dir():
            raise DataError(f"{self.image_dir}: no such image folder")
        return read_table(self.layout)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the label being an index into them; () without labels."""
        return self.table.names.get("label", ())

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        row, table = _row(index, len(self)), self.table
        text = {name: column[row] for name, column in table.texts.items()}
        named = {name: table.names[name][self._code(name, row)] for name in ("modality", "eye") if name in table.codes}
        view = View(self.image_dir / text["image"], named.get("modality", self.layout.modality), named.get("eye", ""))
        targets = self._targets(row, text.get("mask", ""), text.get("fov", ""))
        return Record(
            patient=text.get("patient", text["image"]),
            views=(view,),
            report=text.get("text", ""),
            findings=self._findings(targets),
            targets=targets,
            day=self._code("day", row) if "day" in table.codes else 0,
            where=where(self.layout.path, *table.places.array[row].tolist()),
        )

    def _code(self, name: str, row: int) -> int:
        return int(self.table.codes[name].array[row])

    def _targets(self, row: int, mask: str, fov: str) -> dict[str, Any]:
        targets: dict[str, Any] = {name: np.array(n.array[row]) for name, n in self.table.numbers.items()}
        if "points" in targets:
            targets["points"] = targets["points"].reshape(-1, 2)
        if "label" in self.table.codes:
            targets["label"] = np.int32(self._code("label", row))
        for name, paths in (("mask", mask.split("\n")), ("fov", [fov])):
            found = tuple(self.image_dir / path if path.lower() not in EMPTY else None for path in paths)
            if any(found):
                targets[name] = found if len(found) > 1 else next(iter(found))
        return targets

    def _findings(self, targets: Mapping[str, Any]) -> tuple[str, ...]:
        if "label" not in targets:
            return ()
        chosen = [int(targets["label"])] if targets["label"].ndim == 0 else np.flatnonzero(targets["label"] > 0)
        return tuple(self.classes[k] for k in chosen)

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """u64 [rows] of a string column; see split_by. Without patients every image is its own."""
        texts = self.table.texts
        if key not in texts and key != "patient":
            raise DataError(f"{self.layout.path}: cannot be split by {key}, only by {', '.join(texts)}")
        return texts.get(key, texts["image"]).hashes(seed)


def image_folder(
    root: str | Path, split: str = "train", classes: Sequence[str] | None = None, modality: str = "CFP"
) -> FolderSource:
    """Images in `root/{train,val,test}/<class>/`: RETFound's layout. The label is the index of the class.

    `classes`: None sorts the folder names of all splits together, so that a split without a class keeps the labels
    of the others; given, a class without a folder just has no images, and a folder that is no class is an error.
    Raises DataError at the first use where the folder, the split or its images are missing.
    """
    return FolderSource(Path(root), split, None if classes is None else tuple(classes), modality_name(modality))


@dataclass(frozen=True)
class FolderSource(_Indexed):
    """See image_folder."""

    root: Path
    split: str
    given: tuple[str, ...] | None
    modality: str

    @read_once
    def classes(self) -> tuple[str, ...]:
        """Class names, the label being an index into them."""
        found = sorted({name for split in SPLITS for name in _folders(self.root / split)} | set(self._folders()))
        if self.given is None:
            return tuple(found)
        unknown = [name for name in self._folders() if name not in self.given]
        if unknown:
            raise DataError(f"{self.root / self.split / unknown[0]}: is not one of the classes {', '.join(self.given)}")
        return self.given

    def _folders(self) -> list[str]:
        if not (self.root / self.split).is_dir():
            present = ", ".join(_folders(self.root)) or "no folders" if self.root.is_dir() else "nothing"
            raise DataError(f"{self.root / self.split}: no such folder, {self.root} holds {present}")
        return _folders(self.root / self.split)

    @read_once
    def index(self) -> tuple[Strings, Stored]:
        """File paths below the split, and their labels, by class and name."""
        files, labels, base = StringWriter(), [], self.root / self.split
        present = set(self._folders())
        for label, name in enumerate(self.classes):
            names = sorted(e.name for e in os.scandir(base / name) if _is_image(e)) if name in present else []
            for file in names:
                files.append(f"{name}/{file}")
            labels.append(np.full(len(names), label, np.int32))
        if not sum(map(len, labels)):
            raise DataError(f"{base}: no images ({', '.join(EXTENSIONS)}) in folders {base}/<class>/")
        return files.finish(), Stored(np.concatenate(labels))

    def __len__(self) -> int:
        return len(self.index[0])

    def __getitem__(self, index: int) -> Record:
        row = _row(index, len(self))
        file, label = self.index[0][row], np.int32(self.index[1].array[row])
        path = self.root / self.split / file
        view = View(path, self.modality)
        where = f"{self.root / self.split} image {row + 1}"
        return Record(file, (view,), findings=(self.classes[label],), targets={"label": label}, where=where)

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """u64 [rows] of the file names; a folder knows no patients."""
        return self.index[0].hashes(seed)


def _folders(base: Path) -> list[str]:
    if not base.is_dir():
        return []
    return sorted(e.name for e in os.scandir(base) if e.is_dir() and not e.name.startswith("."))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS)


def _row(index: int, length: int) -> int:
    row = int(index) + length if index < 0 else int(index)
    if not 0 <= row < length:
        raise IndexError(f"row {index} of {length}")
    return row


class Items(Protocol):
    """What `wrap` takes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def wrap(
    items: Items, columns: Mapping[str, str] | None = None, *, classes: Sequence[str] = (), modality: str = "CFP"
) -> Wrapped:
    """Any object with a length and items as a source: a list, a torch or Hugging Face data set, ...

    An item is a Record, a mapping with `image` (array, encoded bytes, path, Pillow image) and perhaps text, label,
    modality, eye, patient, day, mask, points, value (`columns`: our name -> theirs), or a tuple (image, text) or
    (image, label). Labels are numbers, or names of `classes`. Raises DataError naming the row.
    """
    return Wrapped(items, tuple((columns or {}).items()), tuple(classes), modality_name(modality))


@dataclass(frozen=True)
class Wrapped:
    """See wrap."""

    items: Items
    columns: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    modality: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        row = _row(index, len(self))
        place = f"{type(self.items).__name__} row {row + 1}"
        try:
            return self._record(self.items[row], place)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def _record(self, item: Any, place: str) -> Record:
        if isinstance(item, Record):
            return item if item.where else replace(item, where=place)
        if isinstance(item, tuple | list) and len(item) == 2:
            item = {"image": item[0], ("text" if isinstance(item[1], str) else "label"): item[1]}
        elif isinstance(item, Mapping):
            item = self._renamed(item)
        else:
            raise DataError(f"an item must be a Record, a mapping or (image, text), not {type(item).__name__}")
        if "image" not in item:
            raise DataError(f"has no image, only {', '.join(map(str, item)) or 'nothing'}")
        targets = {name: item[name] for name in ("mask", "points", "value") if item.get(name) is not None}
        if item.get("label") is not None:
            targets["label"] = self._label(item["label"])
        view = View(
            _image(item["image"]),
            modality_name(item.get("modality") or self.modality),
            eye_name(item.get("eye") or ""),
        )
        return Record(
            patient=str(item.get("patient", place)),
            views=(view,),
            report=item.get("text") or "",
            findings=self._findings(targets),
            targets=targets,
            day=int(item.get("day") or 0),
            where=place,
        )

    def _renamed(self, item: Mapping[str, Any]) -> dict[str, Any]:
        missing = [theirs for _, theirs in self.columns if theirs not in item]
        if missing:
            raise DataError(f"has no {', '.join(missing)}, only {', '.join(map(str, item))}")
        return {**item, **{ours: item[theirs] for ours, theirs in self.columns}}

    def _label(self, label: Any) -> np.ndarray | np.int32:
        if isinstance(label, str):
            return np.int32(class_index(label, self.classes))
        array = np.asarray(label)
        if array.ndim:
            return array.astype(np.float32)
        if array.dtype.kind not in "biu" and not (array.dtype.kind == "f" and float(array).is_integer()):
            raise DataError(f"label {label!r} is not a class number")
        return np.int32(array)

    def _findings(self, targets: Mapping[str, Any]) -> tuple[str, ...]:
        if not self.classes or "label" not in targets:
            return ()
        label = targets["label"]
        chosen = [int(label)] if label.ndim == 0 else np.flatnonzero(label > 0)
        if any(not 0 <= k < len(self.classes) for k in chosen):
            raise DataError(f"label {label} is beyond the {len(self.classes)} classes")
        return tuple(self.classes[k] for k in chosen)


def _image(image: Any) -> np.ndarray | bytes | Path:
    """Pillow images and Hugging Face's {"bytes", "path"} as well."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, np.ndarray | bytes | Path):
        return image
    if hasattr(image, "convert"):
        return np.asarray(image if image.mode in ("L", "RGB", "I;16") else image.convert("RGB"))
    raise DataError(f"image must be an array, bytes, a path or a Pillow image, not {type(image).__name__}")
