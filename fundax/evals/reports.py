"""Evaluation of generated reports against reference reports: similarity of the texts and agreement of the findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fundax.evals.kinds import ReportResult
from fundax.metrics.text import all_scores
from fundax.types import Batch, Extra, Forward, Params, UserError

Find = Callable[[str], Collection[str]]  # the findings that a text says are there


@dataclass(frozen=True, kw_only=True)
class WrittenReports:
    """An Eval that generates a report for every image and compares it with the reference report.

    data: batches with image u8 [B h w 3], valid where rows are padding, and the reference report as token ids: `text`
        i32 [B L], which is cut at the model's context, and the whole text under `reference` i32 [B M], if it is there.
    decode: token ids [B L] to texts. Both reports go through it, so that they are compared as the tokenizer leaves them.
    findings: functions that find findings in a text, by name, such as {"findings": ..., "conditions": ...}.
    shown: number of images kept with their reports for a page.

    Returns a ReportResult. Metrics: bleu1 to bleu4, rouge_l, meteor_like, cider (see metrics.text), words (mean number in a
    generated report), and for each name of `findings` NAME_precision, NAME_recall, NAME_f1 (micro: over all findings of
    all reports) and NAME_chance, the F1 of each generated report against the reference of the next image. Undefined
    ones are left out. Raises UserError where there are no rows or no reports.
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
            found = {side: [set(find(t)) for t in texts] for side, texts in (("written", written), ("true", true))}
            metrics |= finding_metrics(group, found["written"], found["true"])
            names.append(sorted(set().union(*found["written"], *found["true"])))
            groups += [group] * len(names[-1])
            counts.append(finding_counts(names[-1], found["written"], found["true"]))
            for side, sets in shown.items():
                shown[side] = [have | more for have, more in zip(sets, found[side], strict=False)]
        listed = {
            f"{side}_findings": np.array(["; ".join(sorted(one)) for one in sets]) for side, sets in shown.items()
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
    """Micro precision, recall and F1 of the findings of N reports, and F1 by chance; undefined ones are left out."""
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
    """i64 [K 3]: for each finding the reports in which both name it, only the generated one, only the reference."""
    rows = [_counts([{k} & set(a) for a in written], [{k} & set(b) for b in true]) for k in names]
    return np.array(rows, np.int64).reshape(-1, 3)


def _counts(written: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> tuple[int, int, int]:
    """Number of findings in both reports, in the generated ones only, in the reference only."""
    pairs = [(set(a), set(b)) for a, b in zip(written, true, strict=True)]
    return sum(len(a & b) for a, b in pairs), sum(len(a - b) for a, b in pairs), sum(len(b - a) for a, b in pairs)
