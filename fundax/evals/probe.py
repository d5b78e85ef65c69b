"""Linear probes of frozen features, and the difference between two encoders.

`Probe` is a multi-label probe; it chooses the epoch on validation data, and evaluates the test set once, at that epoch.
`FrozenProbe` cross-validates with all images of a patient in the same fold; its intervals resample patients, not images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from fundax.evals.features import extract
from fundax.evals.kinds import ClassificationResult, MultiLabelResult, Rows
from fundax.evals.places import check_labels
from fundax.metrics import weighted
from fundax.metrics.classification import multi_label, nanmean
from fundax.metrics.statistics import Weighted, weighted_difference
from fundax.types import Array, Batch, Extra, Forward, Params, UserError

Split = Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An Eval of a linear layer trained with sigmoid cross-entropy on frozen features.

    Batches have the inputs of the forward pass (`image`) and labels f32 [B K] of 0 and 1 under the key `label`.

    Returns:
        A MultiLabelResult of the test set, or of the validation set without a test set. Metrics: macro_auc, macro_ap,
        labels_used and epoch on the validation set, and test_... on the test set. Labels with a single value are excluded
        from the means.

    Source of the defaults: github.com/sStonemason/RET-CLIP, `eval_RFMiD` (AdamW 1e-3, no decay, eps 1e-6,
    batch 128, 75 epochs). Unlike the original, the epoch is never chosen on the test set.
    """

    train: Split
    valid: Split
    test: Split | None = None
    label: str = "label"  # key of the batch
    feature: str = "image_raw"  # key of the forward pass; RET-CLIP's "visual" is what its authors probe
    epochs: int = 75
    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> MultiLabelResult:
        splits = {
            name: self._rows(forward, params, extra, split)
            for name, split in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if split is not None
        }
        weights = self._train(*splits["train"])
        features, labels = splits["valid"]
        results = [macro_auc_ap(labels, _scores(weights, e, features)) for e in range(self.epochs)]
        epoch = int(np.argmax([r["macro_auc"] + r["macro_ap"] for r in results]))
        features, labels = splits.get("test", splits["valid"])
        logits = _scores(weights, epoch, features)
        test = {f"test_{key}": value for key, value in macro_auc_ap(labels, logits).items()} if self.test else {}
        return MultiLabelResult(
            metrics={**results[epoch], "epoch": float(epoch), **test}, labels=labels, logits=logits,
            probabilities=expit(logits), classes=np.array([f"label {k}" for k in range(labels.shape[1])]),
        )  # fmt: skip

    def _rows(self, forward: Forward, params: Params, extra: Extra, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Features f32 [n D] and labels f32 [n K] of one split. Raises UserError for labels other than 0 and 1."""
        rows = extract(forward, params, extra, split, (self.feature,), extra_keys=(self.label,))
        label = rows[self.label]
        if label.ndim != 2 or not np.isin(label, (0, 1)).all():
            raise UserError(f"the probe needs labels [B K] of 0 and 1, got shape {label.shape}")
        return rows[self.feature], label.astype(np.float32)

    def _train(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernels [epochs D K] and biases [epochs K] after each epoch. An incomplete last batch is dropped."""
        rng = np.random.default_rng(self.seed)
        size = min(self.batch, len(features))
        steps = len(features) // size
        order = np.stack([rng.permutation(len(features))[: steps * size] for _ in range(self.epochs)])
        bound = features.shape[1] ** -0.5  # torch.nn.Linear's initial range
        shape = (features.shape[1], labels.shape[1])
        start = {
            "kernel": rng.uniform(-bound, bound, shape).astype(np.float32),
            "bias": rng.uniform(-bound, bound, shape[1]).astype(np.float32),
        }
        order = order.reshape(self.epochs, steps, size)
        path = _train_epochs(start, features, labels, order, self.learning_rate)
        return np.asarray(path["kernel"]), np.asarray(path["bias"])


def macro_auc_ap(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Macro AUC and average precision of labels 0/1 and scores [n K], over the labels that have both values.

    Raises UserError if no label has both values.
    """
    metrics = multi_label(labels, scores)
    used = float(np.isfinite(metrics["auc"]).sum())
    if not used:
        raise UserError("every label is all 0 or all 1, so there is nothing to rank")
    return {"macro_auc": metrics["macro_auc"], "macro_ap": metrics["macro_ap"], "labels_used": used}


@partial(jax.jit, static_argnames=("learning_rate",))
def _train_epochs(
    start: Mapping[str, Array], features: Array, labels: Array, order: Array, learning_rate: float
) -> dict[str, jax.Array]:
    optimizer = optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.0)

    def loss(weights: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        logits = features[rows] @ weights["kernel"] + weights["bias"][None]  # [B K]
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def step(carry, rows):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights, rows), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    def epoch(carry, rows):
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, carry[0]

    first: Any = dict(start)
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    after: Any = jax.lax.scan(epoch, (first, optimizer.init(first)), order)[1]
    return after


def _scores(weights: tuple[np.ndarray, np.ndarray], epoch: int, features: np.ndarray) -> np.ndarray:
    kernels, biases = weights
    return features @ kernels[epoch] + biases[epoch]


@dataclass(frozen=True, kw_only=True)
class FrozenProbe:
    """An Eval of logistic regression on standardised features, cross-validated by patient.

    Args:
        data: batches with `image` (and `modality` if the model normalises by modality), `label` i32 [B] and `group`
            i32 [B], which is equal for the images of a patient.
        classes: class names.
        feature: key of the features in the output of the forward pass.
        folds: number of folds.
        strength: scikit-learn's C.
        seed: seed of the folds.

    Returns:
        A ClassificationResult of the out-of-fold predictions; its logits are log probabilities. Metrics: macro_auc (over
        the classes present, one against the rest) and labels_used.
    """

    data: Split
    classes: tuple[str, ...]
    feature: str = "features"
    folds: int = 5
    strength: float = 0.1
    seed: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> ClassificationResult:
        features, labels, groups = self.extract(forward, params, extra)
        scores = self.scores(features, labels, groups)
        auc = weighted.class_aucs(labels, scores, np.ones((1, len(labels))))[:, 0]
        if np.isnan(auc).all():
            raise UserError("all images of the probe have the same class, so there is nothing to rank")
        return ClassificationResult(
            metrics={"macro_auc": nanmean(auc), "labels_used": float((~np.isnan(auc)).sum())},
            labels=labels.astype(np.int64), probabilities=scores, logits=np.log(np.maximum(scores, 1e-12)),
            classes=np.array(self.classes), rows=Rows(patient=groups),
        )  # fmt: skip

    def extract(self, forward: Forward, params: Params, extra: Extra) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features f32 [n D], labels i32 [n] and groups i32 [n] of the labelled rows of one pass."""
        extra_keys, input_keys = ("label", "group"), ("image", "modality")
        rows = extract(forward, params, extra, self.data, (self.feature,), extra_keys=extra_keys, input_keys=input_keys)
        known = np.nan_to_num(rows["label"].astype(np.float64), nan=-1) >= 0
        check_labels(rows["label"], known, {}, 0, self.classes, self.data)
        return rows[self.feature][known], rows["label"][known], rows["group"][known]

    def scores(self, features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Out-of-fold probabilities f64 [n K] of all rows; 0 for classes that are absent from the training folds."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        out = np.zeros((len(labels), len(self.classes)))
        for fit, held in self._folds(labels, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=2000))
            model.fit(features[fit], labels[fit])
            out[np.ix_(held, model.classes_)] = model.predict_proba(features[held])
        return out

    def _folds(self, labels: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

        if len(np.unique(groups)) < self.folds:
            raise UserError(f"{self.folds} folds need at least as many patients, got {len(np.unique(groups))}")
        even = np.unique(labels, return_counts=True)[1].min() >= self.folds
        kind = StratifiedGroupKFold if even else GroupKFold
        return iter(kind(self.folds, shuffle=True, random_state=self.seed).split(labels, labels, groups))


def difference(
    labels: np.ndarray, groups: np.ndarray, first: np.ndarray, second: np.ndarray, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Macro AUC of two sets of scores [n K] of the same rows, and the 95 % interval of second minus first.

    The interval is a percentile bootstrap over groups (patients), with the same resamples for both. Classes that are
    absent from a resample are excluded from its mean.
    """

    def macro(scores: np.ndarray) -> Weighted:
        return lambda weights: weighted.nanmean(weighted.class_aucs(labels, scores, weights))

    before, after = macro(first), macro(second)
    gain = weighted_difference(after, before, len(labels), patients=groups, resamples=draws, seed=seed).difference
    values = (float(metric(np.ones((1, len(labels))))[0]) for metric in (before, after))
    return dict(zip(("first", "second"), values, strict=True)) | {"low": gain.low, "high": gain.high}


def summary(rows: Sequence[tuple[str, dict[str, float], int]]) -> str:
    """Format rows (name, result of `difference`, number of images) as a Markdown table."""
    lines = ["| probe | images | random encoder | pretrained | difference (95 % interval) |", "|---|---|---|---|---|"]
    for name, d, n in rows:
        gain = f"{d['second'] - d['first']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
        lines.append(f"| {name} | {n} | {d['first']:.3f} | {d['second']:.3f} | {gain} |")
    return "\n".join(lines)
