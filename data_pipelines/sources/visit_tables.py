"""Visits of patients from a table of images (one row per image, or per visit) or from a folder of DICOM files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.notices import warn_line
from data_pipelines.records import ATTRIBUTES, DataError, Record, View
from data_pipelines.sources.columns import Indexed, Stored, Strings, read_once, row_index
from data_pipelines.sources.csv import CsvSource
from data_pipelines.sources.csv_schema import Table
from data_pipelines.sources.labels import NOT_LABELLED, findings_of
from data_pipelines.sources.tables import where
from data_pipelines.sources.visit_columns import view_order

_log = logging.getLogger(__name__)
_SIDES = ("left", "right")
_SHOWN = 6  # rows of a visit that a message lists


@dataclass(frozen=True)
class VisitSource(Indexed):
    """Visits from a table that was opened with visits=True (sources.csv.csv_source).

    Images of a patient belong to one visit if none is more than `days` after the first of them; with `by_eye`, each eye
    has visits of its own. Visits come in the order of their first image in the table, their views by modality and eye. A
    wide table has a visit in each row.

    A label of an eye or a visit that no column gives is the one that its images share, else it is not labelled; of several
    findings it has those that any of its images has. Images without labels of their own have that of their eye. The
    targets are label, label_left and label_right where the table has labels, and value where the images agree. Different
    reports, and different attributes, of one visit are joined.

    The first use reads the table and raises DataError, as csv_source does.
    """

    images: CsvSource
    days: int = 0
    by_eye: bool = False

    @read_once
    def groups(self) -> tuple[Stored, Stored]:
        """(rows of the table, visit after visit; the end of each visit in them)."""
        table = self.images.table
        if table.slots:
            return Stored(np.arange(len(table), dtype=np.int32)), Stored(np.arange(1, len(table) + 1, dtype=np.int32))
        if "patient" not in table.texts:
            path = self.images.schema.path
            raise DataError(f"{path}: visits need a column patient; map it with {path.name},patient=THEIRS")
        rows, ends = _grouped(table, self.days, self.by_eye)
        line = "%s: %d images of %d visits"
        _log.info(line, self.images.schema.path, len(rows), len(ends))
        self._hint(rows, ends)
        return Stored(rows), Stored(ends)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels index; () without labels."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.groups[1].array)

    def __getitem__(self, index: int) -> Record:
        visit = row_index(index, len(self))
        rows, table = self._rows(visit), self.images.table
        if table.slots:
            record, labels = _wide(self.images, rows[0]), self._given(rows, "label", "label_left", "label_right")
        else:
            record, labels = _long(self.images, rows), self._given(rows, "visit_label", "eye_label", "eye_label")
        targets, views = dict(record.targets), record.views
        if labels is not None or "label" in views[0].targets:
            targets |= _levels(views, *(labels or (None, None, None)))
        if labels and labels[1:] != (None, None) and "label" not in views[0].targets:
            views = tuple(replace(v, targets={**v.targets, "label": _of_eye(targets, v.eye)}) for v in views)
        kept = {name: _distinct((table.kept[name][row] for row in rows), " + ") for name in self._attributes()}
        return replace(
            record,
            views=views,
            attributes=kept,
            targets=targets,
            findings=findings_of(targets, self.classes),
            where=self._place(rows),
        )

    def patients(self) -> list[str]:
        """The patient of each visit."""
        rows, ends = (stored.array for stored in self.groups)
        first = rows[np.concatenate([[0], ends[:-1]]).astype(np.int64)]
        return [_patient(self.images, int(row)) for row in first]

    def hashes(self, key: str, seed: int) -> np.ndarray:
        """Hash u64 [visits] of each patient, for split_by."""
        if key != "patient":
            raise DataError(f"{self.images.schema.path}: visits are split by patient, not by {key}")
        return Strings.of(self.patients()).hashes(seed)

    def column(self, name: str) -> Sequence[str] | None:
        """The cells of a kept column, an attribute or "split", in the first row of each visit; None if there is none."""
        found = self.images.table.kept.get(name)
        rows, ends = (stored.array for stored in self.groups)
        first = rows[np.concatenate([[0], ends[:-1]]).astype(np.int64)]
        return None if found is None else [found[int(row)] for row in first]

    def _rows(self, visit: int) -> list[int]:
        rows, ends = (stored.array for stored in self.groups)
        return rows[int(ends[visit - 1]) if visit else 0 : int(ends[visit])].tolist()

    def _attributes(self) -> tuple[str, ...]:
        wanted = dict.fromkeys((*ATTRIBUTES, *self.images.schema.keep))
        return tuple(name for name in wanted if name in self.images.table.kept)

    def _given(self, rows: Sequence[int], visit: str, left: str, right: str) -> tuple[Any, Any, Any] | None:
        """The labels of the visit and its eyes that columns give, None for each that they do not; None without any."""
        table = self.images.table
        if not any(name in table.codes for name in (visit, left, right)) and visit not in table.numbers:
            return None
        of_eye = [[row for row in rows if self._eye(row) == side] if left == right else rows for side in _SIDES]
        found = [
            _shared(_labels(table, name, some))
            for name, some in ((visit, rows), *zip((left, right), of_eye, strict=True))
        ]
        return found[0], found[1], found[2]

    def _eye(self, row: int) -> str:
        table = self.images.table
        return table.names["eye"][int(table.codes["eye"].array[row])] if "eye" in table.codes else ""

    def _place(self, rows: Sequence[int]) -> str:
        """The name of a visit in messages: its rows, and the line of the first."""
        path, places = self.images.schema.path, self.images.table.places.array
        numbers = [int(places[row, 0]) for row in sorted(rows)]
        if len(numbers) == 1:
            return where(path, *places[rows[0]].tolist())
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        line = int(places[min(rows), 1])
        return f"{path} rows {', '.join(map(str, numbers[:_SHOWN]))}{more}" + (f" (from line {line})" if line else "")

    def _hint(self, rows: np.ndarray, ends: np.ndarray) -> None:
        """Say so if the texts of images are rather reports of visits."""
        texts, start, several = self.images.table.texts.get("text"), 0, 0
        for end in ends[:2000].tolist() if texts is not None else ():
            found = {texts[int(row)] for row in rows[start:end]}  # type: ignore[index]
            if len(found) > 1:
                return
            several, start = several + (end - start > 1 and found != {""}), end
        if several:
            hint = "text=,report=text reads it as the visit's"
            warn_line(_log, "%s: all images of a visit have the same text; %s", self.images.schema.path, hint)


def _grouped(table: Table, days: int, by_eye: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rows visit after visit, the end of each visit), i32; visits in the order of their first rows."""
    known: dict[str, int] = {}
    count = len(table)
    key = np.fromiter((known.setdefault(name, len(known)) for name in table.texts["patient"]), np.int64, count)
    if by_eye and "eye" in table.codes:
        key = key * (len(table.names["eye"]) + 1) + table.codes["eye"].array
    day = table.codes["day"].array if "day" in table.codes else np.zeros(count, np.int64)
    order = np.lexsort((np.arange(count), day, key))
    starts, last, since = [], -1, 0
    for place, (one, today) in enumerate(zip(key[order].tolist(), day[order].tolist(), strict=True)):
        if one != last or today - since > days:
            starts.append(place)
            last, since = one, today
    begin = np.array(starts, np.int64)
    length = np.diff(np.append(begin, count))
    turn = np.argsort(np.minimum.reduceat(order, begin), kind="stable")
    visit = np.empty(len(begin), np.int64)
    visit[turn] = np.arange(len(begin))
    rows = order[np.argsort(np.repeat(visit, length), kind="stable")]
    return rows.astype(np.int32), np.cumsum(length[turn]).astype(np.int32)


