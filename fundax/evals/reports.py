"""Reports that a model writes of images, held against the true ones: words, and the findings that are named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundax.metrics.text import all_scores
from fundax.types import Batch, Extra, Forward, Params, UserError

Find = Callable[[str], Collection[str]]  # the findings that a text says are there


@dataclass(frozen=True, kw_only=True)
class WrittenReports:
    """An Eval: every image's report is written and compared with its own.

    data: batches with image u8 [B h w 3], text i32 [B L] and, where rows are padding, valid.
    decode: ids [B L] to texts; both sides go through it, so that they are compared as the tokenizer leaves them.
    findings: name to what finds findings in a text, such as {"findings": ..., "conditions": ...}.
    shown: images kept with their reports in the arrays, for a page.

    Returns floats bleu1 to bleu4, rouge_l, meteor_like, cider (report_scores), words (mean number in a written one), and
    for each name of `findings` NAME_precision, NAME_recall, NAME_f1 (micro: over all findings of all reports), and
    NAME_chance, the F1 of each written report against the true one of the next image. What is undefined is left out.
    Arrays: image, written, true (the first `shown`); names and values of the floats above; for each name of `findings` NAME
    [K], NAME_count i [K 3] (right, written only, true only), NAME_written and NAME_true, those of the first `shown`, joined.
    Raises UserError where there are no rows or no reports.
    """

    data: Callable[[], Iterator[Batch]]
    decode: Callable[[np.ndarray], list[str]]
    findings: Mapping[str, Find]
    shown: int = 24

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> dict[str, Any]:
        images, written, true = self._reports(forward, params, extra)
        out: dict[str, Any] = all_scores(written, true)
        out["words"] = float(np.mean([len(text.split()) for text in written]))
        for name, find in self.findings.items():
            said = [[frozenset(find(text)) for text in side] for side in (written, true)]
            out |= compare_findings(name, said[0], said[1])
            for side, found in zip(("written", "true"), said, strict=True):
                out[f"{name}_{side}"] = np.array(["; ".join(sorted(one)) for one in found[: self.shown]])
        floats = {key: value for key, value in out.items() if isinstance(value, float)}
        out |= {"names": np.array(list(floats)), "values": np.array(list(floats.values()))}
        texts = {"written": np.array(written[: self.shown]), "true": np.array(true[: self.shown])}
        return out | texts | {"image": np.stack(images[: self.shown])}

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
            true += self.decode(np.asarray(batch["text"])[rows])
            images += list(np.asarray(batch["image"])[rows][: max(self.shown - len(images), 0)])
        if not true:
            raise UserError("the evaluation of reports has no rows; expected at least one image with its report")
        return images, written, true


def compare_findings(name: str, written: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> dict[str, Any]:
    """Micro precision, recall and F1 of the findings of N reports, and the counts of each finding; see WrittenReports."""
    right, extra, missed = _counts(written, true)
    out: dict[str, Any] = {}
    if right + extra:
        out[f"{name}_precision"] = right / (right + extra)
    if right + missed:
        out[f"{name}_recall"] = right / (right + missed)
    if right + extra + missed:
        out[f"{name}_f1"] = 2 * right / (2 * right + extra + missed)
        hit, wrong, lost = _counts(written, [*true[1:], *true[:1]])
        out[f"{name}_chance"] = 2 * hit / max(2 * hit + wrong + lost, 1)
    names = sorted({k for side in (written, true) for found in side for k in found})
    rows = [_counts([{k} & set(a) for a in written], [{k} & set(b) for b in true]) for k in names]
    return out | {name: np.array(names, dtype=str), f"{name}_count": np.array(rows, np.int64).reshape(-1, 3)}


def _counts(written: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> tuple[int, int, int]:
    """Findings in both, in the written ones alone, in the true ones alone."""
    pairs = [(set(a), set(b)) for a, b in zip(written, true, strict=True)]
    return sum(len(a & b) for a, b in pairs), sum(len(a - b) for a, b in pairs), sum(len(b - a) for a, b in pairs)
