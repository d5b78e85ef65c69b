"""A source for a table with one image per row.

Creating a source opens no file. The first use reads the index, which worker processes then receive ready made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.images.decode import DEFAULT, ReadOptions, read_options
from data_pipelines.records import DataError, Record, View, modality_name
from data_pipelines.sources.columns import Indexed, read_once, row_index
from data_pipelines.sources.csv_schema import Columns, CsvSchema, Table
from data_pipelines.sources.csv_table import read_table
from data_pipelines.sources.labels import GAP, findings_of
from data_pipelines.sources.tables import is_empty, where


def csv_source(
    path: str | Path,
    image_dir: str | Path | None = None,
    sep: str = ",",
    columns: Columns | None = None,
    *,
    only: Mapping[str, str] | None = None,
    require: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    modality: str = "CFP",
    empty: str = "error",
    encoding: str = "",
    keep: Sequence[str] = (),
    values: Mapping[str, str] | str = "",
    depth: str = "",
    orientation: str = "",
    max_pixels: str = "",
    visits: bool = False,
    declare: Sequence[str] = (),
) -> CsvSource:
    """A table with one image per row: a CSV or TSV file, Excel (.xlsx) or Parquet.

    The columns image, text, label, modality, eye, patient and day are read if the file has them; only image is
    required. So are age, sex, device, site, camera and ethnicity, which become the attributes of a record, and split.
    Without a patient column, each image counts as its own patient. One line of the log says what is read and assumed.

    Args:
        path: the file; its first line names the columns.
        image_dir: folder that image and mask paths are relative to; None is the folder of the file.
        sep: the separator, one character. A comma, the default, gives way to tabs or semicolons if the header has no
            comma.
        columns: maps our names to the file's columns, to templates over them ("{ID}.png", "photograph of {diagnosis}";
            an empty part makes the whole empty), or to None to ignore a column. "name" as the patient takes it from the
            name of the image (visits.patient_of), and "name:REGEX" from what a regular expression matches in it. These
            names are read only if they are mapped: mask (a path; or several columns, one for each class, which may
            overlap; an empty cell means that the image lacks the class), fov (mask of the field of view), points (columns
            x, y, x, y, ...) and value (one or several columns). Several columns as the label are a multi-label f32 [K].
        only: maps columns of the file to the value that a row must have, such as {"split": "train"}.
        require: our names that the file must have, in addition to image.
        classes: class names in order; None keeps class numbers 0..max and sorts class names (sources.labels).
        modality: modality of rows that name none.
        empty: what to do with a row whose image, text, label, patient or day is empty: "error", or "drop" it and log
            how many were dropped, also if its only mask is empty. "keep" keeps gaps in labels: -1, or NaN in a
            multi-label, means not labelled.
        encoding: text encoding of the file, such as "gb18030"; "" is UTF-8, or what a byte order mark says.
        keep: further columns of the file that become attributes.
        values: maps labels as the file has them to others, such as {"-1": "gap", "2": "1"} or "-1:gap+2:1"; "gap" is not
            labelled. With a mask column, values are those of its pixels instead (images.ReadOptions).
        depth: true bits of grey images, or their range (images.ReadOptions).
        orientation: "stored" leaves images and masks as stored; "" turns them upright.
        max_pixels: number of pixels above which an image is refused.
        visits: also read the columns of visits (visit_columns), for visit_tables.VisitSource. Then `path` may be a folder
            of DICOM files, and texts and labels may be empty.
        declare: names of modalities that are not in MODALITIES.

    The first use reads the file. It raises DataError naming the file and its columns, or the row (from 1, without the
    header) and the line.
    """
    mapped = tuple((ours, v if isinstance(v, str) else tuple(v or ())) for ours, v in (columns or {}).items())
    pairs, masks = _pairs(values), "mask" in dict(mapped)
    schema = CsvSchema(
        path=Path(path),
        sep=sep,
        columns=mapped,
        only=tuple((only or {}).items()),
        require=tuple(require),
        classes=None if classes is None else tuple(classes),
        modality=modality_name(modality, declare),
        empty=empty,
        encoding=encoding,
        keep=tuple(keep),
        values=() if masks else pairs,
        visits=visits,
        declare=tuple(declare),
    )
    own = Path(path) if Path(path).is_dir() else Path(path).parent
    folder = Path(image_dir) if image_dir is not None else own
    pixels = "+".join(f"{old}:{new}" for old, new in pairs) if masks else ""
    return CsvSource(schema, folder, read_options(depth, orientation, pixels, max_pixels))


@dataclass(frozen=True)
class CsvSource(Indexed):
    """See csv_source."""

    schema: CsvSchema
    image_dir: Path
    reading: ReadOptions = DEFAULT

    @read_once
    def table(self) -> Table:
        """The index, which the first use reads."""
        if not self.image_dir.is_dir():
            raise DataError(f"{self.image_dir}: no such image folder")
        return read_table(self.schema)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index; () without labels."""
        return self.table.names.get("label", ())

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:
        row, table = row_index(index, len(self)), self.table
        text = {name: column[row] for name, column in table.texts.items()}
        named = {name: table.names[name][self._code(name, row)] for name in ("modality", "eye") if name in table.codes}
        image = self.reading.file(self.image_dir / text["image"])
        view = View(image, named.get("modality", self.schema.modality), named.get("eye", ""))
        kept = {name: column[row] for name, column in table.kept.items() if name != "split"}
        targets = self._targets(row, text.get("mask", ""), text.get("fov", ""))
        return Record(
            patient=text.get("patient", text["image"]),
            views=(view,),
            report=text.get("text", ""),
            findings=findings_of(targets, self.classes),
            targets=targets,
            day=self._code("day", row) if "day" in table.codes else 0,
            where=where(self.schema.path, *table.places.array[row].tolist()),
            attributes=kept,
        )

    def column(self, name: str) -> Sequence[str] | None:
        """The cells of a kept column, an attribute or "split", by row; None if the file has no such column."""
        found = self.table.kept.get(name)
        return None if found is None else list(found)

    def _code(self, name: str, row: int) -> int:
        return int(self.table.codes[name].array[row])

    def _targets(self, row: int, mask: str, fov: str) -> dict[str, Any]:
        targets: dict[str, Any] = {name: np.array(n.array[row]) for name, n in self.table.numbers.items()}
        if "points" in targets:
            targets["points"] = targets["points"].reshape(-1, 2)
        if "label" in self.table.codes:
            targets["label"] = np.int32(self._code("label", row))
        for name, paths in (("mask", mask.split("\n")), ("fov", [fov])):
            files = tuple(self.reading.file(self.image_dir / path) if not is_empty(path) else None for path in paths)
            if any(files):
                targets[name] = next(iter(files)) if len(files) == 1 else files
        return targets

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [rows] of each string of a column, for split_by. Without patients, the image is hashed."""
        texts = self.table.texts
        if key not in texts and key != "patient":
            raise DataError(f"{self.schema.path}: cannot be split by {key}, only by {', '.join(texts)}")
        return texts.get(key, texts["image"]).hashes(seed)


def _pairs(values: Mapping[str, str] | str) -> tuple[tuple[str, str], ...]:
    """The pairs of "-1:gap+2:1" or of a mapping."""
    if not isinstance(values, str):
        return tuple((str(old), str(new)) for old, new in values.items())
    pairs = [part.rpartition(":") for part in values.replace(",", "+").split("+") if part]
    if wrong := [new for old, _, new in pairs if not old or not new]:
        raise DataError(f"values={values}: {wrong[0]!r} is not OLD:NEW, such as -1:{GAP}")
    return tuple((old.strip(), new.strip()) for old, _, new in pairs)
