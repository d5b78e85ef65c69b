"""Sources for a CSV file, a folder with one subfolder per class, and any Python object with a length and items.

Creating a source opens no file. The first use reads the index, which worker processes then receive ready made.
"""

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
from data_pipelines.sources.csv_table import EMPTY, Columns, CsvSchema, Table, class_index, read_table, where

SPLITS = ("train", "val", "test")


class _Indexed:
    """Reads the index before it is pickled, so that the parent reads it once and not every worker."""

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
    """A CSV file with one image per row.

    The columns image, text, label, modality, eye, patient and day are read if the file has them; only image is
    required. Without a patient column, each image counts as its own patient.

    Args:
        path: the file; its first line names the columns.
        image_dir: folder that image and mask paths are relative to; None is the folder of the file.
        sep: the separator, one character.
        columns: maps our names to the file's columns, to templates over them ("{ID}.png", "photograph of {diagnosis}"),
            or to None to ignore a column. These names are read only if they are mapped: mask (a path; or several
            columns, one for each class, which may overlap; an empty cell means that the image lacks the class), fov
            (mask of the field of view), points (columns x, y, x, y, ...) and value (one or several columns). Several
            columns as the label are a multi-label f32 [K].
        only: maps columns of the file to the value that a row must have, such as {"split": "train"}.
        require: our names that the file must have, besides image.
        classes: class names in order; None keeps class numbers 0..max and sorts class names.
        modality: modality of rows that name none.
        empty: what to do with a row whose image, text, label or patient is empty: "error", or "drop" it and log how
            many were dropped. "keep" keeps gaps in a multi-label as NaN, which means not labelled.
        encoding: text encoding of the file, such as "gb18030".

    The first use reads the file. It raises DataError naming the file and its columns, or the row (from 1, without the
    header) and the line.
    """
    mapped = tuple((ours, v if isinstance(v, str) else tuple(v or ())) for ours, v in (columns or {}).items())
    schema = CsvSchema(
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
    return CsvSource(schema, Path(image_dir) if image_dir is not None else Path(path).parent)


@dataclass(frozen=True)
class CsvSource(_Indexed):
    """See csv_source."""

    schema: CsvSchema
    image_dir: Path

    @read_once
    def table(self) -> Table:
        """The index, which the first use reads."""
        if not self.image_dir.is_dir():
            raise DataError(f"{self.image_dir}: no such image folder")
        return read_table(self.schema)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index; () without labels."""
        return self.table.names.get("label", ())

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        row, table = row_index(index, len(self)), self.table
        text = {name: column[row] for name, column in table.texts.items()}
        named = {name: table.names[name][self._code(name, row)] for name in ("modality", "eye") if name in table.codes}
        view = View(self.image_dir / text["image"], named.get("modality", self.schema.modality), named.get("eye", ""))
        targets = self._targets(row, text.get("mask", ""), text.get("fov", ""))
        return Record(
            patient=text.get("patient", text["image"]),
            views=(view,),
            report=text.get("text", ""),
            findings=_findings(targets, self.classes),
            targets=targets,
            day=self._code("day", row) if "day" in table.codes else 0,
            where=where(self.schema.path, *table.places.array[row].tolist()),
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
            files = tuple(self.image_dir / path if path.lower() not in EMPTY else None for path in paths)
            if any(files):
                targets[name] = next(iter(files)) if len(files) == 1 else files
        return targets

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """u64 [rows]: a hash of each string of a column, for split_by. Without patients, the image is hashed."""
        texts = self.table.texts
        if key not in texts and key != "patient":
            raise DataError(f"{self.schema.path}: cannot be split by {key}, only by {', '.join(texts)}")
        return texts.get(key, texts["image"]).hashes(seed)


def image_folder(
    root: str | Path, split: str = "train", classes: Sequence[str] | None = None, modality: str = "CFP"
) -> FolderSource:
    """Images in `root/{train,val,test}/<class>/`, as RETFound lays them out. The label is the index of the class.

    Args:
        root: folder of the splits.
        split: train, val or test.
        classes: class names in order; a class without a folder has no images, and a folder that is not listed is an
            error. None sorts the folder names of all splits together, so that labels agree between splits.
        modality: modality of all images.

    The first use raises DataError if the folder, the split or its images are missing.
    """
    return FolderSource(Path(root), split, None if classes is None else tuple(classes), modality_name(modality))


@dataclass(frozen=True)
class FolderSource(_Indexed):
    """See image_folder."""

    root: Path
    split: str
    names: tuple[str, ...] | None
    modality: str

    @read_once
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index."""
        folders = sorted({name for split in SPLITS for name in _folders(self.root / split)} | set(self._folders()))
        if self.names is None:
            return tuple(folders)
        unknown = [name for name in self._folders() if name not in self.names]
        if unknown:
            raise DataError(f"{self.root / self.split / unknown[0]}: is not one of the classes {', '.join(self.names)}")
        return self.names

    def _folders(self) -> list[str]:
        if not (self.root / self.split).is_dir():
            present = ", ".join(_folders(self.root)) or "no folders" if self.root.is_dir() else "nothing"
            raise DataError(f"{self.root / self.split}: no such folder, {self.root} holds {present}")
        return _folders(self.root / self.split)

    @read_once
    def index(self) -> tuple[Strings, Stored]:
        """File paths relative to the split, and their labels, sorted by class and name."""
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
        row = row_index(index, len(self))
        file, label = self.index[0][row], np.int32(self.index[1].array[row])
        path = self.root / self.split / file
        view = View(path, self.modality)
        where = f"{self.root / self.split} image {row + 1}"
        return Record(file, (view,), findings=(self.classes[label],), targets={"label": label}, where=where)

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """u64 [rows]: a hash of each file name, for split_by; a folder has no patients."""
        return self.index[0].hashes(seed)


def _folders(base: Path) -> list[str]:
    if not base.is_dir():
        return []
    return sorted(e.name for e in os.scandir(base) if e.is_dir() and not e.name.startswith("."))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS)


