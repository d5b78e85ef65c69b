"""Few-shot evaluation: zero-shot, class means, logistic regression, a linear layer, CLIP-Adapter and Tip-Adapter(-F).

Features are computed once. The protocol and its settings are those of github.com/jusiro/FLAIR (Apache-2.0): C 0.316,
40 epochs of AdamW 1e-3, alpha 1, beta 5."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from scipy.special import softmax

from fundax.evals.features import extract
from fundax.evals.kinds import FewShotResult
from fundax.evals.places import check_labels
from fundax.metrics.classification import classification
from fundax.objectives.adapter import ClipAdapter, TipAdapter, fit, heads, remember
from fundax.types import Batch, Extra, Forward, Params, UserError

Rows = Mapping[str, np.ndarray]  # feature f32 [N E] (unit), linear f32 [N D], label i32 [N]
Scores = Callable[..., np.ndarray]  # (few, text, log_scale, rows, seed) -> probabilities f32 [N K]
EPOCHS = 40
PROBE_EPOCHS = 50
RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """An Eval of balanced accuracy and macro AUC on the test set, by method and number of images per class.

    No setting is chosen on the test set: all settings are fixed.

    Args:
        pool, test: batches with the inputs of the forward pass, `label` i32 [B], and `valid` bool [B] if rows are
            padding. Training images are drawn from the pool only.
        classes: class names.
        class_features: maps `encode` to unit features f32 [K E] of the prompts, see features.class_features. None omits
            the methods that need them, so that "prototypes" and "linear" are left.
        shots: numbers of images per class.
        seeds: number of draws for each number of shots.
        methods: names in METHODS.
        feature, linear_feature: keys of the forward pass (FLAIR probes the features before the projection).
        patient: key of the batches i64 [B] that identifies patients, or "". With a key, the shots of a class come from
            different patients if possible, and a patient in both pool and test raises UserError.
        cache, pool_fingerprint, test_fingerprint: see features.extract.

    Returns:
        A FewShotResult. Its metrics are METHOD_K_balanced_accuracy and METHOD_K_macro_auc, means over draws, and their
        standard deviations METHOD_K_..._sd.
    """

    pool: Callable[[], Iterator[Batch]]
    test: Callable[[], Iterator[Batch]]
    classes: Sequence[str]
    class_features: Callable[..., np.ndarray] | None = None
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: int = 5
    methods: tuple[str, ...] = ("zero_shot", "linear", "clip_adapter", "tip_adapter", "tip_adapter_f")
    feature: str = "image_features"
    linear_feature: str = "image_features"
    patient: str = ""
    cache: str = ""
    pool_fingerprint: str = ""
    test_fingerprint: str = ""

    def __post_init__(self) -> None:
        if unknown := [m for m in self.methods if m not in METHODS]:
            raise UserError(f"few-shot method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
        if min(self.shots, default=0) < 1 or self.seeds < 1:
            raise UserError(f"few-shot shots {self.shots} and seeds {self.seeds}; expected numbers from 1 up")

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> FewShotResult:
        pool = self._rows(forward, params, extra, self.pool, self.pool_fingerprint)
        test = self._rows(forward, params, extra, self.test, self.test_fingerprint)
        _check_apart(pool, test)
        text, log_scale, methods = None, 0.0, [m for m in self.methods if m in WITHOUT_TEXT]
        if self.class_features is not None:
            text, log_scale = self._heads(forward, params, extra)
            methods = list(self.methods)
        table, kept = [], []
        for method in methods:
            for shots in self.shots if method != "zero_shot" else (0,):
                draws = range(self.seeds if shots else 1)
                results = [self._draw(method, shots, seed, pool, test, text, log_scale) for seed in draws]
                kept += [probabilities for probabilities, _ in results]
                table += [(method, shots, seed, *row) for seed, (_, row) in enumerate(results)]
        return FewShotResult(
            metrics=_means(table), **_columns(table), probabilities=np.stack(kept), labels=test["label"],
            patient=test.get("patient"), classes=np.array(self.classes),
        )  # fmt: skip

    def _heads(self, forward: Forward, params: Params, extra: Extra) -> tuple[np.ndarray, float]:
        """Class features f32 [K E] and the log of the logit scale."""
        scale: dict[str, float] = {}

        def encode(batch: Batch) -> dict[str, np.ndarray]:
            out = forward(params, extra, batch)
            scale["logit_scale"] = float(out["logit_scale"])
            return out

        assert self.class_features is not None
        text = self.class_features(encode)
        return text, math.log(scale.get("logit_scale", 1.0))

    def _rows(self, forward: Forward, params: Params, extra: Extra, data: Any, fingerprint: str) -> Rows:
        extra_keys = ("label", self.patient) if self.patient else ("label",)
        names = tuple(dict.fromkeys((self.feature, self.linear_feature)))
        kept = {"extra_keys": extra_keys, "cache": self.cache, "fingerprint": fingerprint}
        rows = extract(forward, params, extra, data, names, **kept)
        if rows["label"].ndim != 1:
            raise UserError(f"few-shot labels have shape {rows['label'].shape}; expected one class per image")
        known = np.nan_to_num(rows["label"].astype(np.float64), nan=-1) >= 0
        check_labels(rows["label"], known, {}, 0, self.classes, data)
        if not known.any():
            raise UserError("few-shot data have no labelled image; expected at least one")
        rows = {key: values[known] for key, values in rows.items()}
        named = {"feature": rows[self.feature], "linear": rows[self.linear_feature]}
        short = {"label": "label", self.patient: "patient"}
        return named | {short[key]: rows[key].astype(np.int64) for key in extra_keys}

    def _draw(
        self, method: str, shots: int, seed: int, pool: Rows, test: Rows, text: Any, log_scale: float
    ) -> tuple[np.ndarray, tuple[float, float, str]]:
        rows, note = draw(pool["label"], len(self.classes), shots, seed, pool.get("patient"))
        few = {key: value[rows] for key, value in pool.items()}
        probabilities = METHODS[method](few, len(self.classes), text, log_scale, test, seed)
        scored = classification(test["label"], probabilities)
        return probabilities, (scored["balanced_accuracy"], scored["macro_auc"], note)


def draw(
    labels: np.ndarray, classes: int, shots: int, seed: int, patients: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Draw the rows of `shots` images per class, and a note if a class has fewer images, which are then all drawn.

    If `patients` [N] are given, images of different patients are drawn first. Draws with the same seed are nested: the
    rows for 2 shots are among the rows for 4 shots.
    """
    rng, rows, short = np.random.default_rng([seed, 7]), [], []
    for k in range(classes):
        order = rng.permutation(np.flatnonzero(labels == k))
        if patients is not None and len(order):
            first = np.sort(np.unique(patients[order], return_index=True)[1])
            order = np.concatenate([order[first], np.delete(order, first)])
        rows.append(order[:shots])
        if len(order) < shots:
            short.append(f"class {k} has {len(order)} of {shots}")
    return np.concatenate(rows), "; ".join(short)


