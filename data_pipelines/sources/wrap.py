"""Use any Python object with a length and items as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.images import load
from data_pipelines.records import DataError, Record, View, eye_name, modality_name
from data_pipelines.sources.columns import row_index
from data_pipelines.sources.csv_table import class_index, findings_of


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
            findings=findings_of(targets, self.classes) if self.classes else (),
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


def _image(image: Any) -> np.ndarray | bytes | Path:
    """Convert Pillow images, path strings and Hugging Face's {"bytes", "path"} to the images of a View."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, np.ndarray | bytes | Path):
        return image
    if isinstance(image, Image.Image):
        return load(image)
    raise DataError(f"image must be an array, bytes, a path or a Pillow image, not {type(image).__name__}")
