"""What evaluations return: a result that declares its kind, with scalar metrics to log and arrays for figures and reports.

A result is a mapping of its metrics and arrays. The trainer logs the scalars as `<eval name>/<metric>` and writes the
rest to evals/<eval name>.npz under the same names, together with `kind`, from which `read` rebuilds the result.
Names and shapes of the arrays are the fields below; None means that an evaluation has no such array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from fundax.types import UserError


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Arrays that belong together inside a result. In the file each has its field's name, after `prefix`."""

    prefix: ClassVar[str] = ""

    @classmethod
    def _keys(cls) -> dict[str, str]:
        return {f.name: cls.prefix + f.name.rstrip("_") for f in fields(cls)}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by their names in the file."""
        return {key: value for name, key in self._keys().items() if (value := getattr(self, name)) is not None}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self | None:
        """The part out of the arrays of a file; None where the file has nothing of it."""
        found: dict[str, Any] = {name: arrays[key] for name, key in cls._keys().items() if key in arrays}
        return cls(**found) if found else None


KEEP = "keep_"


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows(Part):
    """Which images the N rows of a result are: row of the source, patient, and columns that define subgroups; [N] each.

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
    days: np.ndarray | None = None  # between visits
    horizon: np.ndarray | None = None  # days ahead, of a forecast
    kept: Mapping[str, np.ndarray] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by their names in the file."""
        own = {name: column for name, column in super().arrays().items() if name != "kept"}
        return own | {f"{KEEP}{name}": column for name, column in (self.kept or {}).items()}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self | None:
        """The rows out of the arrays of a file, or of columns that batches have; None where there is nothing of them."""
        kept = {name.removeprefix(KEEP): column for name, column in arrays.items() if name.startswith(KEEP)}
        own: dict[str, Any] = {name: column for name, column in arrays.items() if name != "kept"}
        if kept:
            own["kept"] = kept
        return super().read(own)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cases(Part):
    """Thumbnails of selected rows: `pictures` u8 [T h w 3], and per thumbnail the row of the result it shows.

    picture_kind [T] names the selection ("wrong, certain"); picture_score f64 [T] is the score of the case;
    picture_overlay u8 [T h w 3] is drawn below the thumbnail.
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
    """A forecast by how far ahead it looks: metrics in bands of days, [bands] each (metrics.classification.by_horizon)."""

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
    """Base of all results. metrics: scalars to log, by name.

    about: in a file, the data, part, step and preprocessing that the result is of (see fundax/results/about.py).
    """

    kind: ClassVar[str] = ""

    metrics: Mapping[str, float]
    about: np.ndarray | None = None

    def __post_init__(self) -> None:
        if shared := self.metrics.keys() & self.arrays().keys():
            raise ValueError(
                f"{', '.join(sorted(shared))} are both metrics and arrays of one result; expected other names"
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file of the evaluation holds: the kind, the metrics and every array."""
        names, values = list(self.metrics), list(self.metrics.values())
        out = {"kind": np.array(self.kind), "metric_name": np.array(names, dtype=str)}
        out["metric_value"] = np.array(values, np.float64)
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Part):
                out |= value.arrays()
            elif value is not None and one.name != "metrics":
                out |= dict(value) if isinstance(value, Mapping) else {one.name: np.asarray(value)}
        return out

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The result out of the arrays of its file."""
        found: dict[str, Any] = {}
        for name in (one.name for one in fields(cls) if one.name != "metrics"):
            value = PARTS[name].read(arrays) if name in PARTS else arrays.get(name)
            if value is not None:
                found[name] = value
        return cls(metrics=_metrics(arrays), **found)

    def __getitem__(self, key: str) -> Any:
        return self.metrics[key] if key in self.metrics else self.arrays()[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.metrics, **self.arrays()})

    def __len__(self) -> int:
        return len(self.metrics) + len(self.arrays())


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(Result):
    """Metrics alone, with any further arrays under `other`; a report lists the metrics."""

    kind: ClassVar[str] = "scores"

    other: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The result out of the arrays of its file."""
        own = ("kind", "metric_name", "metric_value", "about")
        other = {k: v for k, v in arrays.items() if k not in own}
        return cls(metrics=_metrics(arrays), about=arrays.get("about"), other=other)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationResult(Result):
    """One of K classes for each image: labels i64 [N], logits and probabilities f32 [N K], classes [K].

    ranked_by: "probabilities" or "logits", whichever AUC and average precision of the metrics rank the rows by.
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
        """Scores f64 [N K] that AUC and average precision rank the rows by."""
        chosen = self.logits if str(self.ranked_by) == "logits" and self.logits is not None else self.probabilities
        return np.asarray(chosen, np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabelResult(ClassificationResult):
    """Several findings at once: labels f32 [N K] of 0, 1 and NaN (not labelled); otherwise as ClassificationResult."""

    kind: ClassVar[str] = "multi_label"


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionResult(Result):
    """Quantities in their own units: value (the truth, NaN where unknown) and predicted f32 [N K], names [K].

    target_mae, target_r2, target_pearson f64 [K], count i64 [K] and note [K] describe each quantity.
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
    """Agreement of masks, image by image: dice, iou, sensitivity, specificity, hd95 f64 [N K] (NaN: undefined), classes [K]."""

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
    """Distances of found landmarks from the true ones: error f64 [N n] in pixels of the original image, error_diameters in
    diameters of the optic disc; found and truth f64 [N n 2] as (x, y); names [n].
    """

    kind: ClassVar[str] = "landmarks"
    measures: ClassVar[tuple[str, ...]] = ("error", "error_diameters")

    error: np.ndarray
    names: np.ndarray
    error_diameters: np.ndarray | None = None
    found: np.ndarray | None = None
    truth: np.ndarray | None = None
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

    probabilities f32 [draws N K] on the test set, whose labels are i64 [N], patients i64 [N]; classes [K].
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

    Findings are counted in groups, such as "findings" and "conditions", over all reports: finding_group and finding [F]
    name them, finding_count i64 [F 3] holds how often both reports name the finding, only the generated one, only the
    reference. written_findings and true_findings [T] list those of the images shown, separated by "; ".
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
    one.kind: one
    for one in (
        *(Scores, ClassificationResult, MultiLabelResult, RegressionResult, SegmentationResult, LandmarkResult),
        *(RetrievalResult, FewShotResult, ReportResult, ReconstructionResult),
    )
}


def read(arrays: Mapping[str, np.ndarray]) -> Result:
    """The result that the arrays of a file hold. Raises UserError for a kind that this version does not know."""
    kind = str(arrays.get("kind", "")) or "missing"
    if kind not in KINDS:
        raise UserError(f"the kind of the evaluation is {kind}; expected one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].read(arrays)
    except TypeError:
        needed = [f.name for f in fields(KINDS[kind]) if f.default is MISSING and f.name != "metrics"]
        raise UserError(f"an evaluation of kind {kind} has {', '.join(arrays)}; expected {', '.join(needed)}") from None


def row_columns(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of Rows that a batch has, by name; `group` is the patient."""
    keys = {f.name: f.name for f in fields(Rows)} | {"group": "patient"}
    keys |= {key: key for key in batch if key.startswith(KEEP)}
    return {name: batch[key] for key, name in keys.items() if key in batch}


def named(metric: str, names: Iterable[str], values: np.ndarray) -> dict[str, float]:
    """`metric/NAME` for every name whose value is defined; values f64 [K]."""
    return {f"{metric}/{name}": float(v) for name, v in zip(names, values, strict=True) if not np.isnan(v)}


def _metrics(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    names, values = arrays.get("metric_name", ()), arrays.get("metric_value", ())
    if np.shape(names) != np.shape(values) or np.ndim(values) != 1:
        raise UserError(
            f"metric_name {np.shape(names)} and metric_value {np.shape(values)}; expected one value for each name"
        )
    return {str(name): float(value) for name, value in zip(names, values, strict=True)}