def _check_apart(pool: Rows, test: Rows) -> None:
    if "patient" in pool and len(shared := np.intersect1d(pool["patient"], test["patient"])):
        raise UserError(f"{len(shared)} patients are both in the pool and in the test set")


def linear(
    few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int, *, c: float = 0.316, tol: float = 1e-4
) -> np.ndarray:
    """Logistic regression by scikit-learn with balanced class weights. Classes without images have probability 0."""
    from sklearn.linear_model import LogisticRegression

    del text, log_scale, seed
    out = np.zeros((len(test["linear"]), classes), np.float32)
    there = np.unique(few["label"])
    if len(there) < 2:
        out[:, there] = 1
        return out
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=1000, tol=tol)
    out[:, there] = model.fit(few["linear"], few["label"]).predict_proba(test["linear"])
    return out


def zero_shot(few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int) -> np.ndarray:
    """Zero-shot classification: softmax(exp(log_scale) X T'), without training images."""
    del few, classes, seed
    return softmax((math.exp(log_scale) * test["feature"] @ np.asarray(text).T).astype(np.float32), axis=1)


def clip_adapter(few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int) -> np.ndarray:
    """CLIP-Adapter as in FLAIR: one image per step, cosine decay to 0, the same order in all epochs."""
    objective, extra = ClipAdapter(few["feature"].shape[1], classes), heads(text, log_scale)
    params, _ = objective.init(jax.random.key(seed), {})
    order = _order(few, seed)
    rates = RATE * (1 + np.cos(np.pi * np.arange(len(order)) / len(order))) / 2
    params = fit(objective, params, extra, few["feature"], few["label"], order, rates=rates)
    return softmax(np.asarray(objective.forward(params, extra, {"feature": test["feature"]})["logits"]), axis=1)


