"""Public data sets by name: `build` writes one as TFDS ArrayRecord, `source` reads it back. TensorFlow is not needed.

    idrid          fundus photographs with grades of diabetic retinopathy and macular oedema
    kermany_oct    OCT scans in four classes
    rfmid          fundus photographs with 28 conditions, read from the publisher's folder without building
    visits         visits of your own table, with all their views
    layouts        the description of a data set, and its folder layouts
    builder        the TFDS builder

To add a data set, write a file with an EyeDataset (see idrid.py), add it to DATASETS, and add a small folder to the test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.datasets import builder, visits
from data_pipelines.datasets.idrid import IDRID
from data_pipelines.datasets.kermany_oct import KERMANY_OCT
from data_pipelines.datasets.layouts import EyeDataset
from data_pipelines.datasets.visits import BuiltVisits
from data_pipelines.files.storage import fetched, is_address
from data_pipelines.records import DataError, Record, Source, View

DATASETS = {dataset.name: dataset for dataset in (IDRID, KERMANY_OCT)}
VISITS = visits.NAME
NAMES = (*DATASETS, VISITS)


def build(name: str, from_dir: str | Path, data_dir: str | Path) -> Path:
    """Build data set `name` from the folder it was unpacked to, and return the folder of the ArrayRecord files.

    `from_dir` has the publisher's layout, or images and a `labels.csv`. Raises DataError, and writes nothing, if the
    layout is unknown, a file is missing, or the data set is already built.
    """
    dataset = _known(name)
    target = builder.directory(name, Path(data_dir))
    if target.exists():
        raise DataError(f"{name} is already built; delete {target} to build it again")
    dataset.rows(Path(from_dir))
    return builder.write(dataset, DATASETS, Path(from_dir), Path(data_dir))


def build_visits(source: Source, data_dir: str | Path) -> Path:
    """Write the records of `source` as the data set visits, and return its folder. Raises DataError if there is one."""
    return visits.write(source, Path(data_dir))


def source(name: str, split: str, data_dir: str | Path) -> Built | BuiltVisits:
    """The records of one split of a built data set. Raises DataError if it has not been built."""
    local = fetched(f"{data_dir}/{name}").parent if is_address(data_dir) else Path(data_dir)
    if name == VISITS:
        target, given = visits.directory(local), "TABLE"
    else:
        target, given = builder.directory(_known(name).name, local), "FOLDER"
    if not target.is_dir():
        raise DataError(f"{name} is not built in {data_dir}: python launch.py data build {name} --from {given}")
    if name == VISITS:
        if split != "train":
            raise DataError(f"{name} has no split {split!r}, only train; patients are divided by --fractions")
        return BuiltVisits(str(target))
    return Built(name, split, str(target))


@dataclass(frozen=True)
class Built:
    """One split of a built data set. Its pickle holds only names; each process opens the files itself."""

    name: str
    split: str
    directory: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of `label`."""
        return DATASETS[self.name].classes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split}: row {index} of {len(self)} rows")
        row = self._rows[index]
        label, file = int(row["label"]), row["file"].decode()
        targets = {"label": label} | {key: int(row[key]) for key in DATASETS[self.name].targets}
        return Record(
            patient=row["patient"].decode(),
            views=(View(row["image"], row["modality"].decode()),),
            report=row["caption"].decode(),
            findings=(self.classes[label],),
            targets=targets,
            where=f"{self.name} {self.split} row {index + 1} ({file})",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "split": self.split, "directory": self.directory}

    @functools.cached_property
    def _rows(self) -> Any:
        tfds = builder.tensorflow_datasets()
        built: Any = tfds.builder_from_directory(self.directory)
        if self.split not in built.info.splits:
            raise DataError(f"{self.name} has no split {self.split!r}, only {', '.join(sorted(built.info.splits))}")
        return built.as_data_source(split=self.split, decoders={"image": tfds.decode.SkipDecoding()})


def _known(name: str) -> EyeDataset:
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; there are {', '.join(NAMES)}")
    return DATASETS[name]
