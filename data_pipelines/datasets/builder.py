"""The TFDS builder of the public data sets: one configuration per data set, stored as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.layouts import EyeDataset, Row
from data_pipelines.records import DataError

VERSION = "1.0.0"  # increase it when features() changes


def directory(name: str, data_dir: Path) -> Path:
    """The folder of a built data set."""
    return data_dir / "eye_datasets" / name / VERSION


def tensorflow_datasets() -> Any:
    """Import tensorflow_datasets. Raises DataError if it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise DataError("data sets of TensorFlow Datasets need `pip install -e '.[tfds]'`") from None
    return tfds


def write(dataset: EyeDataset, datasets: Mapping[str, EyeDataset], from_dir: Path, data_dir: Path) -> Path:
    """Build `dataset` from the publisher's folder. TFDS writes to a temporary folder and renames it at the end."""
    builder = builder_class(tuple(datasets.values()))(config=dataset.name, data_dir=str(data_dir))
    prepare(builder, str(from_dir.absolute()))
    return directory(dataset.name, data_dir)


def prepare(builder: Any, from_dir: str | None = None) -> None:
    """Let a TFDS builder write its files, with a progress bar on a terminal."""
    tfds = tensorflow_datasets()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS prints messages about downloads and creates a folder for them, although nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(manual_dir=from_dir),
            file_format="array_record",
        )


@functools.cache
def builder_class(datasets: tuple[EyeDataset, ...]) -> Any:
    """The TFDS builder class of these data sets, created on demand because importing TFDS takes a second."""
    tfds = tensorflow_datasets()
    entries = {dataset.name: dataset for dataset in datasets}

    class EyeDatasets(tfds.core.GeneratorBasedBuilder):
        """Public ophthalmic data sets: encoded images with label, patient, modality and a caption."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS declares them this way)
            tfds.core.BuilderConfig(name=d.name, description=d.about) for d in datasets
        ]
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack the publisher's archive; build() lists the files that it expects."

        @property
        def entry(self) -> EyeDataset:
            chosen: Any = self.builder_config
            return entries[chosen.name]

        def _info(self) -> Any:
            about = self.entry
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{about.about.strip()} Licence: {about.licence}.",
                homepage=about.homepage,
                citation=about.citation,
                license=about.licence,
                features=tfds.features.FeaturesDict(features(about, tfds)),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            folder = Path(dl_manager.manual_dir)
            rows: dict[str, list[Row]] = {}
            for row in self.entry.rows(folder):
                rows.setdefault(row.split, []).append(row)
            return {split: self._generate_examples(folder, part) for split, part in rows.items()}

        def _generate_examples(self, folder: Path, rows: list[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
            for row in rows:
                file = row.image.relative_to(folder).as_posix()
                yield file, example(self.entry, row, file)

    return EyeDatasets


def features(dataset: EyeDataset, tfds: Any) -> dict[str, Any]:
    """The TFDS features of a row. Images are given as paths and keep their encoded bytes, so no TensorFlow is needed."""
    return {
        "image": tfds.features.Image(shape=(None, None, None)),
        "file": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=list(dataset.classes)),
        "patient": tfds.features.Text(),
        "modality": tfds.features.Text(),
        "caption": tfds.features.Text(),
        **{name: tfds.features.Scalar(np.int32) for name in dataset.targets},
    }


def example(dataset: EyeDataset, row: Row, file: str) -> dict[str, Any]:
    """The features of one row."""
    return {
        "image": str(row.image),
        "file": file,
        "label": row.label,
        "patient": row.patient,
        "modality": dataset.modality,
        "caption": dataset.captions[row.label],
        **{name: row.targets[name] for name in dataset.targets},
    }