def tip_adapter(
    few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int, *, train: bool = False
) -> np.ndarray:
    """Tip-Adapter without training, with logit scale 100 as in FLAIR."""
    features = few["feature"]
    objective = TipAdapter(features.shape[1], classes, len(features), fixed_scale=100.0)
    params, extra = remember(features, few["label"], classes, heads(text, log_scale))
    if train:
        order = _order(few, seed)
        params = fit(objective, params, extra, features, few["label"], order, rates=np.full(len(order), RATE))
    return softmax(np.asarray(objective.forward(params, extra, {"feature": test["feature"]})["logits"]), axis=1)


def tip_adapter_f(few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int) -> np.ndarray:
    """Tip-Adapter-F, which trains the keys with the formula used for prediction (FLAIR differs, see TipAdapter)."""
    return tip_adapter(few, classes, text, log_scale, test, seed, train=True)


def prototypes(few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int) -> np.ndarray:
    """Class means of unit features, compared by cosine at CLIP's scale of 100; for encoders without text.

    Classes without an image have probability 0.
    """
    del text, log_scale, seed
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    there, features = np.unique(few["label"]), unit(few["feature"])
    means = unit(np.stack([features[few["label"] == k].mean(0) for k in there]))
    out = np.zeros((len(test["feature"]), classes), np.float32)
    out[:, there] = softmax(100 * unit(test["feature"]) @ means.T, axis=1)
    return out


def probe(few: Rows, classes: int, text: Any, log_scale: float, test: Rows, seed: int) -> np.ndarray:
    """A linear layer with the settings of RET-CLIP's authors: AdamW 1e-3, decay 0.01, 50 epochs in batches of 16.

    They train with label smoothing on the output of a softmax, and keep the best epoch of the test set; here it is the
    plain cross-entropy, and the last epoch. Source: github.com/sStonemason/RET-CLIP-PLUS.
    """
    del text, log_scale
    rng, features = np.random.default_rng([seed, 9]), few["linear"]
    size = min(16, len(features))
    rows = np.stack([rng.permutation(len(features))[: len(features) // size * size] for _ in range(PROBE_EPOCHS)])
    bound = features.shape[1] ** -0.5  # torch.nn.Linear's initial range
    start = tuple(
        rng.uniform(-bound, bound, shape).astype(np.float32) for shape in ((features.shape[1], classes), (classes,))
    )
    kernel, bias = _trained(start, features, few["label"], rows.reshape(-1, size))
    return softmax(test["linear"] @ np.asarray(kernel) + np.asarray(bias), axis=1)


@jax.jit
def _trained(start: Any, features: jax.Array, labels: jax.Array, order: jax.Array) -> Any:
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.01)

    def loss(weights: Any, rows: jax.Array) -> jax.Array:
        logits = features[rows] @ weights[0] + weights[1][None]  # [B K]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights, rows), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    weights, _ = jax.lax.scan(step, (start, optimizer.init(start)), order)[0]
    return weights


METHODS: dict[str, Scores] = {
    "zero_shot": zero_shot,
    "linear": linear,
    "probe": probe,
    "prototypes": prototypes,
    "clip_adapter": clip_adapter,
    "tip_adapter": tip_adapter,
    "tip_adapter_f": tip_adapter_f,
}


WITHOUT_TEXT = ("prototypes", "linear", "probe")


def _order(few: Rows, seed: int) -> np.ndarray:
    """Rows i32 [epochs * N, 1]: every image once per epoch, in the same order."""
    return np.tile(np.random.default_rng([seed, 8]).permutation(len(few["label"])), EPOCHS)[:, None]


def _means(table: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    out = {}
    for method, shots in dict.fromkeys((row[0], row[1]) for row in table):
        rows = [row for row in table if row[:2] == (method, shots)]
        for name, column in (("balanced_accuracy", 3), ("macro_auc", 4)):
            values = np.array([row[column] for row in rows if not math.isnan(row[column])])
            if len(values):
                out[f"{method}_{shots}_{name}"] = float(values.mean())
            if len(values) > 1:
                out[f"{method}_{shots}_{name}_sd"] = float(values.std(ddof=1))
    return out


def _columns(table: Sequence[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    names = ("method", "shots", "seed", "balanced_accuracy", "macro_auc", "note")
    return {name: np.array(column) for name, column in zip(names, zip(*table, strict=True), strict=True)}
