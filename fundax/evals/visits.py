"""Evaluation of a model of visits: zero-shot classification of visits, eyes, views and subsets of modalities, and retrieval."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fundax.evals.features import class_features
from fundax.evals.kinds import Scores
from fundax.metrics import weighted
from fundax.metrics.ranking import ranks
from fundax.metrics.statistics import Comparison, Estimate, bootstrap_weighted, weighted_difference
from fundax.types import Batch, Extra, Forward, Params, UserError

SIDES = ("left", "right")
VIEWS = ("row", "slot", "view_modality", "view_eye")


class Sheet(NamedTuple):
    """Features and labels of N visits and of their M views."""

    visit: np.ndarray  # f32 [N E]
    eyes: np.ndarray  # f32 [N 2 E], 0 if the eye has no view
    subsets: dict[tuple[int, ...], np.ndarray]  # f32 [N E] for each subset of modalities, 0 if a visit has no such view
    text: np.ndarray  # f32 [N E] of the text of the visit, NaN without a text
    label: np.ndarray  # i64 [N]
    label_eyes: np.ndarray  # i64 [N 2]
    patient: np.ndarray  # i64 [N]
    view: np.ndarray  # f32 [M E]
    owner: np.ndarray  # i64 [M], row of the visit
    modality: np.ndarray  # i64 [M]
    eye: np.ndarray  # i64 [M], 2 if unknown


@dataclass(frozen=True, kw_only=True)
class VisitScores:
    """An Eval of held-out visits.

    Its metrics are

    - macro_auc (of visits), eye/macro_auc, view/macro_auc, and macro_auc/NAME of each subset of modalities ("CFP+OCT")
      and of each single view ("CFP left");
    - best_single_view, and gain_over_best_single_view (with _low and _high) on the visits with this view;
    - R@10/NAME and lift/NAME (R@10 divided by chance) of retrieval between the modalities of an eye ("OCT to CFP"),
      between eyes ("CFP left to right") and from reports ("report to visit"), and the means over pairs of modalities,
      cross_modal_R@10 and cross_modal_lift.

    The arrays are a table with a row for each subset and single view.

    Args:
        data: packed batches of visits with patient, and label, label_left and label_right i32 [B], below 0 if unknown.
        classes: names of the K classes; () omits the zero-shot scores.
        prompts: token ids i32 [P L] of each class.
        modalities: names of the indices `view_modality`.
        resamples: number of bootstrap resamples of patients, for 95 % intervals.

    Raises:
        UserError: no visit is labelled.
    """

    data: Callable[[], Iterator[Batch]]
    classes: Sequence[str]
    prompts: Sequence[np.ndarray]
    modalities: Sequence[str]
    resamples: int = 1000

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Scores:
        def encode(batch: Batch) -> dict[str, np.ndarray]:
            return forward(params, extra, batch)

        sheet = self._sheet(encode)
        if not self.classes:
            return Scores(metrics=self._retrieval(sheet))
        if not (sheet.label >= 0).any():
            raise UserError("the evaluation of visits has no labelled visit")
        metrics, table = self._zero_shot(sheet, class_features(encode, self.prompts))
        return Scores(metrics=metrics | self._retrieval(sheet), other=table)

    def _sheet(self, encode: Callable[[Batch], Mapping[str, np.ndarray]]) -> Sheet:
        count = len(self.modalities)
        subsets = [s for n in range(1, count + 1) for s in itertools.combinations(range(count), n)]
        parts: list[dict[str, Any]] = []
        seen = 0
        for batch in self.data():
            valid = np.asarray(batch["valid"], bool)
            given = {name: batch[name] for name in (*VIEWS, "valid")}
            out = encode(given | {name: batch[name] for name in ("images", "texts")})
            of_subsets = {subset: self._features(encode, given, out["view_raw"], subset) for subset in subsets}
            at, numbers = np.asarray(batch["text_at"]), seen + np.cumsum(valid) - 1
            text = np.where((at >= 0)[:, None], out["text_features"][np.maximum(at, 0)], np.nan)
            row = np.asarray(batch["row"])
            there = (row >= 0) & valid[np.maximum(row, 0)]
            parts.append({
                "visit": out["image_features"][valid], "eyes": out["eye_features"][valid], "text": text[valid],
                "subsets": {subset: features[valid] for subset, features in of_subsets.items()},
                "label": _labels(batch, "label")[valid], "patient": np.asarray(batch["patient"], np.int64)[valid],
                "label_eyes": np.stack([_labels(batch, f"label_{side}") for side in SIDES], 1)[valid],
                "view": out["view_features"][there], "owner": numbers[row[there]],
                "modality": np.asarray(batch["view_modality"])[there], "eye": np.asarray(batch["view_eye"])[there],
            })  # fmt: skip
            seen += int(valid.sum())
        joined: dict[str, Any] = {
            name: np.concatenate([p[name] for p in parts]) for name in parts[0] if name != "subsets"
        }
        joined["subsets"] = {s: np.concatenate([part["subsets"][s] for part in parts]) for s in subsets}
        unknown = joined["patient"] < 0
        joined["patient"] = np.where(unknown, -1 - np.arange(len(unknown)), joined["patient"])
        return Sheet(**joined)

    def _features(self, encode: Any, given: Batch, raw: np.ndarray, subset: Sequence[int]) -> np.ndarray:
        """Features [B E] of the visits from the views of a subset of modalities; 0 if a visit has no such view."""
        kept = np.isin(given["view_modality"], subset)
        some = dict(given) | {"view_raw": raw, "row": np.where(kept, given["row"], -1).astype(np.int32)}
        return np.asarray(encode(some)["image_features"])

    def _zero_shot(self, sheet: Sheet, heads: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        whole = sheet.visit @ heads.T  # [N K]
        metrics = {"macro_auc": _macro_auc(sheet.label, whole), "visits": float(len(whole))}
        for name, labels, features in (
            ("eye", sheet.label_eyes.reshape(-1), sheet.eyes.reshape(-1, sheet.eyes.shape[-1])),
            ("view", self._view_labels(sheet), sheet.view),
        ):
            known = (labels >= 0) & features.any(1)
            metrics[f"{name}/macro_auc"] = _macro_auc(labels[known], features[known] @ heads.T)
        rows: list[tuple[str, int, Estimate, Comparison]] = []
        for name, at, features in self._parts(sheet):
            known = sheet.label[at] >= 0
            at, scores = at[known], features[known] @ heads.T
            rows.append((name, len(at), *self._compared(sheet.label[at], scores, whole[at], sheet.patient[at])))
        rows = [row for row in rows if row[2].defined]
        metrics |= {f"macro_auc/{name}": estimate.value for name, _, estimate, _ in rows}
        if singles := [row for row in rows if " " in row[0]]:
            _, _, best, gain = max(singles, key=lambda row: row[2].value)
            metrics |= {"best_single_view": best.value, "gain_over_best_single_view": gain.difference.value}
            metrics |= {f"gain_over_best_single_view_{end}": getattr(gain.difference, end) for end in ("low", "high")}
        columns = {"views": [row[0] for row in rows], "visits": [row[1] for row in rows]}
        for end in ("value", "low", "high"):
            columns[f"auc_{end}"] = [getattr(row[2], end) for row in rows]
            columns[f"gain_of_the_visit_{end}"] = [getattr(row[3].difference, end) for row in rows]
        return metrics, {f"table_{name}": np.array(values) for name, values in columns.items()}

    def _parts(self, sheet: Sheet) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, rows of visits i64 [n] and features [n E] of each subset of modalities and of each single view."""
        for subset, features in sheet.subsets.items():
            at = np.flatnonzero(features.any(1))
            yield "+".join(self.modalities[k] for k in subset), at, features[at]
        for k, eye in itertools.product(range(len(self.modalities)), range(len(SIDES))):
            at, features = _first(sheet, k, eye)
            if len(at):
                yield f"{self.modalities[k]} {SIDES[eye]}", at, features

    def _compared(
        self, labels: np.ndarray, scores: np.ndarray, whole: np.ndarray, patients: np.ndarray
    ) -> tuple[Estimate, Comparison]:
        """Macro AUC of the scores [n K] with its interval, and the difference to the macro AUC of the whole visits."""
        part, all_views = (lambda w, s=s: weighted.nanmean(weighted.class_aucs(labels, s, w)) for s in (scores, whole))
        drawn = {"patients": patients, "resamples": self.resamples}
        return bootstrap_weighted(part, len(labels), **drawn), weighted_difference(
            all_views, part, len(labels), **drawn
        )

    def _view_labels(self, sheet: Sheet) -> np.ndarray:
        """The label of the eye of each view, or of the visit if the eye is unknown."""
        of_eyes = np.concatenate([sheet.label_eyes, sheet.label[:, None]], axis=1)  # [N 3]
        return of_eyes[sheet.owner, sheet.eye]

    def _retrieval(self, sheet: Sheet) -> dict[str, float]:
        metrics: dict[str, float] = {}
        cross = []
        for a, b in itertools.permutations(range(len(self.modalities)), 2):
            pairs = [_both(_first(sheet, a, eye), _first(sheet, b, eye)) for eye in range(len(SIDES))]
            queries, items = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
            name = f"{self.modalities[a]} to {self.modalities[b]}"
            metrics |= (scores := _recall(name, queries, items))
            cross.append([scores[f"R@10/{name}"], scores[f"lift/{name}"]] if scores else [np.nan, np.nan])
        for k, name in enumerate(self.modalities):
            metrics |= _recall(f"{name} left to right", *_both(_first(sheet, k, 0), _first(sheet, k, 1)))
        there = ~np.isnan(sheet.text[:, 0])
        metrics |= _recall("report to visit", sheet.text[there], sheet.visit[there])
        if cross and not np.isnan(cross).all():
            means = np.nanmean(np.array(cross), axis=0)
            metrics |= {"cross_modal_R@10": float(means[0]), "cross_modal_lift": float(means[1])}
        return metrics


