"""A linear probe for several labels at once, trained on frozen features while the encoder trains.

Validation alone chooses the epoch; the test set, where there is one, is scored once, at that epoch.

A linear probe of frozen features by cross-validation that keeps patients whole, and how two encoders differ by it.

Every image is scored by a model that saw none of its patient; the interval of a difference draws patients, not images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fundax.metrics.weighted import class_aucs
from fundax.types import Array, Batch, Extra, Forward, Params, UserError

Split = Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An Eval: linear layer + sigmoid cross-entropy on frozen features, reported on `valid` (and `test`).

    Batches hold `image` (or what the forward pass takes) and under `label` f32 [B K] of zeros and ones.
    Results: macro_auc, macro_ap, labels_used and epoch of validation; as test_... where there is
    a test set; the arrays <split>_scores and <split>_labels. Labels of one value are left out of the means.

    Source of the defaults: github.com/sStonemason/RET-CLIP, `eval_RFMiD` (AdamW 1e-3, no decay, eps 1e-6,
    batch 128, 75 epochs). Unlike there, the test set never chooses the epoch.
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

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        splits = {
            name: extract(forward, params, extra, split, self.feature, self.label)
            for name, split in (("train", self.train), ("valid", self.valid), ("test", self.test))
            if split is not None
        }
        weights = self._train(*splits["train"])
        results = [
            macro_auc_ap(splits["valid"][1], _scores(weights, e, splits["valid"][0])) for e in range(self.epochs)
        ]
        epoch = int(np.argmax([r["macro_auc"] + r["macro_ap"] for r in results]))
        out: dict[str, Any] = {**results[epoch], "epoch": epoch}
        for name in set(splits) - {"train"}:
            out |= {
                f"{name}_scores": _scores(weights, epoch, splits[name][0]),
                f"{name}_labels": splits[name][1],
            }
        if "test" in splits:
            test = macro_auc_ap(splits["test"][1], out["test_scores"])
            out |= {f"test_{key}": value for key, value in test.items()}
        return out

    def _train(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernels [epochs D K], biases [epochs K] after each epoch; a short last batch is dropped."""
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


def extract(
    forward: Forward, params: Params, extra: Extra, split: Split, feature: str, key: str = "label"
) -> tuple[np.ndarray, np.ndarray]:
    """Features f32 [n D] and labels f32 [n K] of the valid rows of one pass.

    Raises UserError if the forward pass has no such feature, or labels are not rows of zeros and ones.
    """
    features, labels = [], []
    for batch in split():
        out = forward(params, extra, {name: value for name, value in batch.items() if name != key})
        if feature not in out:
            raise UserError(f"the probe wants the feature {feature!r}, the model gives {sorted(out)}")
        label = np.asarray(batch[key])
        if label.ndim != 2 or not np.isin(label, (0, 1)).all():
            raise UserError(f"the probe wants labels of zeros and ones [B K], found shape {label.shape}")
        valid = np.asarray(batch.get("valid", np.ones(len(label), bool)))
        features.append(np.asarray(out[feature], np.float32)[valid])
        labels.append(label[valid].astype(np.float32))
    if not features:
        raise UserError("the probe got a split without a single batch")
    return np.concatenate(features), np.concatenate(labels)


def macro_auc_ap(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means over labels of the area under the ROC curve and of the average precision; both [n K].

    Labels that are all zero or all one have no such areas: they are left out, `labels_used` counts the rest.
    Raises UserError if none is left.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    used = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    if not used:
        raise UserError("every label of the set is all zero or all one: there is nothing to rank")
    auc = [float(roc_auc_score(labels[:, k], scores[:, k])) for k in used]
    ap = [float(average_precision_score(labels[:, k], scores[:, k])) for k in used]
    return {"macro_auc": float(np.mean(auc)), "macro_ap": float(np.mean(ap)), "labels_used": float(len(used))}


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


FeatureSplit = Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class FrozenProbe:
    """An Eval: logistic regression on standardised features, out of fold, one class against the rest.

    Batches of `data` hold `image` (and `modality` where the model normalises by it), `label` i32 [B] and `group`
    i32 [B], equal for images of one patient. Results: macro_auc over the classes present, labels_used; the arrays
    labels, classes, logits (log probabilities) and group. `strength` is scikit-learn's C.
    """

    data: FeatureSplit
    classes: tuple[str, ...]
    feature: str = "features"
    folds: int = 5
    strength: float = 0.1
    seed: int = 0

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        features, labels, groups = self.extract(forward, params, extra)
        scores = self.scores(features, labels, groups)
        auc = class_aucs(labels, scores, np.ones((1, len(labels))))[:, 0]
        used = ~np.isnan(auc)
        if not used.any():
            raise UserError("the probe's images are all of one class: there is nothing to tell apart")
        found = {"macro_auc": float(auc[used].mean()), "labels_used": float(used.sum())}
        arrays = {"labels": labels, "classes": np.array(self.classes), "logits": np.log(np.maximum(scores, 1e-12))}
        return {**found, **arrays, "group": groups}

    def extract(self, forward: Forward, params: Params, extra: Extra) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features f32 [n D], labels i32 [n] and groups i32 [n] of the valid rows of one pass. Raises UserError."""
        found: list[tuple[np.ndarray, ...]] = []
        for batch in self.data():
            out = forward(params, extra, {k: v for k, v in batch.items() if k in ("image", "modality")})
            if self.feature not in out:
                raise UserError(f"the probe wants the feature {self.feature!r}, the model gives {sorted(out)}")
            valid = np.asarray(batch["valid"])
            rows = (np.asarray(out[self.feature], np.float32), batch["label"], batch["group"])
            found.append(tuple(np.asarray(row)[valid] for row in rows))
        if not found:
            raise UserError("the probe got a pass without a single batch")
        features, labels, groups = (np.concatenate(part) for part in zip(*found, strict=True))
        return features, labels, groups

    def scores(self, features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Probabilities f64 [n K] of every row, by the model of the folds it is not in; a class not learnt has 0."""
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

    The interval is that of the percentile bootstrap over groups (patients): each draw takes as many groups as there are,
    with replacement, and both scores see the same ones. Classes a draw lost are left out of its means.
    """
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = np.concatenate([np.ones((1, len(labels))), taken[:, member]])
    one, two = (np.nanmean(class_aucs(labels, scores, weights), axis=0) for scores in (first, second))
    low, high = np.percentile((two - one)[1:], (2.5, 97.5))
    return {"first": float(one[0]), "second": float(two[0]), "low": float(low), "high": float(high)}


def summary(rows: Sequence[tuple[str, dict[str, float], int]]) -> str:
    """A Markdown table of (name, difference(...), images) rows."""
    lines = ["| probe | images | random encoder | pretrained | difference (95 % interval) |", "|---|---|---|---|---|"]
    for name, d, n in rows:
        gain = f"{d['second'] - d['first']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
        lines.append(f"| {name} | {n} | {d['first']:.3f} | {d['second']:.3f} | {gain} |")
    return "\n".join(lines)