def _long(images: CsvSource, rows: Sequence[int]) -> Record:
    """The record of the images in `rows`, without the labels of eyes and the visit."""
    table, declared = images.table, images.schema.declare
    records = [(images[row], row) for row in rows]
    records.sort(key=lambda pair: (*view_order(declared, pair[0].views[0].modality, pair[0].views[0].eye), pair[1]))
    views = tuple(replace(one.views[0], report=one.report, targets=one.targets) for one, _ in records)
    reports = {side: [row for one, row in records if one.views[0].eye == side] for side in _SIDES}
    texts = {side: _distinct(_cells(table, "eye_report", some)) for side, some in reports.items()}
    values = [view.targets["value"] for view in views if "value" in view.targets]
    return Record(
        patient=records[0][0].patient,
        views=views,
        report=_distinct(_cells(table, "report", [row for _, row in records])),
        targets={"value": _agreed(values)} if values else {},
        day=min(one.day for one, _ in records),
        eye_reports={side: text for side, text in texts.items() if text},
    )


def _wide(images: CsvSource, row: int) -> Record:
    """The record of a row of a wide table, without the labels of eyes and the visit."""
    table, views = images.table, []
    labelled = any(f"label_{slot.name}" in table.codes for slot in table.slots)
    own = table.names["eye"][int(table.codes["eye"].array[row])] if "eye" in table.codes else ""
    for slot in table.slots:
        if path := table.notes[slot.name][row].replace("\\", "/"):
            label = _shared(_labels(table, f"label_{slot.name}", [row]))
            targets = {"label": np.int32(NOT_LABELLED) if label is None else label} if labelled else {}
            text = "".join(_cells(table, f"text_{slot.name}", [row]))
            image = images.reading.file(images.image_dir / path)
            views.append(View(image, slot.modality, slot.eye or own, text, targets))
    reports = {side: "".join(_cells(table, f"report_{side}", [row])) for side in _SIDES}
    value = {"value": np.array(table.numbers["value"].array[row])} if "value" in table.numbers else {}
    return Record(
        patient=_patient(images, row),
        views=tuple(views),
        report="".join(_cells(table, "report", [row])),
        targets=value,
        day=int(table.codes["day"].array[row]) if "day" in table.codes else 0,
        eye_reports={side: text for side, text in reports.items() if text},
    )


