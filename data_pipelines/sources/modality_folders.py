"""VisionFM's image folders, one for each modality, and the mean and standard deviation of each modality."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.images.decode import DEFAULT, EXTENSIONS, ReadOptions
from data_pipelines.records import MODALITIES, DataError, Record, Source, View, modality_name
from data_pipelines.sources.columns import Strings, read_once, row_index
from data_pipelines.sources.folders import images_below, is_helper, report_others

RGB = tuple[float, float, float]
Moments = tuple[RGB, ...]

# Mean and standard deviation of RGB in [0, 1] over VisionFM's pretraining images; github.com/ABILab-CUHK/VisionFM.
PUBLISHED: Mapping[str, tuple[RGB, RGB]] = {
    "CFP": ((0.423737496, 0.260946065, 0.128403902), (0.294825345, 0.201673657, 0.136680202)),
    "FFA": ((0.2020487, 0.20205145, 0.20201068), (0.17406046, 0.17404206, 0.17401208)),
    "OCT": ((0.21091926, 0.21091926, 0.21091919), (0.17598894, 0.17598891, 0.17598893)),
    "SLIT_LAMP": ((0.5556667, 0.40288574, 0.38857886), (0.26516676, 0.23311588, 0.23903583)),
    "EXTERNAL": ((0.4936253, 0.36324808, 0.25956994), (0.32001, 0.27109432, 0.21991591)),
    "B_ULTRASOUND": ((0.05989236, 0.05978666, 0.056694973), (0.154277, 0.15504874, 0.14464583)),
    "UBM": ((0.096110865, 0.096110865, 0.096110865), (0.20977867, 0.20977867, 0.20977867)),
    "MRI": ((0.17368862, 0.17368862, 0.17368862), (0.16198656, 0.16198656, 0.16198656)),
}


NEAREST = {"UWF": "CFP", "ICGA": "FFA", "FAF": "FFA"}  # stand-ins for modalities that VisionFM does not have


def moments(names: Sequence[str] = MODALITIES) -> tuple[Moments, Moments]:
    """Mean and standard deviation, one row per name; by default a table that `modality` of a batch indexes."""
    rows = [PUBLISHED[NEAREST.get(name, name)] for name in map(modality_name, names)]
    return tuple(mean for mean, _ in rows), tuple(std for _, std in rows)


@dataclass(frozen=True)
class PlainFolder:
    """All images in `root` and its subfolders, sorted by name, as views of one modality, without labels or patients.

    The first use raises DataError if the folder is missing or has no images, and logs the files that are passed over.
    """

    root: Path
    modality: str
    reading: ReadOptions = DEFAULT

    @read_once
    def files(self) -> Strings:
        """Paths of the files relative to `root`."""
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such image folder")
        names, others = images_below(self.root)
        report_others(self.root, others)
        if not names:
            raise DataError(f"{self.root}: no images ({', '.join(EXTENSIONS)})")
        return Strings.of(names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        name = self.files[row_index(index, len(self))]
        return Record(name, (View(self.reading.file(self.root / name), self.modality),), where=str(self.root / name))

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [rows] of each path, for split_by; a folder has no patients."""
        return self.files.hashes(seed)


def modality_folders(root: str | Path, only: Sequence[str] = (), reading: ReadOptions = DEFAULT) -> dict[str, Source]:
    """Open `root/<Modality>/*`, VisionFM's layout: a source for each modality, in the order of MODALITIES.

    Folders are named by MODALITIES or their aliases (Fundus, Ultrasound, Silt-Lamp, ...). `only` selects modalities, and
    `reading` says how the files are read.
    Raises DataError for a folder that does not name a modality, two folders of one modality, and if nothing is left.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    sources: dict[str, Source] = {}
    for entry in sorted(e.name for e in os.scandir(root) if e.is_dir() and not is_helper(e.name)):
        try:
            name = modality_name(entry)
        except DataError as error:
            raise DataError(f"{root / entry}: {error}") from None
        if name in sources:
            raise DataError(f"{root / entry}: another folder of {root} is also {name}")
        sources[name] = PlainFolder(root / entry, name, reading)
    kept = {name: sources[name] for name in MODALITIES if name in sources and (not only or name in only)}
    if not kept:
        wanted = ", ".join(only) or ", ".join(MODALITIES)
        raise DataError(f"{root}: no folder of {wanted}; it holds {', '.join(sources) or 'no folders'}")
    return kept
