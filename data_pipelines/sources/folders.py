"""A source for images in folders, one folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.images import EXTENSIONS
from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import Indexed, Stored, Strings, StringWriter, read_once, row_index

SPLITS = ("train", "val", "test")


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
class FolderSource(Indexed):
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
