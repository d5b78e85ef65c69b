"""One evaluation of one run as rows of predictions: what metrics, subgroups and tests between runs are computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fundax.evals.kinds import (
    ClassificationResult,
    LandmarkResult,
    RegressionResult,
    Result,
    Rows,
    SegmentationResult,
)
from fundax.metrics.statistics import Weighted
from fundax.results.about import About
from fundax.runtime.workdir import numbered

GROUPS = ("sex", "age", "device", "modality", "eye", "site", "camera", "ethnicity")  # columns that define subgroups


@dataclass(frozen=True, eq=False)
class Evaluation:
    """N rows of predictions with the truth, as one kind of result gives them.

    scores f64 [N K] are probabilities (classification, multi_label), predictions (regression) or a measure of each case
    (segmentation, landmarks); names are those of the K columns. truth: i64 [N], f64 [N K] with NaN where unknown, or None
    for measures. AUC and average precision rank the rows by `ranks` f64 [N K].
    """

    run: str
    name: str
    result: Result
    about: About
    names: tuple[str, ...]
    scores: np.ndarray
    truth: np.ndarray | None
    ranks: np.ndarray
    measure: Callable[[Evaluation], dict[str, Weighted]]  # metric -> function of row weights f64 [R N], giving f64 [R]
    patients: np.ndarray | None = None
    index: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the result."""
        return self.result.kind

    @property
    def rows(self) -> int:
        """N."""
        return len(self.scores)

    @property
    def binary(self) -> bool:
        """Whether there are two classes, of which the second is the positive one."""
        return self.kind == "classification" and len(self.names) == 2

    def metrics(self) -> dict[str, Weighted]:
        """Metric to a function of row weights f64 [R N] that gives the metric f64 [R]."""
        return self.measure(self)

    def fingerprint(self) -> str:
        """The first twelve digits of a SHA-256 of truth, index and patients: equal for runs evaluated on the same rows."""
        state = hashlib.sha256()
        for array in (self.truth, self.index, self.patients):
            if array is not None:
                plain = array.astype("U") if array.dtype.kind in "OU" else array
                state.update(f"{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes())
        return state.hexdigest()[:12]

    def part(self, rows: np.ndarray) -> Evaluation:
        """The chosen rows."""
        names = ("truth", "index", "patients")
        kept = {name: None if (a := getattr(self, name)) is None else a[rows] for name in names}
        return replace(self, scores=self.scores[rows], ranks=self.ranks[rows], columns={}, **kept)

    def column(self, k: int) -> Evaluation:
        """One column of scores and truth."""
        truth = None if self.truth is None else self.truth[:, [k]]
        return replace(self, names=(self.names[k],), scores=self.scores[:, [k]], truth=truth, ranks=self.ranks[:, [k]])


View = tuple[tuple[str, ...], np.ndarray, np.ndarray | None, np.ndarray]  # names, scores, truth, ranks


def of_classes(result: ClassificationResult) -> View:
    """Probabilities against one class per row, or several findings."""
    kind = np.float64 if result.kind == "multi_label" else np.int64
    scores = np.asarray(result.probabilities, np.float64)
    return tuple(map(str, result.classes)), scores, np.asarray(result.labels).astype(kind), result.ranks


def of_values(result: RegressionResult) -> View:
    """Predictions against values."""
    truth, scores = (np.asarray(a, np.float64) for a in (result.value, result.predicted))
    return tuple(map(str, result.names)), scores, truth, scores


def of_measures(result: SegmentationResult | LandmarkResult) -> View:
    """A number per case for every measure and structure; no truth."""
    columns = {name: a for name in result.measures if (a := getattr(result, name)) is not None}
    inner = [str(name) for name in result.names] if len(result.names) > 1 else [""]
    names = tuple(f"{key.replace('_', ' ')} {word}".strip() for key in columns for word in inner)
    scores = np.concatenate([np.asarray(a, np.float64) for a in columns.values()], 1)
    return names, scores, None, scores


def row_columns(rows: Rows | None, count: int, words: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    """Patients, index and the columns with at least two values, as fields of Evaluation. words: names of coded numbers."""
    columns = {}
    for key in GROUPS:
        column = None if rows is None else getattr(rows, key)
        if column is None or len(column) != count:
            continue
        known = words.get(key, ()) if column.dtype.kind in "iu" else ()
        column = np.array([_word(v, known) for v in column], object) if known else column
        if len(set(map(str, column))) > 1:
            columns[key] = column
    patients, index = (None, None) if rows is None else (rows.patient, rows.index)
    patients = None if patients is None else numbered(patients)  # as earlier versions' are not
    return {"patients": patients, "index": index, "columns": columns}


def _word(value: int, words: tuple[str, ...]) -> str:
    return words[int(value)] if 0 <= int(value) < len(words) else ""