def _patient(images: CsvSource, row: int) -> str:
    table = images.table
    return table.texts["patient"][row] if "patient" in table.texts else f"row {int(table.places.array[row, 0])}"


def _cells(table: Table, name: str, rows: Iterable[int]) -> list[str]:
    return [table.notes[name][row] for row in rows] if name in table.notes else []


def _labels(table: Table, name: str, rows: Sequence[int]) -> list[Any]:
    """The labels that a column gives to rows: class numbers, or findings f32 [K]; [] without the column."""
    if name in table.codes:
        return [np.int32(table.codes[name].array[row]) for row in rows]
    return [np.array(table.numbers[name].array[row]) for row in rows] if name in table.numbers else []


def _levels(views: Sequence[View], visit: Any, left: Any, right: Any) -> dict[str, Any]:
    """The labels of a visit and its eyes: those given, else those that its images share."""
    images = {side: [v.targets["label"] for v in views if v.eye == side and "label" in v.targets] for side in _SIDES}
    every = [v.targets["label"] for v in views if "label" in v.targets]
    eyes = [
        given if given is not None else _shared(images[side]) for side, given in zip(_SIDES, (left, right), strict=True)
    ]
    eyes = [np.int32(NOT_LABELLED) if one is None else one for one in eyes]
    if visit is None:
        visit = _shared(every or [one for one in eyes if np.ndim(one) or one >= 0])
    visit = np.int32(NOT_LABELLED) if visit is None else visit
    unknown = np.full_like(visit, np.nan) if np.ndim(visit) else visit
    eyes = [unknown if np.ndim(visit) and not np.ndim(one) else one for one in eyes]
    return {"label": visit, "label_left": eyes[0], "label_right": eyes[1]}


def _of_eye(targets: Mapping[str, Any], eye: str) -> Any:
    """The label that the images of an eye take from it."""
    return targets[f"label_{eye}"] if eye else np.int32(NOT_LABELLED)


def _shared(labels: Sequence[Any]) -> Any:
    """The class of all labels, NOT_LABELLED if they differ; of findings, those that any has. None without labels."""
    if not labels:
        return None
    if np.ndim(labels[0]):
        stacked = np.stack(labels)
        known = ~np.isnan(stacked)
        return np.where(known.any(0), np.where(known, stacked, 0).max(0), np.nan).astype(np.float32)
    found = {int(label) for label in labels if label >= 0}
    return np.int32(found.pop()) if len(found) == 1 else np.int32(NOT_LABELLED)


def _agreed(values: Sequence[np.ndarray]) -> np.ndarray:
    """Values f32 [K] that all images share; NaN where they differ."""
    stacked = np.stack(values)
    return np.where((stacked == stacked[:1]).all(0), stacked[0], np.float32(np.nan)).astype(np.float32)


def _distinct(texts: Iterable[str], between: str = " ") -> str:
    return between.join(filter(None, dict.fromkeys(texts)))
