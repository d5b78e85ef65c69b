"""Zero-shot classification: images are scored by their similarity to the prompts of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from fundax.evals.features import class_features
from fundax.evals.kinds import ByClass, Cases, ClassificationResult, Rows, named, row_columns
from fundax.evals.pictures import ANSWERS, Thumbnails
from fundax.evals.places import check_labels
from fundax.metrics.classification import classification
from fundax.types import Batch, Eval, Extra, Forward, Params, UserError

Prompts = np.ndarray | Sequence[np.ndarray]  # i32 [K P L], or i32 [P L] for each class, where P may differ


def zero_shot(
    data: Callable[[], Iterator[Batch]],
    classes: Sequence[str],
    prompts: Prompts,
    *,
    parity: bool = False,
    inputs: Sequence[str] = ("image",),
    text_batch: int = 64,
    pictures: int = 12,
) -> Eval:
    """An eval of zero-shot classification: the weights of a class are the mean of the features of its prompts.

    Args:
        data: batches with the `inputs`, `label` i32 [B] (below 0 if unlabelled) and, if rows are padding, `valid` bool
            [B]. The patient of a row is `group` or `patient`.
        classes: K names, in the order of the labels.
        prompts: token ids.
        parity: compute scores and means as the original script of MM-Fundus-CLIP does (see `parity_scores`,
            `parity_rows`).
        inputs: keys of the batches for the image encoder.
        text_batch: number of prompts per forward pass.
        pictures: number of thumbnails of `image` u8 to store, of confident and uncertain predictions.

    Returns:
        A ClassificationResult, ranked by logits. Metrics: macro_auc, macro_ap, macro_accuracy, accuracy, unlabelled (the
        number of ignored rows) and, if defined, auc/NAME, ap/NAME and recall/NAME of each class.

    Raises UserError for features that are not finite, labels of K or above, data without labelled rows, and prompts that
    do not match the classes.

    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembles in feature space.
    """
    prompts = [np.atleast_2d(np.asarray(ids)) for ids in prompts]
    if len(prompts) != len(classes):
        raise UserError(f"zero-shot prompts for {len(prompts)} classes; expected {len(classes)}: {', '.join(classes)}")
    for name, ids in zip(classes, prompts, strict=True):
        if not len(ids):
            raise UserError(f"zero-shot class {name!r} has no prompt; expected at least one")

    def evaluate(forward: Forward, params: Params, extra: Extra) -> ClassificationResult:
        encode = lambda batch: forward(params, extra, batch)  # noqa: E731
        heads = class_features(encode, prompts, text_batch)  # [K E]
        kept = Thumbnails(pictures, ANSWERS)
        logits, labels, rows, unlabelled = _logits(encode, data(), heads, classes, inputs, kept, data)
        probabilities = parity_scores(logits) if parity else softmax(logits, axis=1)
        by_class = parity_rows(probabilities, labels) if parity else class_rows(logits, labels, classes)
        more = {"accuracy": float((probabilities.argmax(axis=1) == labels).mean())}
        more |= {"unlabelled": float(unlabelled)} if unlabelled else {}
        return ClassificationResult(
            metrics=_summary(by_class, classes, parity) | more,
            labels=labels, logits=logits, probabilities=probabilities, classes=np.array(classes),
            ranked_by="probabilities" if parity else "logits",
            rows=Rows.read(rows), by_class=ByClass(**by_class), cases=Cases.read(kept.arrays()),
        )  # fmt: skip

    return evaluate


def parity_scores(logits: np.ndarray) -> np.ndarray:
    """Scores f32 [N K] as in the original script, the softmax of the sigmoid, to compare with published numbers.

    In float32 the sigmoid is exactly 1 above 16.7. With a logit scale of 100, classes with a cosine above 0.17 therefore
    have equal scores, and the first class is predicted.

    Source: myeongkyunkang/mmfundusclip, main_clip_zero.py.
    """
    logits = logits.astype(np.float32)
    with np.errstate(over="ignore"):  # if exp(-logit) overflows to inf, the sigmoid is 0, as intended
        return softmax(np.float32(1) / (np.float32(1) + np.exp(-logits)), axis=1)


def class_rows(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """One-vs-rest AUC, average precision and recall of each class from logits [N K]; NaN with a note where undefined.

    AUC and AP rank the rows by the logit of the class. Recall uses the argmax of the row.
    """
    metrics = classification(labels, logits, classes)
    return {name: metrics[name] for name in ("auc", "ap", "recall", "count", "note")}


def parity_rows(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each class as in the original script: class_rows of its scores [N K], with -1 for an absent class.

    Source: myeongkyunkang/mmfundusclip, main_clip_zero.py.
    """
    rows = class_rows(scores, labels, [str(k) for k in range(scores.shape[1])])
    return {name: np.where(rows["count"] == 0, -1.0, rows[name]) for name in ("auc", "ap", "recall")} | {
        name: rows[name] for name in ("count", "note")
    }


