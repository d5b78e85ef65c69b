"""Evaluation of classification and regression on a labelled data set.

Rows without a label are ignored, and their number is reported. Undefined metrics are omitted, with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from fundax.evals.kinds import (
    ByClass,
    Cases,
    ClassificationResult,
    Horizons,
    MultiLabelResult,
    RegressionResult,
    Rows,
    named,
    row_columns,
)
from fundax.evals.pictures import ANSWERS, Thumbnails
from fundax.evals.places import check_labels
from fundax.metrics.classification import by_horizon, classification, multi_label, nanmean
from fundax.metrics.statistics import auc
from fundax.types import Batch, Extra, Forward, Params, UserError

Pass = Callable[[], Iterable[Batch]]
MEANS = ("accuracy", "balanced_accuracy", "macro_auc", "macro_ap", "macro_f1", "kappa")
PER_CLASS = ("auc", "ap", "recall")
_ERRORS = {"smallest error": (True, 1.0), "largest error": (True, -1.0)}


@dataclass(frozen=True, kw_only=True)
class Classified:
    """An Eval of single-label or multi-label classification.

    Args:
        data: batches with the inputs of the forward pass, and `valid` if rows are padding.
        classes: class names.
        ordered: the classes are ordered; adds quadratic kappa.
        output: key of the logits f32 [B K] in the output of the forward pass. With two classes, K may be 1, the logit of
            the second class.
        label: key of the labels: i32 [B] (below 0 or NaN if not labelled), or f32 [B K] of 0, 1 and NaN (multi-label).
        columns: columns of the logits to use, if the decoder has others; () uses all.
        inputs: keys of the batches that are passed to the model.
        pictures: number of thumbnails to store, if batches have u8 images as `image` or `picture`.
        bands: number of bands of `horizon` f32 [B], the days ahead of a forecast (see metrics.by_horizon); 0 disables them.

    Returns:
        A ClassificationResult or a MultiLabelResult. Metrics, if defined: macro_auc, macro_ap, accuracy,
        balanced_accuracy, macro_f1, kappa, auc/NAME, ap/NAME and recall/NAME for each class, rows and unlabelled; with
        bands also f1/NAME of the second class, brier, ece and auc_of_days_alone over all horizons. Cases are the most and
        the least confident correct and wrong predictions.

    Raises UserError for logits that are not finite, and if no row is labelled.
    """

    data: Pass
    classes: tuple[str, ...]
    ordered: bool = False
    output: str = "logits"
    label: str = "label"
    columns: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ("image", "feature", "modality", "days", "present")
    pictures: int = 12
    bands: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> ClassificationResult:
        kept = Thumbnails(self.pictures, ANSWERS)
        rows, seen, unlabelled = _Rows(), 0, 0
        for batch in self.data():
            out, label, valid = _run(self, forward, params, extra, batch)
            logits = self._two(np.asarray(out, np.float32))
            known = valid & _labelled(label)
            check_labels(label, known, batch, seen, self.classes, self.data)
            unlabelled += int((valid & ~known).sum())
            rows.take(batch, known, seen, logits=logits, labels=label)
            sure, right = _certainty(_probabilities(logits, label.ndim), label)
            kept.offer(batch, known, rows.count, right, sure)
            seen += len(valid)
        arrays = rows.joined(self.label)
        label, logits = arrays.pop("labels"), arrays.pop("logits")
        several = label.ndim == 2
        label = label.astype(np.float32 if several else np.int64)
        probabilities = _probabilities(logits.astype(np.float64), label.ndim)  # ties in float32 would cost AUC
        metrics = (multi_label if several else classification)(label, probabilities, self.classes)
        if not self.ordered:
            metrics.pop("kappa", None)
        counts = {"rows": float(len(label))} | ({"unlabelled": float(unlabelled)} if unlabelled else {})
        horizons, whole = self._horizons(label, probabilities.astype(np.float32), arrays)
        return (MultiLabelResult if several else ClassificationResult)(
            metrics=_floats(metrics, self.classes) | whole | counts,
            # probabilities stay float64: float32 would give confident rows equal scores and change the AUC
            labels=label, probabilities=probabilities, logits=logits, classes=np.array(self.classes),
            rows=Rows.read(arrays), by_class=ByClass.read(metrics), horizons=horizons, cases=Cases.read(kept.arrays()),
        )  # fmt: skip

    def _horizons(
        self, label: np.ndarray, probabilities: np.ndarray, rows: Mapping[str, np.ndarray]
    ) -> tuple[Horizons | None, dict[str, float]]:
        """Metrics by horizon; over all horizons F1 of the second class, Brier score, calibration error and the AUC of
        the number of days alone, which a forecast from images has to exceed."""
        if not self.bands:
            return None, {}
        if "horizon" not in rows:
            raise UserError("bands of horizons need the key 'horizon' (days ahead) in the batches")
        bands = by_horizon(label, probabilities[:, 1], rows["horizon"], self.bands)
        single = by_horizon(label, probabilities[:, 1], np.zeros(len(label)), 1)
        whole = {f"f1/{self.classes[1]}": float(single["band_f1"][0])}
        whole |= {name: float(single[f"band_{name}"][0]) for name in ("brier", "ece")}
        whole["auc_of_days_alone"] = auc(label, rows["horizon"])
        return Horizons.read(bands), {name: value for name, value in whole.items() if not np.isnan(value)}

    def _two(self, logits: np.ndarray) -> np.ndarray:
        """The logits as K columns; a single logit of two classes gets a column of zeros for the first class."""
        logits = logits[:, list(self.columns)] if self.columns else logits
        if logits.shape[1] == 1 and len(self.classes) == 2:
            return np.concatenate([np.zeros_like(logits), logits], 1)
        if logits.shape[1] != len(self.classes):
            raise UserError(f"the model gives {logits.shape[1]} logits for {len(self.classes)} classes")
        return logits


@dataclass(frozen=True, kw_only=True)
class Valued:
    """An Eval of regression.

    Args:
        data: batches with the inputs of the forward pass.
        names: names of the K targets.
        output: key of the predictions f32 [B K] in the output of the forward pass, in the units of the truth.
        label: key of the truth f32 [B K] in the batches, NaN if unknown.
        inputs: keys of the batches that are passed to the model.
        pictures: number of thumbnails to store.

    Returns:
        A RegressionResult. Metrics: mae, r2, pearson (means over targets), mae/NAME, r2/NAME, pearson/NAME, rows, and
        relative_error, the mean over targets of mean |error| / mean truth (VisionFM reports this ratio as "mae"; it is
        unstable if a mean is small). Cases are the images with the smallest and the largest errors, in standard
        deviations of the truth.
    """

    data: Pass
    names: tuple[str, ...]
    output: str = "value"
    label: str = "value"
    inputs: tuple[str, ...] = ("image", "feature", "modality", "days")
    pictures: int = 12

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> RegressionResult:
        kept, rows, seen = Thumbnails(self.pictures, _ERRORS), _Rows(), 0
        spread: np.ndarray | None = None
        for batch in self.data():
            out, value, valid = _run(self, forward, params, extra, batch)
            if value.shape != out.shape or value.shape[1] != len(self.names):
                raise UserError(f"value {value.shape} and output {out.shape}; expected [B {len(self.names)}] twice")
            known = valid & ~np.isnan(value).all(1)
            rows.take(batch, known, seen, predicted=np.asarray(out, np.float32), value=value.astype(np.float32))
            if known.any():
                spread = _spread(value[known]) if spread is None else spread
                error = np.abs(np.where(np.isnan(value), 0, out - value) / spread[None]).mean(1)
                kept.offer(batch, known, rows.count, np.ones(len(error), bool), error)
            seen += len(valid)
        arrays = rows.joined(self.label)
        value, predicted = arrays.pop("value"), arrays.pop("predicted")
        scores = regression(value, predicted)
        metrics = {"relative_error": scores["relative_error"]}
        for name in ("mae", "r2", "pearson"):
            metrics |= {name: nanmean(scores[name]), **named(name, self.names, scores[name])}
        return RegressionResult(
            metrics={k: v for k, v in metrics.items() if not np.isnan(v)} | {"rows": float(len(value))},
            value=value, predicted=predicted, names=np.array(self.names),
            target_mae=scores["mae"], target_r2=scores["r2"], target_pearson=scores["pearson"],
            count=scores["count"], note=scores["note"], rows=Rows.read(arrays), cases=Cases.read(kept.arrays()),
        )  # fmt: skip


def pooled(results: Sequence[ClassificationResult | MultiLabelResult], rows: Rows) -> ClassificationResult:
    """One result of all rows of several with the same classes; see results.pooling. `kappa` is there if every result has it.

    Metrics are computed again from the probabilities of all rows; cases are left out.
    """
    first = results[0]
    classes = [str(name) for name in first.classes]
    arrays: dict[str, Any] = {name: np.concatenate([np.asarray(getattr(one, name)) for one in results])
              for name in ("labels", "probabilities", "logits")}  # fmt: skip
    several = isinstance(first, MultiLabelResult)
    found = (multi_label if several else classification)(arrays["labels"], arrays["probabilities"], classes)
    if not all("kappa" in one.metrics for one in results):
        found.pop("kappa", None)
    return type(first)(
        metrics=_floats(found, classes) | {"rows": float(len(arrays["labels"]))},
        classes=np.array(classes), rows=rows, by_class=ByClass.read(found), **arrays,
    )  # fmt: skip


def regression(truth: Any, predicted: Any) -> dict[str, Any]:
    """Metrics of a regression of K targets.

    Args:
        truth: f32 [N K], NaN if unknown.
        predicted: f32 [N K].

    Returns:
        mae, r2 (1 - SS_res / SS_tot) and pearson f64 [K], count i64 [K], note [K] (the reason if a metric is undefined),
        and relative_error, the mean over targets of MAE / mean truth.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise UserError(f"truth {truth.shape} and predictions {predicted.shape}; expected [N K] twice")
    k = truth.shape[1]
    out: dict[str, Any] = {name: np.full(k, np.nan) for name in ("mae", "r2", "pearson")}
    relative, notes = np.full(k, np.nan), [""] * k
    out["count"] = (~np.isnan(truth)).sum(0)
    for c in range(k):
        known = ~np.isnan(truth[:, c])
        y, p = truth[known, c], predicted[known, c]
        if not len(y):
            notes[c] = "no row has this value"
            continue
        out["mae"][c] = np.abs(y - p).mean()
        relative[c] = out["mae"][c] / y.mean() if y.mean() else np.nan
        if y.std() < 1e-12:
            notes[c] = "every row has the same value"
            continue
        out["r2"][c] = 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        if p.std() > 0:
            out["pearson"][c] = np.corrcoef(y, p)[0, 1]
        else:
            notes[c] = "every prediction is the same"
    return out | {"note": np.array(notes), "relative_error": nanmean(relative)}


