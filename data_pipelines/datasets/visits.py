"""Visits as a TFDS data set: `launch.py data build visits --from TABLE`, read back by `tfds:visits`, with all views of a visit."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.datasets.builder import prepare, tensorflow_datasets
from data_pipelines.files.json_files import checked
from data_pipelines.images.decode import load
from data_pipelines.records import DataError, Record, Source, View

NAME, VERSION = "visits", "1.0.0"
ENCODED = (b"\xff\xd8", b"\x89PNG")  # JPEG and PNG are stored as they are; all others as PNG


def directory(data_dir: Path) -> Path:
    """The folder of the built visits."""
    return data_dir / "eye_visits" / NAME / VERSION


def write(source: Source, data_dir: Path) -> Path:
    """Write the records of `source` as one split "train", in their order. Raises DataError if the folder exists.

    A record keeps its views, reports, findings, attributes, and targets that are numbers or lists of numbers. Masks are
    refused; `launch.py data convert` stores them.
    """
    target = directory(data_dir)
    if target.exists():
        raise DataError(f"{NAME} is already built; delete {target} to build it again")
    prepare(builder_class()(source, config=NAME, data_dir=str(data_dir)))
    return target


@functools.cache
def builder_class() -> Any:
    """The TFDS builder class, created on demand because importing TFDS takes a second."""
    tfds = tensorflow_datasets()
    text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
    view = {"image": text, "modality": text, "eye": text, "report": text, "targets": text}
    features = {
        **dict.fromkeys(("patient", "report", "report_left", "report_right", "targets", "attributes", "where"), text),
        "day": number,
        "findings": tfds.features.Sequence(text),
        "views": tfds.features.Sequence(view),
    }

    class EyeVisits(tfds.core.GeneratorBasedBuilder):
        """Visits of patients: encoded images with modality and eye, reports of the views, the eyes and the visit."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=NAME)]  # noqa: RUF012 (TFDS declares them this way)

        def __init__(self, source: Source, **options: Any) -> None:
            self.source = source
            super().__init__(**options)

        def _info(self) -> Any:
            classes = list(getattr(self.source, "classes", ()))
            return tfds.core.DatasetInfo(
                builder=self,
                description="Visits of patients, built by launch.py data build visits. targets and attributes are JSON.",
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(classes=classes),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for row in range(len(self.source)):
                yield row, example(self.source[row])

    return EyeVisits


def example(record: Record) -> dict[str, Any]:
    """The TFDS example of a record."""
    views = [
        {"image": _encoded(view.image), "modality": view.modality, "eye": view.eye, "report": view.report,
         "targets": _numbers(view.targets, record.where)}
        for view in record.views
    ]  # fmt: skip
    return {
        **{f"report_{side}": record.eye_reports.get(side, "") for side in ("left", "right")},
        **{name: getattr(record, name) for name in ("patient", "report", "day", "where")},
        "targets": _numbers(record.targets, record.where),
        "attributes": json.dumps(dict(record.attributes), ensure_ascii=False),
        "findings": list(record.findings),
        "views": views,
    }


def _encoded(image: Any) -> bytes:
    data = Path(image).read_bytes() if isinstance(image, os.PathLike) else image
    if isinstance(data, bytes) and data.startswith(ENCODED):
        return data
    buffer = io.BytesIO()
    Image.fromarray(load(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _numbers(targets: Mapping[str, Any], where: str) -> str:
    """Targets as JSON, {name: [dtype, value]}. Raises DataError for what is not a number or an array of numbers."""
    arrays = {name: np.asarray(value) for name, value in targets.items() if not isinstance(value, Mapping)}
    wrong = [name for name in targets if name not in arrays or arrays[name].dtype.kind not in "biuf"]
    if wrong:
        raise DataError(
            f"{where}: target {wrong[0]!r} is not a number; launch.py data convert stores masks and the like"
        )
    return json.dumps({name: [value.dtype.str, value.tolist()] for name, value in arrays.items()})


@dataclass(frozen=True)
class BuiltVisits:
    """The built visits of a folder. The pickle holds only its name."""

    directory: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of `label`."""
        return tuple((self._built.info.metadata or {}).get("classes", ()))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{NAME}: row {index} of {len(self)} rows")
        row = self._rows[index]
        views = {name: row["views"][name] for name in ("image", "modality", "eye", "report", "targets")}
        words = {name: row[name].decode() for name in ("patient", "report", "where")}
        return Record(
            **words,
            views=tuple(_view(*one) for one in zip(*views.values(), strict=True)),
            day=int(row["day"]),
            findings=tuple(finding.decode() for finding in row["findings"]),
            targets=_arrays(row["targets"]),
            attributes=checked(json.loads(row["attributes"]), dict[str, str], f"{NAME} row {index + 1}: attributes"),
            eye_reports={s: text for s in ("left", "right") if (text := row[f"report_{s}"].decode())},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}

    @functools.cached_property
    def _built(self) -> Any:
        return tensorflow_datasets().builder_from_directory(self.directory)

    @functools.cached_property
    def _rows(self) -> Any:
        return self._built.as_data_source(split="train")


def _view(image: bytes, modality: bytes, eye: bytes, report: bytes, targets: bytes) -> View:
    return View(image, modality.decode(), eye.decode(), report.decode(), _arrays(targets))


def _arrays(targets: bytes) -> dict[str, Any]:
    return {name: np.array(value, dtype)[()] for name, (dtype, value) in json.loads(targets).items()}