def row_index(index: int, length: int) -> int:
    """`index` as a row in 0..length - 1; negative ones count from the end. Raises IndexError."""
    row = int(index) + length if index < 0 else int(index)
    if not 0 <= row < length:
        raise IndexError(f"row {index} of {length}")
    return row


class Items(Protocol):
    """A list or data set for `wrap`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def wrap(
    items: Items, columns: Mapping[str, str] | None = None, *, classes: Sequence[str] = (), modality: str = "CFP"
) -> Wrapped:
    """Use any object with a length and items as a source: a list, a torch or Hugging Face data set, ...

    An item is a Record, a tuple (image, text) or (image, label), or a mapping with the key image and optional keys
    text, label, modality, eye, patient, day, mask, points and value. An image is an array, encoded bytes, a path or a
    Pillow image.

    Args:
        items: the object.
        columns: maps our keys to the keys of the items.
        classes: class names; labels are indices or names of them.
        modality: modality of items that name none.

    Reading an item raises DataError naming its row.
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
        row = row_index(index, len(self))
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
            item = self._map_columns(item)
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
            findings=_findings(targets, self.classes) if self.classes else (),
            targets=targets,
            day=int(item.get("day") or 0),
            where=place,
        )

    def _map_columns(self, item: Mapping[str, Any]) -> dict[str, Any]:
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


def _findings(targets: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that a label says are present."""
    if "label" not in targets:
        return ()
    label = targets["label"]
    present: list[int] = [int(label)] if label.ndim == 0 else np.flatnonzero(label > 0).tolist()
    if any(not 0 <= k < len(classes) for k in present):
        raise DataError(f"label {label} is beyond the {len(classes)} classes")
    return tuple(classes[k] for k in present)


def _image(image: Any) -> np.ndarray | bytes | Path:
    """Convert Pillow images, path strings and Hugging Face's {"bytes", "path"} to the images of a View."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, np.ndarray | bytes | Path):
        return image
    if hasattr(image, "convert"):
        return np.asarray(image if image.mode in ("L", "RGB", "I;16") else image.convert("RGB"))
    raise DataError(f"image must be an array, bytes, a path or a Pillow image, not {type(image).__name__}")
