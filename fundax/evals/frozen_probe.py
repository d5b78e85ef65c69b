"""A linear probe of frozen features by cross-validation that keeps patients whole, and how two encoders differ by it.

Every image is scored by a model that saw none of its patient; the interval of a difference draws patients, not images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundax.errors import UserError
from fundax.types import Batch, Extra, Forward, Params
from fundax.weighted import class_aucs

Split = Callable[[], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class FrozenProbe:
    """An Eval: logistic regression on standardised features, out of fold, one class against the rest.

    Batches of `data` hold `image` (and `modality` where the model normalises by it), `label` i32 [B] and `group`
    i32 [B], equal for images of one patient. Results: macro_auc over the classes present, labels_used; the arrays
    labels, classes, logits (log probabilities) and group. `strength` is scikit-learn's C.
    """

    data: Split
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
