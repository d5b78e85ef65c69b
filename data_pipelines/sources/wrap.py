"""Use any Python object with a length and items as a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.images.decode import load
from data_pipelines.records import ATTRIBUTES, DataError, Record, View, eye_name, modality_name
from data_pipelines.sources.columns import row_index
from data_pipelines.sources.labels import NOT_LABELLED, findings_of, lookup
from data_pipelines.sources.tables import is_empty, plain
from data_pipelines.sources.visits import day


class Items(Protocol):
    """A list or data set for `wrap`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def wrap(
    items: Items, columns: Mapping[str, str] | None = None, *, classes: Sequence[str] = (), modality: str = "CFP"
) -> Wrapped:
    """Use any object with a length and items as a source: a list, a torch or Hugging Face data set, ...

    An item is a Record, a tuple (image, text) or (image, label), or a mapping with the key image and optional keys
    text, label, modality, eye, patient, day, mask, points, value, age, sex, device, site, camera and ethnicity. An image is
    an array, encoded bytes, a path or a Pillow image. A missing text, eye or modality (None, NaN, pandas.NA, or a word for
    it, as in a table) is empty; a missing label, or one below 0, is not labelled.

    Args:
        items: the object.
        columns: maps our keys to the keys of the items.
        classes: class names; labels are indices or names of them.
        modality: modality of items that name none.

    Reading an item raises DataError naming its row.
    """
    lookup(tuple(classes))  # checks the names
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
        item = self._named(item)
        if "image" not in item:
            raise DataError(f"has no image, only {', '.join(map(str, item)) or 'nothing'}")
        targets = {name: _numbers(name, item[name]) for name in ("points", "value") if item.get(name) is not None}
        if _given(item.get("mask")):
            targets["mask"] = _mask(item["mask"])
        if item.get("label") is not None:
            targets["label"] = self._label(item["label"])
        view = View(
            _image(item["image"]),
            modality_name(_word(item, "modality") or self.modality),
            eye_name(_word(item, "eye")),
        )
        return Record(
            patient=_patient(item, place),
            views=(view,),
            report=_word(item, "text"),
            findings=findings_of(targets, self.classes) if self.classes else (),
            targets=targets,
            day=_day(item),
            where=place,
            attributes={name: str(item[name]) if _given(item[name]) else "" for name in ATTRIBUTES if name in item},
        )

    def _named(self, item: Any) -> dict[str, Any]:
        """Convert an item to a mapping with our keys."""
        if isinstance(item, Mapping):
            return self._map_columns(item)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"an item must be a Record, a mapping or (image, text), not {type(item).__name__}")
        if not _given(item[1]):
            raise DataError(f"(image, {item[1]}): expected a text or a label after the image")
        return {"image": item[0], ("text" if isinstance(item[1], str) else "label"): item[1]}

    def _map_columns(self, item: Mapping[str, Any]) -> dict[str, Any]:
        missing = [theirs for _, theirs in self.columns if theirs not in item]
        if missing:
            raise DataError(f"has no {', '.join(missing)}, only {', '.join(map(str, item))}")
        return {**item, **{ours: item[theirs] for ours, theirs in self.columns}}

    def _label(self, label: Any) -> np.ndarray | np.int32:
        if isinstance(label, str):
            return np.int32(lookup(self.classes).index(plain(label)))
        if not _given(label):
            return np.int32(NOT_LABELLED)
        array = np.asarray(label)
        if array.ndim:
            return _findings(array)
        if array.dtype.kind not in "biu" and not (array.dtype.kind == "f" and float(array).is_integer()):
            raise DataError(f"label {label!r} is not a class number")
        return np.int32(max(int(array), NOT_LABELLED))


def _given(value: Any) -> bool:
    """Whether a value is there: not None, NaN (a value that is not equal to itself), pandas.NA or an empty text."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return False
    if isinstance(value, str):
        return not is_empty(plain(value))
    return not (isinstance(value, float | np.floating) and np.isnan(value))


def _word(item: Mapping[str, Any], key: str) -> str:
    """The text of a key, "" if it is missing. Raises DataError for bytes, numbers and lists."""
    value = item.get(key)
    if not _given(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{key} must be a text, not {type(value).__name__} {value!r:.40}")
    return str(value)


def _day(item: Mapping[str, Any]) -> int:
    """The day of a visit, 0 without the key."""
    if "day" not in item:
        return 0
    if not _given(item["day"]):
        raise DataError(f"day is empty ({item['day']!r}); give the day, or leave the key out")
    return day(item["day"])[0]


def _patient(item: Mapping[str, Any], place: str) -> str:
    """The patient as text: a text or a whole number. Without the key, each item is its own patient."""
    if "patient" not in item:
        return place
    value = item["patient"]
    if not _given(value):
        raise DataError(f"patient is empty ({value!r}); name the patient, or leave the key out")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
        raise DataError(f"patient must be a text or a whole number, not {type(value).__name__} {value!r:.40}")
    return str(value)


def _findings(label: np.ndarray) -> np.ndarray:
    """Several labels as f32 [K] of 1, 0 and NaN. Raises DataError for other numbers."""
    try:
        found = label.astype(np.float32)
    except (TypeError, ValueError):
        raise DataError(f"label {label.tolist()!r:.60} is not a list of numbers") from None
    if label.ndim != 1 or not (np.isnan(found) | (found == 0) | (found == 1)).all():
        raise DataError(f"label {label.tolist()!r:.60}: several labels are each 0, 1 or NaN")
    return found


def _numbers(name: str, value: Any) -> Any:
    """Points or values as they are. Raises DataError if they are not numbers."""
    try:
        np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{name} {value!r:.60} is not a number or a list of numbers") from None
    return value


def _mask(mask: Any) -> Any:
    """Convert Hugging Face's {"bytes", "path"} and lists to the masks of a record."""
    if isinstance(mask, Mapping):
        return mask.get("bytes") or Path(mask["path"])
    return np.asarray(mask) if isinstance(mask, list) else mask


def _image(image: Any) -> np.ndarray | bytes | os.PathLike[str]:
    """Convert Pillow images, path strings and Hugging Face's {"bytes", "path"} to the images of a View."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, np.ndarray) and not _given(image):
        raise DataError(f"image is empty ({image!r})")
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, np.ndarray | bytes | os.PathLike):
        return image
    if isinstance(image, Image.Image):
        return load(image)
    raise DataError(f"image must be an array, bytes, a path or a Pillow image, not {type(image).__name__}")
