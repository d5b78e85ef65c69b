"""Zero-shot classification: images are scored by their similarity to the prompts of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fundax.evals.pictures import ANSWERS, Thumbnails
from fundax.types import Batch, Eval, Extra, Forward, Params, UserError

_BESIDE = {
    "group": "patient",
    "patient": "patient",
    "eye": "eye",
    "modality": "modality",
}  # key of a batch: of an array


Prompts = np.ndarray | Sequence[np.ndarray]  # i32 [K P L], or per class i32 [P L] with a P of its own


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
    """An eval that classifies without training: a class is the mean of its prompts' features.

    data: batches with the `inputs`, `label` (i32 [B]) and, where rows are padding, `valid` (bool [B]).
    classes: K names, in the order of the labels. prompts: token ids. parity: scores and averages of the peer's
    script (see `parity_scores`, `parity_rows`). text_batch: prompts per forward pass, all of one shape. pictures: how many
    thumbnails to keep of `image` u8, of certain and doubtful answers.

    Returns floats macro_auc, macro_ap, macro_accuracy, accuracy, and per class auc/NAME, ap/NAME, recall/NAME where
    they are defined; and arrays logits, probabilities [N K] f32, labels [N], classes [K], and per class count, auc,
    ap, recall f64 [K] (NaN where undefined) and note [K], the reason; index i64 [N], and patient (`group` or `patient` of
    the batches), eye, modality [N] where batches have them; pictures, picture_index, picture_kind (kept_pictures).

    Raises UserError for features that are not finite, labels out of range, a data set without rows, and prompts
    that do not match the classes.

    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembles in feature space.
    """
    prompts = [np.atleast_2d(np.asarray(ids)) for ids in prompts]
    if len(prompts) != len(classes):
        raise UserError(f"zero-shot prompts for {len(prompts)} classes; expected {len(classes)}: {', '.join(classes)}")
    for name, ids in zip(classes, prompts, strict=True):
        if not len(ids):
            raise UserError(f"zero-shot class {name!r} has no prompt; expected at least one")

    def evaluate(forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        encode = lambda batch: forward(params, extra, batch)  # noqa: E731
        heads = class_features(encode, prompts, text_batch)  # [K E]
        kept = Thumbnails(pictures, ANSWERS)
        logits, labels, beside = _logits(encode, data(), heads, classes, inputs, kept)
        probabilities = parity_scores(logits) if parity else softmax(logits)
        rows = parity_rows(probabilities, labels) if parity else class_rows(logits, labels, classes)
        arrays = {"logits": logits, "probabilities": probabilities, "labels": labels, "classes": np.array(classes)}
        arrays |= beside | kept.arrays()
        return _summary(rows, classes, parity) | {"accuracy": _accuracy(probabilities, labels)} | arrays | rows

    return evaluate


def class_features(
    encode: Callable[[Batch], Mapping[str, np.ndarray]], prompts: Sequence[np.ndarray], text_batch: int = 64
) -> np.ndarray:
    """Unit features f32 [K E]: per class the mean of its prompts' unit features, normalised again."""
    ids = np.concatenate(prompts)  # [KP L]
    padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % text_batch, axis=0)])
    parts = [
        encode({"text": padded[at : at + text_batch]})["text_features"] for at in range(0, len(padded), text_batch)
    ]
    features = np.concatenate(parts)[: len(ids)].astype(np.float32)  # [KP E]
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(
            f"text_features of prompt {np.flatnonzero(~finite)[0]} are not finite; the weights may be broken"
        )
    ends = np.cumsum([len(part) for part in prompts])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(features, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities f32 [N K] over the classes."""
    powers = np.exp(logits.astype(np.float32) - logits.max(axis=1, keepdims=True).astype(np.float32))
    return powers / powers.sum(axis=1, keepdims=True)


def parity_scores(logits: np.ndarray) -> np.ndarray:
    """The peer's scores f32 [N K]: the softmax of the sigmoid.

    In float32 the sigmoid is exactly 1 above 16.7, so at a scale of 100 classes tie from a cosine of .17 on, and the
    first one wins. Kept to compare with published numbers, and for nothing else.

    Source: myeongkyunkang/mmfundusclip, main_clip_zero.py.
    """
    logits = logits.astype(np.float32)
    with np.errstate(over="ignore"):  # exp(-logit) = inf gives the sigmoid 0 that is meant
        return softmax(np.float32(1) / (np.float32(1) + np.exp(-logits)))


def class_rows(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """One-vs-rest AUC, average precision and recall of each class from raw logits [N K]; NaN with a note if undefined.

    AUC and AP rank the rows by the logit of the class itself (scikit-learn); recall counts the argmax of the row.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = {name: np.full(len(classes), np.nan) for name in ("auc", "ap", "recall")}
    notes = [""] * len(classes)
    count = np.bincount(labels, minlength=len(classes))
    guess = logits.argmax(axis=1)
    for k, n in enumerate(count):
        if n == 0:
            notes[k] = "absent from the evaluation set"
            continue
        rows["recall"][k] = (guess[labels == k] == k).mean()
        if n == len(labels):
            notes[k] = "the only class of the evaluation set: nothing to rank it against"
            continue
        rows["auc"][k] = roc_auc_score(labels == k, logits[:, k])
        rows["ap"][k] = average_precision_score(labels == k, logits[:, k])
    return {**rows, "count": count, "note": np.array(notes)}


def parity_rows(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The peer's rows from its scores [N K]: as class_rows, but an absent class is -1.

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
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits f32 [N K] and labels i64 [N] of the rows that are no padding, and what batches say of them."""
    logits, labels, seen = [], [], 0
    beside: dict[str, list[np.ndarray]] = {}
    for batch in data:
        if "label" not in batch:
            raise UserError(f"zero-shot batches have {', '.join(sorted(batch))}; expected also 'label'")
        valid = np.asarray(batch.get("valid", np.ones(len(batch["label"]), bool)))
        rows = np.asarray(batch["index"] if "index" in batch else seen + np.arange(len(valid)))[valid]
        label = np.asarray(batch["label"])[valid]
        _check_labels(label, rows, classes)
        out = encode({key: batch[key] for key in inputs})
        features = np.asarray(out["image_features"], np.float32)[valid]  # [B E]
        _check_finite("image_features", features, rows)
        scores = np.float32(out["logit_scale"]) * (features @ heads.T)
        logits.append(scores + np.float32(out.get("logit_bias", 0.0)))
        shares = softmax(logits[-1])
        right, sure = np.zeros(len(valid), bool), np.zeros(len(valid), np.float32)
        right[valid], sure[valid] = shares.argmax(1) == label, shares.max(1)
        kept.offer(batch, valid, sum(map(len, labels)), right, sure)
        labels.append(label)
        told = {"index": rows} | {ours: np.asarray(batch[key])[valid] for key, ours in _BESIDE.items() if key in batch}
        for name, values in told.items():
            beside.setdefault(name, []).append(values)
        seen += len(valid)
    if not sum(map(len, labels)):
        raise UserError("the zero-shot evaluation set has no rows; expected at least one labelled image")
    told = {name: np.concatenate(parts) for name, parts in beside.items()}
    return np.concatenate(logits), np.concatenate(labels).astype(np.int64), told


def _check_labels(label: np.ndarray, rows: np.ndarray, classes: Sequence[str]) -> None:
    if label.ndim != 1:
        raise UserError(f"zero-shot labels have shape {label.shape}; expected one class index per row")
    for row, value in zip(rows, label, strict=True):
        if not 0 <= value < len(classes):
            raise UserError(f"row {row}: label {value}; expected 0 to {len(classes) - 1} ({', '.join(classes)})")


def _check_finite(name: str, features: np.ndarray, rows: np.ndarray) -> None:
    bad = rows[~np.isfinite(features).all(axis=1)]
    if len(bad):
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        which = ", ".join(map(str, bad[:5]))
        raise UserError(f"{name} of rows {which}{more} are not finite (NaN or infinity); the weights may be broken")


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def _summary(rows: Mapping[str, np.ndarray], classes: Sequence[str], parity: bool) -> dict[str, float]:
    out = {}
    for name, total in (("auc", "macro_auc"), ("ap", "macro_ap"), ("recall", "macro_accuracy")):
        values = rows[name]
        # The peer leaves out a class of recall 0 as well, which makes its mean higher.
        counted = values[values > 0] if parity else values[~np.isnan(values)]
        if len(counted):
            out[total] = float(counted.mean())
        out |= {f"{name}/{k}": float(v) for k, v in zip(classes, values, strict=True) if not np.isnan(v)}
    return out
