"""A source for images in folders, one folder for each class."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.images.decode import DEFAULT, EXTENSIONS, ReadOptions
from data_pipelines.notices import warn_once
from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import Indexed, Stored, Strings, StringWriter, read_once, row_index

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}

# folders that operating systems, network drives and notebooks make by themselves; names that start with a dot as well
_HELPERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__")
_HELPER_FILES = ("thumbs.db", "desktop.ini")

_log = logging.getLogger(__name__)


def image_folder(
    root: str | Path,
    split: str = "",
    classes: Sequence[str] = (),
    modality: str = "CFP",
    reading: ReadOptions = DEFAULT,
    declare: Sequence[str] = (),
) -> FolderSource:
    """Images in `root/<class>/`, or in `root/{train,val,test}/<class>/` as RETFound lays them out.

    Images in subfolders of a class are read too, and the first subfolder is then their patient:
    `root/train/AMD/p001/left.jpg`. The label is the index of the class.

    Args:
        root: folder of the classes or of the parts.
        split: train, val (also valid, validation or dev) or test; "all" for all parts together. "" is train, or `root`
            itself if it has no parts.
        classes: class names in order; a class without a folder has no images, and a folder that is not listed is an
            error. () sorts the folder names of all parts together, so that labels agree between parts; numbers are
            sorted as numbers.
        modality: modality of all images.
        reading: how the image files are read.
        declare: names of modalities in addition to MODALITIES.

    The first use raises DataError if a folder or its images are missing, for a class folder without images, and for two
    classes that differ only in capitals. It logs the files that are passed over.
    """
    return FolderSource(Path(root), split, tuple(classes or ()), modality_name(modality, declare), reading)


def parts_of(root: str | Path) -> dict[str, list[Path]]:
    """The folders of the parts train, val and test that a root has; {} if it holds the folders of classes itself.

    val, valid, validation and dev are one part. Raises DataError if folders of parts and of classes are mixed.
    """
    names = _folders(Path(root))
    found = {part: [Path(root) / n for n in names if n.lower() in same] for part, same in PARTS.items()}
    found = {part: folders for part, folders in found.items() if folders}
    others = [name for name in names if not any(name.lower() in same for same in PARTS.values())]
    if found and "train" not in found and others:
        raise DataError(
            f"{root}: holds the part {', '.join(found)} and also {', '.join(others[:5])}; expected either "
            f"{root}/<class>/ or {root}/train/<class>/"
        )
    if found and others:
        warn_once(
            _log,
            (root, "parts"),
            "%s: ignored folders, because they are not parts of the data: %s",
            root,
            ", ".join(others),
        )
    return found


def images_below(folder: Path) -> tuple[list[str], Counter[str]]:
    """Paths of all images in a folder and its subfolders, relative to it and sorted; and the endings of other files.

    Hidden files and the folders that operating systems make by themselves are left out.
    """
    names, others, seen = [], Counter[str](), set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_helper(name)]
        for name in files:
            if name.startswith(".") or name.lower() in _HELPER_FILES:
                continue
            if name.lower().endswith(EXTENSIONS):
                names.append(os.path.relpath(os.path.join(place, name), folder))
            else:
                others[os.path.splitext(name)[1].lower() or "no ending"] += 1
    return sorted(names), others


def is_helper(name: str) -> bool:
    """Whether a folder is hidden or made by an operating system, and so never a class or a modality."""
    return name.startswith(".") or name.lower() in _HELPERS


def report_others(folder: Path, others: Counter[str]) -> None:
    """Log how many files of a folder are passed over because they are not images, by their endings."""
    if others:
        counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        _log.warning("%s: %d files are not images and are passed over (%s)", folder, others.total(), counts)


@dataclass(frozen=True)
class FolderSource(Indexed):
    """See image_folder."""

    root: Path
    split: str
    names: tuple[str, ...]
    modality: str
    reading: ReadOptions = DEFAULT

    @read_once
    def bases(self) -> tuple[Path, ...]:
        """The folders that hold the folders of classes."""
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        parts = parts_of(self.root)
        split = self.split or ("train" if parts else "all")
        part = next((name for name, same in PARTS.items() if split.lower() in same), "")
        if split == "all":
            wanted = [folder for folders in parts.values() for folder in folders] or [self.root]
        else:
            wanted = parts.get(part, []) if part else [self.root / split]
        if not wanted or not wanted[0].is_dir():
            present = ", ".join(_folders(self.root)) or "no folders"
            raise DataError(f"{self.root / split}: no such folder, {self.root} holds {present}")
        return tuple(wanted)

    @read_once
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index."""
        own = [(base, name) for base in self.bases for name in _classes_in(base)]
        if self.names:
            if unknown := [base / name for base, name in own if name not in self.names]:
                raise DataError(f"{unknown[0]}: is not one of the classes {', '.join(self.names)}")
            return self.names
        every = [name for folders in parts_of(self.root).values() for base in folders for name in _classes_in(base)]
        return _class_names({*every, *(name for _, name in own)}, self.root)

    @read_once
    def index(self) -> tuple[Strings, Strings, Stored]:
        """Paths of the files relative to the root, their patients and their labels, sorted by class and name."""
        number, found, empty, others = {name: k for k, name in enumerate(self.classes)}, [], [], Counter[str]()
        for base, name in [(folder, name) for folder in self.bases for name in _classes_in(folder)]:
            images, passed = images_below(base / name)
            others += passed
            found += [(number[name], base / name, image) for image in images]
            if not images:
                held = ", ".join(f"{count} {ending}" for ending, count in passed.most_common(3)) or "no files"
                empty.append(f"{base / name}: a class without images ({', '.join(EXTENSIONS)}); it holds {held}")
        if not found:
            raise DataError(f"{self._called}: no images ({', '.join(EXTENSIONS)}) in folders {self._called}/<class>/")
        if empty:
            raise DataError(empty[0])
        report_others(self._called, others)
        return self._columns(sorted(found))

    def _columns(self, found: Sequence[tuple[int, Path, str]]) -> tuple[Strings, Strings, Stored]:
        files, patients, nested = StringWriter(), StringWriter(), []
        for _, folder, image in found:
            first, _, rest = image.partition(os.sep)
            nested += [first] if rest else []
            files.append(str((folder / image).relative_to(self.root)))
            patients.append(first if rest else f"{folder.name}/{image}")
        if nested:
            what = "%s: %d images are in %d subfolders of the classes; each subfolder is taken as one patient"
            _log.warning(what, self._called, len(nested), len(set(nested)))
        return files.finish(), patients.finish(), Stored(np.array([label for label, _, _ in found], np.int32))

    @property
    def _called(self) -> Path:
        return self.bases[0] if len(self.bases) == 1 else self.root

    def __len__(self) -> int:
        return len(self.index[0])

    def __getitem__(self, index: int) -> Record:
        row = row_index(index, len(self))
        files, patients, labels = self.index
        label = np.int32(labels.array[row])
        view = View(self.reading.file(self.root / files[row]), self.modality)
        where = f"{self._called} image {row + 1}"
        return Record(patients[row], (view,), findings=(self.classes[label],), targets={"label": label}, where=where)

    def patients(self) -> list[str]:
        """The patient of each row: its subfolder of the class, or else its own name."""
        return [self.index[1][row] for row in range(len(self))]

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [rows] of each patient, for split_by."""
        return self.index[1].hashes(seed)


def _class_names(names: set[str], root: Path) -> tuple[str, ...]:
    """Class names in order, numbers as numbers. Raises DataError for none, and for two spellings of one name."""
    if not names:
        tables = [entry.name for entry in sorted(root.iterdir()) if entry.suffix.lower() in (".csv", ".tsv", ".xlsx")]
        loose = sum(entry.name.lower().endswith(EXTENSIONS) for entry in root.iterdir())
        hint = f"; or give its table: {root / tables[0]}" if tables else ""
        raise DataError(
            f"{root}: has {loose} images and no folders of classes; expected {root}/<class>/ or "
            f"{root}/train/<class>/{hint}"
        )
    spellings: dict[str, str] = {}
    for name in sorted(names):
        other = spellings.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            raise DataError(f"{root}: the folders {other!r} and {name!r} are two spellings of one class; rename one")
    return tuple(sorted(names, key=_natural))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that takes runs of digits as numbers: 0, 1, 2, 10."""
    pieces = re.split(r"(\d+)", name)
    return (*((1, int(p), "") if p.isdecimal() else (2, 0, p) for p in pieces if p), (0, 0, name))


def _classes_in(base: Path) -> list[str]:
    """The folders of classes in a folder; a negative number is not a class, as in tables."""
    names = _folders(base)
    if unlabelled := [name for name in names if re.fullmatch(r"-\d+", name)]:
        message = "%s: folders named by a negative number are not labelled and are passed over: %s"
        warn_once(_log, (base, "unlabelled"), message, base, ", ".join(unlabelled))
    return [name for name in names if name not in unlabelled]


def _folders(base: Path) -> list[str]:
    if not base.is_dir():
        return []
    return sorted(e.name for e in os.scandir(base) if e.is_dir() and not is_helper(e.name))