def _logits(
    encode: Callable[[Batch], Mapping[str, np.ndarray]],
    data: Iterator[Batch],
    heads: np.ndarray,
    classes: Sequence[str],
    inputs: Sequence[str],
    kept: Thumbnails,
    source: Any,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], int]:
    """Logits f32 [N K], labels i64 [N] and other columns of the labelled rows, and the number of unlabelled rows."""
    logits, labels, seen, unlabelled = [], [], 0, 0
    kept_columns: dict[str, list[np.ndarray]] = {}
    for batch in data:
        if "label" not in batch:
            raise UserError(f"zero-shot batches have {', '.join(sorted(batch))}; expected also 'label'")
        valid = np.asarray(batch.get("valid", np.ones(len(batch["label"]), bool)))
        label = np.asarray(batch["label"])
        if label.ndim != 1:
            raise UserError(f"zero-shot labels have shape {label.shape}; expected one class index per row")
        known = valid & (np.nan_to_num(label.astype(np.float64), nan=-1) >= 0)
        check_labels(label, known, batch, seen, classes, source)
        unlabelled, seen = unlabelled + int((valid & ~known).sum()), seen + len(valid)
        if not (valid := known).any():
            continue
        rows = np.asarray(batch["index"] if "index" in batch else seen - len(valid) + np.arange(len(valid)))[valid]
        label = label[valid]
        out = encode({key: batch[key] for key in inputs})
        features = np.asarray(out["image_features"], np.float32)[valid]  # [B E]
        _check_finite("image_features", features, rows)
        scores = np.float32(out["logit_scale"]) * (features @ heads.T)
        logits.append(scores + np.float32(out.get("logit_bias", 0.0)))
        shares = softmax(logits[-1], axis=1)
        right, sure = np.zeros(len(valid), bool), np.zeros(len(valid), np.float32)
        right[valid], sure[valid] = shares.argmax(1) == label, shares.max(1)
        kept.offer(batch, valid, sum(map(len, labels)), right, sure)
        labels.append(label)
        columns = {name: np.asarray(values)[valid] for name, values in row_columns(batch).items()}
        for name, values in (columns | {"index": rows}).items():
            kept_columns.setdefault(name, []).append(values)
    if not sum(map(len, labels)):
        raise UserError("the zero-shot evaluation has no labelled row; expected at least one labelled image")
    columns = {name: np.concatenate(parts) for name, parts in kept_columns.items()}
    return np.concatenate(logits), np.concatenate(labels).astype(np.int64), columns, unlabelled


def _check_finite(name: str, features: np.ndarray, rows: np.ndarray) -> None:
    bad = rows[~np.isfinite(features).all(axis=1)]
    if len(bad):
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        which = ", ".join(map(str, bad[:5]))
        raise UserError(f"{name} of rows {which}{more} are not finite (NaN or infinity); the weights may be broken")


def _summary(rows: Mapping[str, np.ndarray], classes: Sequence[str], parity: bool) -> dict[str, float]:
    out = {}
    for name, total in (("auc", "macro_auc"), ("ap", "macro_ap"), ("recall", "macro_accuracy")):
        values = rows[name]
        # The original script also omits classes with a recall of 0, which raises its mean.
        counted = values[values > 0] if parity else values[~np.isnan(values)]
        if len(counted):
            out[total] = float(counted.mean())
        out |= named(name, classes, values)
    return out
