"""The description of a public data set, and the folder layouts in which it can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from data_pipelines.images.decode import FORMATS, UNREADABLE
from data_pipelines.records import DataError, no_such_image
from data_pipelines.sources import labels
from data_pipelines.sources.tables import is_empty, read_named


@dataclass(frozen=True)
class Row:
    """One image of a data set, with the publisher's split and label."""

    image: Path
    split: str
    label: int  # index into EyeDataset.classes
    patient: str
    targets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One possible arrangement of the files.

    `rows(folder)` is None for a folder with another layout, and raises DataError if something is missing or wrong.
    """

    expected: str  # describes the layout in messages
    rows: Callable[[Path], list[Row] | None]


@dataclass(frozen=True)
class EyeDataset:
    """One public data set.

    `codes` are the publisher's names of `classes`, in order. `captions` are this project's sentences, one per class.
    `targets` are the names of additional integer targets.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    codes: tuple[str, ...]
    captions: tuple[str, ...]
    layouts: tuple[Layout, ...]
    about: str
    licence: str
    citation: str
    homepage: str
    targets: tuple[str, ...] = ()

    def rows(self, folder: Path) -> list[Row]:
        """The rows of `folder`, in any of the layouts. Raises DataError with what was expected and what was found."""
        if not folder.is_dir():
            raise DataError(f"{self.name}: {folder} is not a folder")
        for layout in self.layouts:
            rows = layout.rows(folder)
            if rows is not None:
                _check_images(self.name, folder, rows)
                return rows
        expected = " or ".join(layout.expected for layout in self.layouts)
        raise DataError(f"{self.name}: expected {expected} in {folder}, found {listing(folder)}")


def listing(folder: Path) -> str:
    """A short listing of a folder, for messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) + more) or "nothing"


def inside(folder: Path, *names: str) -> Path | None:
    """`folder` or its subfolder that has all these entries, since archives unpack into either; None if neither has."""
    children = sorted(p for p in folder.iterdir() if p.is_dir())
    return next((p for p in (folder, *children) if all((p / name).exists() for name in names)), None)


def whole(text: str, where: str, column: str, below: int) -> int:
    """Parse a whole number in [0, below). Raises DataError naming row and column."""
    value = labels.whole(text)
    if value is None or value >= below:
        raise DataError(f"{where}: {column} is {text!r}, expected a whole number from 0 to {below - 1}")
    return value


def label_table(
    classes: Sequence[str],
    codes: Sequence[str],
    label: str,
    targets: Mapping[str, tuple[str, int]],
) -> Layout:
    """The layout of a folder with `labels.csv`, whose columns are `image` (a path in the folder) and a label.

    Args:
        classes: class names.
        codes: the publisher's names of the classes. A label is a class name, a code or a number.
        label: name of the label's column; "label" is accepted as well.
        targets: target name -> (column, number of values).

    Optional columns are `split` (default train) and `patient` (default: each image is its own patient).
    """

    def rows(folder: Path) -> list[Row] | None:
        path = folder / "labels.csv"
        if not path.is_file():
            return None
        return [_csv_row(folder, where, cells) for where, cells in read_named(path, "image")]

    def _csv_row(folder: Path, where: str, cells: dict[str, str]) -> Row:
        column = label if label in cells else "label"
        if column not in cells:
            raise DataError(f"{where}: no column {label!r} or 'label', it has {', '.join(cells)}")
        split, patient = ("" if is_empty(cells.get(name, "")) else cells[name] for name in ("split", "patient"))
        image, split = folder / cells["image"].replace("\\", "/"), split or "train"
        if not image.is_file():
            raise DataError(f"{where}: {no_such_image(image)}")
        patient = patient or f"{split}/{image.stem}"
        extra = {name: whole(cells.get(key, ""), where, key, below) for name, (key, below) in targets.items()}
        return Row(image, split, _class(cells[column], where, column), patient, extra)

    def _class(text: str, where: str, column: str) -> int:
        for names in (codes, classes):
            if text in labels.lookup(tuple(names)):
                return labels.lookup(tuple(names)).index(text)
        if (number := labels.whole(text)) is not None and number < len(classes):
            return number
        known = f"{', '.join(codes)} or 0 to {len(classes) - 1}"
        raise DataError(f"{where}: {column} is {text!r}, expected one of {known}")

    return Layout(f"labels.csv with the columns image and {label} (or label)", rows)


def _check_images(name: str, folder: Path, rows: list[Row]) -> None:
    if not rows:
        raise DataError(f"{name}: {folder} has the right folders but no images in them")
    for row in rows:
        try:
            # reads only the header, which detects truncated files and HTML error pages
            Image.open(row.image, formats=FORMATS).close()
        except Image.DecompressionBombError as error:
            raise DataError(f"{name}: {row.image} has too many pixels ({error})") from error
        except UNREADABLE as error:
            raise DataError(f"{name}: {row.image} is not an image ({row.image.stat().st_size} bytes)") from error