def _run(
    task: Classified | Valued, forward: Forward, params: Params, extra: Extra, batch: Batch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output [B K], truth, and a mask of the non-padding rows."""
    if task.label not in batch:
        raise UserError(f"batches have {', '.join(sorted(batch))}; expected also {task.label!r}")
    inputs = {key: batch[key] for key in task.inputs if key in batch}
    out = forward(params, extra, inputs)
    if task.output not in out:
        raise UserError(f"the model gives {', '.join(sorted(out))}; expected {task.output!r}")
    label = np.asarray(batch[task.label])
    valid = np.asarray(batch["valid"] if "valid" in batch else np.ones(len(label), bool))
    predicted = np.asarray(out[task.output], np.float32)
    predicted = predicted[:, None] if predicted.ndim == 1 else predicted
    if not np.isfinite(predicted[valid]).all():
        raise UserError(f"{task.output} is not finite (NaN or infinity) in some rows; the weights may be broken")
    return predicted, label, valid


class _Rows:
    """Arrays of the labelled rows, collected batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self.count = 0  # number of rows before the last batch

    def take(self, batch: Batch, known: np.ndarray, seen: int, **arrays: np.ndarray) -> None:
        columns = {"index": seen + np.arange(len(known))} | row_columns(batch)
        self.count = sum(len(part) for part in self._parts.get("index", ()))
        for name, values in (columns | arrays).items():
            self._parts.setdefault(name, []).append(np.asarray(values)[known])

    def joined(self, label: str) -> dict[str, np.ndarray]:
        arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        if not arrays or not len(arrays["index"]):
            raise UserError(f"the pass has no row with a known {label}; expected at least one")
        return arrays


def _spread(value: np.ndarray) -> np.ndarray:
    """Standard deviation of each target over its known rows; 1 if it is 0."""
    deviations = np.array([float(np.std(v[~np.isnan(v)])) if (~np.isnan(v)).any() else 0.0 for v in value.T])
    return np.where(deviations > 0, deviations, 1.0)


def _labelled(label: np.ndarray) -> np.ndarray:
    if label.ndim == 2:
        return np.array([not np.isnan(row).all() for row in label], bool)
    return np.nan_to_num(label.astype(np.float64), nan=-1) >= 0


def _probabilities(logits: np.ndarray, labels: int) -> np.ndarray:
    """Softmax over the classes if the labels have 1 dimension, or a sigmoid of each label if they have 2; [N K]."""
    if labels == 2:
        return expit(logits)
    return softmax(logits, axis=1)


def _certainty(probabilities: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of each prediction, and whether it is correct; with several labels, whether all known labels are."""
    if label.ndim == 1:
        return probabilities.max(1), probabilities.argmax(1) == label
    wrong = ((probabilities >= 0.5) != (label > 0.5)) & ~np.isnan(label)
    return np.abs(probabilities - 0.5).min(1), ~wrong.any(1)


def _floats(metrics: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    out = {name: float(metrics[name]) for name in MEANS if name in metrics and not np.isnan(metrics[name])}
    for name in PER_CLASS:
        out |= named(name, classes, metrics[name])
    return out