def _labels(batch: Batch, name: str) -> np.ndarray:
    """Labels i64 [B]; -1 for all visits if the batch has no such key."""
    return np.asarray(batch[name] if name in batch else -np.ones(len(batch["valid"])), np.int64)


def _macro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean one-vs-rest AUC of the classes that occur, ignoring rows with a label below 0."""
    known = labels >= 0
    ones = np.ones((1, int(known.sum())))
    return (
        float(weighted.nanmean(weighted.class_aucs(labels[known], scores[known], ones))[0]) if known.any() else np.nan
    )


def _first(sheet: Sheet, modality: int, eye: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows i64 [n] of the visits with a view of this modality and eye, and the features [n E] of the first such view."""
    views = np.flatnonzero((sheet.modality == modality) & (sheet.eye == eye))
    at, first = np.unique(sheet.owner[views], return_index=True)
    return at, sheet.view[views[first]]


def _both(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The features [n E] of the visits that are in both, for each of them."""
    _, at, other = np.intersect1d(first[0], second[0], return_indices=True)
    return first[1][at], second[1][other]


def _recall(name: str, queries: np.ndarray, items: np.ndarray, k: int = 10) -> dict[str, float]:
    """R@10 and its ratio to chance, if there are more than 10 items."""
    if len(items) <= k:
        return {}
    recall = float((ranks(queries, items, np.arange(len(items))) < k).mean())
    return {f"R@{k}/{name}": recall, f"lift/{name}": recall * len(items) / k}
