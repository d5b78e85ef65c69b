"""Synthetic visits on disk: image files, a table with one row per image, and a table with one row per visit."""

from __future__ import annotations

import csv
import datetime
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.records import DataError, Record, View
from data_pipelines.synthetic.patients import SIDES
from data_pipelines.synthetic.sources import Visits

IMAGES, VISITS = "images.csv", "visits.csv"  # one row per image; one row per visit
_ABOUT = ("age", "sex", "device")
_FIRST = datetime.date(2021, 1, 4)  # day 0


def write_visits(source: Visits, out: str | Path, count: int) -> Path:
    """Write the first `count` visits of `source` to the folder `out` and return its path.

    The files are images/*.png, images.csv (a row per image) and visits.csv (a row per visit, a column per view). Both
    tables contain the same visits. Raises DataError if `out` exists; after an error no files remain.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; choose another folder or remove it")
    if not 1 <= count <= len(source):
        raise DataError(f"visits={count}: expected 1 to {len(source)}")
    scratch = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "images").mkdir(parents=True)
    try:
        long, wide = [], []
        for row in range(count):
            record = source[row]
            paths = [
                _write_image(view, scratch, f"{record.patient}_{row % source.visits + 1}") for view in record.views
            ]
            long += _image_rows(record, paths, source.classes)
            wide.append(_visit_row(record, paths, source.classes))
        slots = [f"{modality.lower()}_{side}" for modality in source.modalities for side in SIDES]
        _write_table(scratch / IMAGES, long, long[0])
        columns = [*("patient", "date"), *_ABOUT, *slots, *("report", "report_left", "report_right")]
        columns += ["label", "label_left", "label_right", *(f"text_{slot}" for slot in slots)]
        _write_table(scratch / VISITS, wide, columns)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _write_image(view: View, folder: Path, visit: str) -> str:
    path = f"images/{visit}_{view.modality}_{view.eye}.png"
    Image.fromarray(np.asarray(view.image)).save(folder / path)
    return path


def _about(record: Record) -> dict[str, str]:
    date = _FIRST + datetime.timedelta(days=record.day)
    return {"patient": record.patient, "date": date.isoformat(), **{name: record.attributes[name] for name in _ABOUT}}


def _class(label: int, classes: tuple[str, ...]) -> str:
    return classes[int(label)] if label >= 0 else ""


def _image_rows(record: Record, paths: list[str], classes: tuple[str, ...]) -> list[dict[str, str]]:
    about = _about(record)
    return [
        {
            "image": path,
            "patient": about["patient"],
            "eye": view.eye,
            "date": about["date"],
            "modality": view.modality,
            "text": view.report,
            "label": _class(view.targets["label"], classes),
            "eye_report": record.eye_reports[view.eye],
            "report": record.report,
            "visit_label": _class(record.targets["label"], classes),
            **{name: about[name] for name in _ABOUT},
        }
        for view, path in zip(record.views, paths, strict=True)
    ]


def _visit_row(record: Record, paths: list[str], classes: tuple[str, ...]) -> dict[str, str]:
    row = _about(record) | {"report": record.report, "label": _class(record.targets["label"], classes)}
    for side in SIDES:
        row[f"report_{side}"] = record.eye_reports.get(side, "")
        row[f"label_{side}"] = _class(record.targets[f"label_{side}"], classes)
    for view, path in zip(record.views, paths, strict=True):
        slot = f"{view.modality.lower()}_{view.eye}"
        row |= {slot: path, f"text_{slot}": view.report}
    return row


def _write_table(path: Path, rows: list[dict[str, str]], columns: Iterable[str] | Mapping[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
