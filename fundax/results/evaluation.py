"""An evaluation of a run as rows of predictions, from which metrics, subgroups and tests between runs are computed."""

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
    """N rows of predictions with the truth, in the same form for all kinds of results.

    scores f64 [N K] are probabilities (classification, multi_label), predictions (regression) or metrics of each case
    (segmentation, landmarks), and names are the names of the K columns. truth is i64 [N], f64 [N K] with NaN where
    unknown, or None for metrics of each case. ranks f64 [N K] are the scores for AUC and average precision.
    """

    run: str
    name: str
    result: Result
    about: About
    names: tuple[str, ...]
    scores: np.ndarray
    truth: np.ndarray | None
    ranks: np.ndarray
    measure: Callable[[Evaluation], dict[str, Weighted]]  # see metrics()
    patients: np.ndarray | None = None
    index: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the result."""
        return self.result.kind

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return len(self.scores)

    @property
    def binary(self) -> bool:
        """Whether there are two classes, of which the second is positive."""
        return self.kind == "classification" and len(self.names) == 2

    def metrics(self) -> dict[str, Weighted]:
        """Functions by name of metric that map row weights f64 [R N] to values f64 [R]."""
        return self.measure(self)

    def fingerprint(self) -> str:
        """Twelve digits of the SHA-256 of truth, index and patients, equal for runs evaluated on the same rows."""
        state = hashlib.sha256()
        for array in (self.truth, self.index, self.patients):
            if array is not None:
                plain = array.astype("U") if array.dtype.kind in "OU" else array
                state.update(f"{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes())
        return state.hexdigest()[:12]

    def part(self, rows: np.ndarray) -> Evaluation:
        """The evaluation of the selected rows."""
        names = ("truth", "index", "patients")
        kept = {name: None if (a := getattr(self, name)) is None else a[rows] for name in names}
        return replace(self, scores=self.scores[rows], ranks=self.ranks[rows], columns={}, **kept)

    def column(self, k: int) -> Evaluation:
        """The evaluation of a single column."""
        truth = None if self.truth is None else self.truth[:, [k]]
        return replace(self, names=(self.names[k],), scores=self.scores[:, [k]], truth=truth, ranks=self.ranks[:, [k]])


View = tuple[tuple[str, ...], np.ndarray, np.ndarray | None, np.ndarray]  # names, scores, truth, ranks


def of_classes(result: ClassificationResult) -> View:
    """The view of a classification result: probabilities, and labels as truth."""
    kind = np.float64 if result.kind == "multi_label" else np.int64
    scores = np.asarray(result.probabilities, np.float64)
    return tuple(map(str, result.classes)), scores, np.asarray(result.labels).astype(kind), result.ranks


def of_values(result: RegressionResult) -> View:
    """The view of a regression result: predictions, and values as truth."""
    truth, scores = (np.asarray(a, np.float64) for a in (result.value, result.predicted))
    return tuple(map(str, result.names)), scores, truth, scores


def of_measures(result: SegmentationResult | LandmarkResult) -> View:
    """The view of a segmentation or landmark result: the metrics of each case, without truth."""
    columns = {name: a for name in result.measures if (a := getattr(result, name)) is not None}
    inner = [str(name) for name in result.names] if len(result.names) > 1 else [""]
    names = tuple(f"{key.replace('_', ' ')} {word}".strip() for key in columns for word in inner)
    scores = np.concatenate([np.asarray(a, np.float64) for a in columns.values()], 1)
    return names, scores, None, scores


def row_columns(rows: Rows | None, count: int, words: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    """Patients, index and the columns with at least two values, as fields of Evaluation.

    `words` are the names of the codes of a column.
    """
    columns = {}
    kept = {} if rows is None else dict(rows.kept or {})
    for key in (*GROUPS, *kept):
        column = None if rows is None else kept[key] if key in kept else getattr(rows, key)
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
