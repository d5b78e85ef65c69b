"""Results of evaluations: each declares its kind, and has scalar metrics to log and arrays for figures and reports.

A result is a mapping of its metrics and arrays. The trainer logs the metrics as `<eval name>/<metric>`, and writes the
metrics, the arrays and the kind to evals/<eval name>.npz, from which `read` restores the result. The fields below are the
names and shapes of the arrays; None means that the evaluation does not have the array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from fundax.types import UserError


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """A group of arrays in a result. In the file, the name of an array is `prefix` followed by the name of its field."""

    prefix: ClassVar[str] = ""

    @classmethod
    def _keys(cls) -> dict[str, str]:
        return {f.name: cls.prefix + f.name.rstrip("_") for f in fields(cls)}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are not None, by their names in the file."""
        return {key: value for name, key in self._keys().items() if (value := getattr(self, name)) is not None}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self | None:
        """Read the part from the arrays of a file; None if the file has none of its arrays."""
        present: dict[str, Any] = {name: arrays[key] for name, key in cls._keys().items() if key in arrays}
        return cls(**present) if present else None


KEEP = "keep_"


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows(Part):
    """The image of each of the N rows of a result: row of the source, patient, and attributes for subgroups; [N] each, or
    as stated.

    `kept` are columns that were asked for by keep=, by name; a batch and a file have them under KEEP and the name.
    """

    index: np.ndarray | None = None
    patient: np.ndarray | None = None
    eye: np.ndarray | None = None
    modality: np.ndarray | None = None
    sex: np.ndarray | None = None
    age: np.ndarray | None = None
    device: np.ndarray | None = None
    site: np.ndarray | None = None
    camera: np.ndarray | None = None
    ethnicity: np.ndarray | None = None
    days: np.ndarray | None = None  # [N V], from each of V images of a forecast to the later visit
    horizon: np.ndarray | None = None  # days ahead, of a forecast
    kept: Mapping[str, np.ndarray] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are not None, by their names in the file."""
        own = {name: column for name, column in super().arrays().items() if name != "kept"}
        return own | {f"{KEEP}{name}": column for name, column in (self.kept or {}).items()}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self | None:
        """Read rows from the arrays of a file or the columns of a batch; None if there are none."""
        kept = {name.removeprefix(KEEP): column for name, column in arrays.items() if name.startswith(KEEP)}
        own: dict[str, Any] = {name: column for name, column in arrays.items() if name != "kept"}
        if kept:
            own["kept"] = kept
        return super().read(own)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cases(Part):
    """Thumbnails of selected rows.

    pictures u8 [T h w 3] are the thumbnails and picture_row [T] their rows in the result. picture_kind [T] is the name of
    the selection ("wrong, confident"), picture_score f64 [T] the score of the case, and picture_overlay u8 [T h w 3] an
    overlay that is drawn below the thumbnail.
    """

    pictures: np.ndarray
    picture_row: np.ndarray
    picture_kind: np.ndarray | None = None
    picture_score: np.ndarray | None = None
    picture_overlay: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ByClass(Part):
    """Metrics of each class against the rest, f64 [K], NaN where undefined; `note` [K] gives the reason."""

    count: np.ndarray | None = None
    labelled: np.ndarray | None = None
    recall: np.ndarray | None = None
    specificity: np.ndarray | None = None
    precision: np.ndarray | None = None
    f1: np.ndarray | None = None
    auc: np.ndarray | None = None
    ap: np.ndarray | None = None
    note: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Horizons(Part):
    """Metrics of a forecast in bands of days ahead, [bands] each; see metrics.classification.by_horizon."""

    prefix: ClassVar[str] = "band_"

    from_: np.ndarray
    to: np.ndarray
    rows: np.ndarray
    positives: np.ndarray | None = None
    auc: np.ndarray | None = None
    f1: np.ndarray | None = None
    brier: np.ndarray | None = None
    ece: np.ndarray | None = None
    note: np.ndarray | None = None


PARTS: dict[str, type[Part]] = {"rows": Rows, "cases": Cases, "by_class": ByClass, "horizons": Horizons}


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(Mapping[str, Any]):
    """Base class of all results.

    `metrics` are the scalars to log, by name. `about`, in a file, describes the data, part, step and preprocessing of the
    evaluation (see fundax/results/about.py).
    """

    kind: ClassVar[str] = ""

    metrics: Mapping[str, float]
    about: np.ndarray | None = None

    def __post_init__(self) -> None:
        if shared := self.metrics.keys() & self.arrays().keys():
            raise ValueError(
                f"{', '.join(sorted(shared))} are names of both metrics and arrays; expected different names"
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """The contents of the evaluation's file: the kind, the metrics and all arrays."""
        names, values = list(self.metrics), list(self.metrics.values())
        out = {"kind": np.array(self.kind), "metric_name": np.array(names, dtype=str)}
        out["metric_value"] = np.array(values, np.float64)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Part):
                out |= value.arrays()
            elif value is not None and item.name != "metrics":
                out |= dict(value) if isinstance(value, Mapping) else {item.name: np.asarray(value)}
        return out

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read the result from the arrays of its file."""
        values: dict[str, Any] = {}
        for name in (item.name for item in fields(cls) if item.name != "metrics"):
            value = PARTS[name].read(arrays) if name in PARTS else arrays.get(name)
            if value is not None:
                values[name] = value
        return cls(metrics=_metrics(arrays), **values)

    def __getitem__(self, key: str) -> Any:
        return self.metrics[key] if key in self.metrics else self.arrays()[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.metrics, **self.arrays()})

    def __len__(self) -> int:
        return len(self.metrics) + len(self.arrays())


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(Result):
    """Metrics, and arrays without a fixed meaning in `other`. A report lists the metrics."""

    kind: ClassVar[str] = "scores"

    other: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read the result from the arrays of its file."""
        fixed = ("kind", "metric_name", "metric_value", "about")
        other = {k: v for k, v in arrays.items() if k not in fixed}
        return cls(metrics=_metrics(arrays), about=arrays.get("about"), other=other)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationResult(Result):
    """Classification of N images into one of K classes: labels i64 [N], logits and probabilities f32 [N K], classes [K].

    `ranked_by` is "probabilities" or "logits", the scores from which AUC and average precision were computed.
    """

    kind: ClassVar[str] = "classification"

    labels: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray
    logits: np.ndarray | None = None
    ranked_by: str = "probabilities"
    rows: Rows | None = None
    by_class: ByClass | None = None
    horizons: Horizons | None = None
    cases: Cases | None = None

    @property
    def ranks(self) -> np.ndarray:
        """The scores f64 [N K] from which AUC and average precision are computed."""
        chosen = self.logits if str(self.ranked_by) == "logits" and self.logits is not None else self.probabilities
        return np.asarray(chosen, np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabelResult(ClassificationResult):
    """Multi-label classification: like ClassificationResult, but labels are f32 [N K] of 0, 1 and NaN (not labelled)."""

    kind: ClassVar[str] = "multi_label"


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionResult(Result):
    """Regression of K targets in their units: value (the truth, NaN if unknown) and predicted f32 [N K], names [K].

    target_mae, target_r2, target_pearson f64 [K], count i64 [K] and note [K] are the metrics of each target.
    """

    kind: ClassVar[str] = "regression"

    value: np.ndarray
    predicted: np.ndarray
    names: np.ndarray
    target_mae: np.ndarray | None = None
    target_r2: np.ndarray | None = None
    target_pearson: np.ndarray | None = None
    count: np.ndarray | None = None
    note: np.ndarray | None = None
    rows: Rows | None = None
    cases: Cases | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationResult(Result):
    """Segmentation metrics of each image: dice, iou, sensitivity, specificity, hd95 f64 [N K], NaN if undefined; classes [K]."""

    kind: ClassVar[str] = "segmentation"
    measures: ClassVar[tuple[str, ...]] = ("dice", "iou", "hd95", "sensitivity", "specificity")

    dice: np.ndarray
    classes: np.ndarray
    iou: np.ndarray | None = None
    hd95: np.ndarray | None = None
    sensitivity: np.ndarray | None = None
    specificity: np.ndarray | None = None
    rows: Rows | None = None
    cases: Cases | None = None

    @property
    def names(self) -> np.ndarray:
        """Names of the columns."""
        return self.classes


@dataclass(frozen=True, eq=False, kw_only=True)
class LandmarkResult(Result):
    """Errors of n landmarks in N images.

    error f64 [N n] is the distance in pixels of the original image, and error_diameters f64 [N n] in diameters of the
    optic disc. found (the predictions) and truth are f64 [N n 2] as (x, y). names [n] are the names of the landmarks.
    confidence f32 [N n] is the largest probability of each heat map.
    """

    kind: ClassVar[str] = "landmarks"
    measures: ClassVar[tuple[str, ...]] = ("error", "error_diameters")

    error: np.ndarray
    names: np.ndarray
    error_diameters: np.ndarray | None = None
    found: np.ndarray | None = None
    truth: np.ndarray | None = None
    confidence: np.ndarray | None = None
    rows: Rows | None = None
    cases: Cases | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class RetrievalResult(Result):
    """Rank (from 1) of the first correct text for each image, and of the first correct image for each text, i64 [N]."""

    kind: ClassVar[str] = "retrieval"

    image_to_text_rank: np.ndarray
    text_to_image_rank: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class FewShotResult(Result):
    """One row per draw of training images: method, shots, seed, balanced_accuracy, macro_auc and note, [draws] each.

    probabilities f32 [draws N K] are those of the test set, with labels i64 [N], patient i64 [N] and classes [K].
    """

    kind: ClassVar[str] = "few_shot"

    method: np.ndarray
    shots: np.ndarray
    balanced_accuracy: np.ndarray
    macro_auc: np.ndarray
    seed: np.ndarray | None = None
    note: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    patient: np.ndarray | None = None
    classes: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportResult(Result):
    """Generated reports and reference reports of the first T images: image u8 [T h w 3], written and true [T].

    Findings are counted over all reports, in groups such as "findings" and "conditions". finding_group [F] and finding
    [F] are their names. finding_count i64 [F 3] has the numbers of reports in which both reports, only the generated
    report, or only the reference contain the finding. written_findings and true_findings [T] list the findings of the
    images above, separated by "; ".
    """

    kind: ClassVar[str] = "reports"

    image: np.ndarray
    written: np.ndarray
    true: np.ndarray
    finding_group: np.ndarray | None = None
    finding: np.ndarray | None = None
    finding_count: np.ndarray | None = None
    written_findings: np.ndarray | None = None
    true_findings: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ReconstructionResult(Result):
    """Images and their reconstructions, u8 [T H W 3] each."""

    kind: ClassVar[str] = "reconstruction"

    pictures: np.ndarray
    reconstruction: np.ndarray


KINDS: dict[str, type[Result]] = {
    result.kind: result
    for result in (
        *(Scores, ClassificationResult, MultiLabelResult, RegressionResult, SegmentationResult, LandmarkResult),
        *(RetrievalResult, FewShotResult, ReportResult, ReconstructionResult),
    )
}


def read(arrays: Mapping[str, np.ndarray]) -> Result:
    """Read a result from the arrays of a file. Raises UserError for an unknown kind or missing arrays."""
    kind = str(arrays.get("kind", "")) or "missing"
    if kind not in KINDS:
        raise UserError(f"the kind of the evaluation is {kind}; expected one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].read(arrays)
    except TypeError:
        needed = [f.name for f in fields(KINDS[kind]) if f.default is MISSING and f.name != "metrics"]
        raise UserError(f"an evaluation of kind {kind} has {', '.join(arrays)}; expected {', '.join(needed)}") from None


def row_columns(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of Rows in a batch, by name; the key `group` is the patient."""
    keys = {f.name: f.name for f in fields(Rows)} | {"group": "patient"}
    keys |= {key: key for key in batch if key.startswith(KEEP)}
    return {name: batch[key] for key, name in keys.items() if key in batch}


def named(metric: str, names: Iterable[str], values: np.ndarray) -> dict[str, float]:
    """Convert values f64 [K] to metrics `metric/NAME`; NaN is left out."""
    return {f"{metric}/{name}": float(v) for name, v in zip(names, values, strict=True) if not np.isnan(v)}


def _metrics(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    names, values = arrays.get("metric_name", ()), arrays.get("metric_value", ())
    if np.shape(names) != np.shape(values) or np.ndim(values) != 1:
        raise UserError(
            f"metric_name {np.shape(names)} and metric_value {np.shape(values)}; expected one value for each name"
        )
    return {str(name): float(value) for name, value in zip(names, values, strict=True)}
