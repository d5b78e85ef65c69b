"""Evaluation of generated reports against reference reports: similarity of the texts and agreement of the findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import ReportResult
from fundax.metrics.text import all_scores
from fundax.types import Batch, Extra, Forward, Params, UserError

Find = Callable[[str], Collection[str]]  # text -> the findings that it states to be present


@dataclass(frozen=True, kw_only=True)
class WrittenReports:
    """An Eval that generates a report for every image and compares it with the reference report.

    Args:
        data: batches with image u8 [B h w 3], valid if rows are padding, and the reference report as token ids: `text`
            i32 [B L], truncated to the model's context, and optionally the whole text as `reference` i32 [B M].
        decode: maps token ids [B L] to texts. It is applied to both reports, so that losses of the tokenizer are the same.
        findings: functions that extract findings from a text, by name, for example {"findings": ..., "conditions": ...}.
        shown: number of images that are stored with their reports.

    Returns:
        A ReportResult. Metrics: bleu1 to bleu4, rouge_l, meteor_like, cider (see metrics.text), words (mean number of
        words in a generated report), and for each name of `findings` NAME_precision, NAME_recall, NAME_f1 (micro-averaged
        over all findings of all reports) and NAME_chance, the F1 when each generated report is compared with the
        reference of the next image. Undefined metrics are omitted.

    Raises UserError if there are no rows or no reports.
    """

    data: Callable[[], Iterator[Batch]]
    decode: Callable[[np.ndarray], list[str]]
    findings: Mapping[str, Find]
    shown: int = 24

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> ReportResult:
        images, written, true = self._reports(forward, params, extra)
        metrics = all_scores(written, true) | {"words": float(np.mean([len(text.split()) for text in written]))}
        groups, names, counts = [], [], []
        shown: dict[str, list[set[str]]] = {side: [set() for _ in images] for side in ("written", "true")}
        for group, find in self.findings.items():
            stated = {side: [set(find(t)) for t in texts] for side, texts in (("written", written), ("true", true))}
            metrics |= finding_metrics(group, stated["written"], stated["true"])
            names.append(sorted(set().union(*stated["written"], *stated["true"])))
            groups += [group] * len(names[-1])
            counts.append(finding_counts(names[-1], stated["written"], stated["true"]))
            for side, sets in shown.items():
                shown[side] = [have | more for have, more in zip(sets, stated[side], strict=False)]
        listed = {
            f"{side}_findings": np.array(["; ".join(sorted(names)) for names in sets]) for side, sets in shown.items()
        }
        return ReportResult(
            metrics=metrics, image=np.stack(images), written=np.array(written[: len(images)]),
            true=np.array(true[: len(images)]), finding_group=np.array(groups, dtype=str),
            finding=np.array([name for part in names for name in part], dtype=str),
            finding_count=np.concatenate([np.zeros((0, 3), np.int64), *counts]), **listed,
        )  # fmt: skip

    def _reports(self, forward: Forward, params: Params, extra: Extra) -> tuple[list[np.ndarray], list[str], list[str]]:
        images: list[np.ndarray] = []
        written: list[str] = []
        true: list[str] = []
        for batch in self.data():
            if "text" not in batch:
                raise UserError(f"batches of reports have {', '.join(sorted(batch))}; expected also 'text'")
            rows = np.asarray(batch.get("valid", np.ones(len(batch["text"]), bool)))
            ids = np.asarray(forward(params, extra, {"image": batch["image"]})["report"])
            written += self.decode(ids[rows])
            true += self.decode(np.asarray(batch.get("reference", batch["text"]))[rows])
            images += list(np.asarray(batch["image"])[rows][: max(self.shown - len(images), 0)])
        if not true:
            raise UserError("the evaluation of reports has no rows; expected at least one image with its report")
        return images, written, true


def finding_metrics(name: str, written: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 of the findings of N reports, and F1 by chance; undefined metrics are omitted."""
    right, extra, missed = _counts(written, true)
    out: dict[str, float] = {}
    if right + extra:
        out[f"{name}_precision"] = right / (right + extra)
    if right + missed:
        out[f"{name}_recall"] = right / (right + missed)
    if right + extra + missed:
        out[f"{name}_f1"] = 2 * right / (2 * right + extra + missed)
        hit, wrong, lost = _counts(written, [*true[1:], *true[:1]])
        out[f"{name}_chance"] = 2 * hit / max(2 * hit + wrong + lost, 1)
    return out


def finding_counts(
    names: Sequence[str], written: Sequence[Collection[str]], true: Sequence[Collection[str]]
) -> np.ndarray:
    """Numbers i64 [K 3] of reports with each finding in both texts, only in the generated, only in the reference."""
    rows = [_counts([{k} & set(a) for a in written], [{k} & set(b) for b in true]) for k in names]
    return np.array(rows, np.int64).reshape(-1, 3)


def _counts(written: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> tuple[int, int, int]:
    """Numbers of findings in both reports, only in the generated reports, and only in the references."""
    pairs = [(set(a), set(b)) for a, b in zip(written, true, strict=True)]
    return sum(len(a & b) for a, b in pairs), sum(len(a - b) for a, b in pairs), sum(len(b - a) for a, b in pairs)
