"""RFMiD (Pachade et al. 2021, doi:10.3390/data6020014): fundus photographs with 28 conditions, several per image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.tables import is_empty, read_named

# The 27 conditions with enough examples. The data set's challenge merges the other 18 columns into OTHER.
CONDITIONS = (
    *("DR", "ARMD", "MH", "DN", "MYA", "BRVO", "TSLN", "ERM", "LS", "MS", "CSR", "ODC", "CRVO", "TV", "AH", "ODP"),
    *("ODE", "ST", "AION", "PT", "RT", "RS", "CRS", "EDN", "RPEC", "MHL", "RP"),
)


LABELS = (*CONDITIONS, "OTHER")
SPLITS = {"train": "Training", "valid": "Validation", "test": "Testing"}
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class RFMiD:
    """A label file (ID, Disease_Risk, DR, ...) and the folder of its images, named by ID; the target is label f32 [28].

    Raises DataError naming the file and the row or column. A missing image is reported when it is read.
    """

    labels: Path
    images: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The 28 names, in the order of `label`."""
        return LABELS

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitem__(self, index: int) -> Record:
        names, labels, places = self._rows
        where = places[index]
        for suffix in _SUFFIXES:
            path = self.images / f"{names[index]}{suffix}"
            if path.is_file():
                findings = tuple(LABELS[k] for k in np.flatnonzero(labels[index]))
                targets = {"label": labels[index].astype(np.float32)}
                return Record(names[index], (View(path),), findings=findings, targets=targets, where=where)
        raise DataError(f"{where}: no image {names[index]}{{{','.join(_SUFFIXES)}}} in {self.images}")

    @cached_property
    def _rows(self) -> tuple[list[str], np.ndarray, list[str]]:
        """The IDs, the labels bool [rows 28], and the place of each row for messages."""
        names, labels, places = [], [], []
        for place, row in read_named(self.labels, "ID", *CONDITIONS):
            columns = [name for name in row if name not in ("ID", "Disease_Risk")]
            others = [name for name in columns if name not in CONDITIONS]  # 18 conditions, or a single column OTHER
            if is_empty(row["ID"]):
                raise DataError(f"{place}: ID is empty")
            if bad := [name for name in columns if row[name] not in ("0", "1")]:
                raise DataError(f"{place}: {bad[0]} is {row[bad[0]]!r}, expected 0 or 1")
            names.append(row["ID"])
            places.append(place)
            labels.append([*(row[name] == "1" for name in CONDITIONS), any(row[name] == "1" for name in others)])
        if not names:
            raise DataError(f"{self.labels}: has no rows")
        return names, np.array(labels, bool).reshape(-1, len(LABELS)), places


def rfmid(root: str | Path, split: str) -> RFMiD:
    """A split (train, valid or test) in the publisher's layout: RFMiD_Training_Labels.csv and a folder of images.

    Raises DataError if `root` lacks the label file or the folder of images.
    """
    if split not in SPLITS:
        raise DataError(f"RFMiD split {split!r}: expected one of {', '.join(SPLITS)}")
    name = f"RFMiD_{SPLITS[split]}_Labels.csv"
    files = sorted(Path(root).rglob(name))
    if len(files) != 1:
        raise DataError(f"{root}: expected one {name} in it, found {len(files)}")
    folders = [folder for folder in sorted(files[0].parent.iterdir()) if folder.is_dir()]
    if len(folders) != 1:
        raise DataError(f"{files[0].parent}: expected one folder of images next to {name}, found {len(folders)}")
    return RFMiD(files[0], folders[0])
