"""Training and evaluation data of whole visits: the steps of a visit, shares of modalities, and passes with labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.open import Data, joined
from data_pipelines.packing import Pack
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.records import Source
from data_pipelines.tasks.image_text import Wording, scored_names
from data_pipelines.transforms.steps import Step
from data_pipelines.transforms.visits import LEVELS, FlipVisit, TokenizeVisit, VisitViews, shares_kept
from data_pipelines.words import Named

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VisitOptions:
    """The arguments of a config for batches of visits.

    Args:
        views: Views that a step takes of a visit: all, one at random, or a random pair of two modalities of one eye.
        shares: Wanted share of each of --modalities among the images; empty takes views as they come.
        inherit: An eye or a view without a report of its own takes that of the visit.
        apart: Two visits of one patient do not meet in a batch.
        flip: Mirror visits at random, with what their texts say of left and right.
        image_slots: Images that a batch has room for, for each of its visits.
        text_slots: Texts that a batch has room for, for each of its visits.
        missing_views: Share of the views of synthetic visits that are missing.
    """

    views: Literal["all", "one", "pair"] = "all"
    shares: tuple[float, ...] = ()
    inherit: bool = False
    apart: bool = True
    flip: bool = True
    image_slots: int = 3
    text_slots: int = 6
    missing_views: float = 0.4

    def room(self) -> Pack:
        """The room of a training batch."""
        return Pack(images=self.image_slots, texts=self.text_slots, apart=self.apart)

    def parts(
        self, sources: Sequence[Named], names: Sequence[str], steps: Sequence[Step], tokenizer: Tokenizer,
        levels: Sequence[str], most: int = 8,
    ) -> list[Part]:  # fmt: skip
        """The parts of a mix of visits, weighted by `weight` or the number of visits.

        names: modalities. steps: image steps for each view. levels: whose texts are read. most: views of a visit.
        """
        kept = _kept(joined(sources), names, self.shares) if self.shares else ()
        fields: dict[str, Any] = {"inherit": self.inherit, "choose": self.views, "most": most, "keep": kept}
        first = VisitViews(tuple(names), tuple(steps), tuple(levels), **fields)
        chain = (first, *((FlipVisit(),) if self.flip else ()), TokenizeVisit(tokenizer))
        rows = [len(one.source) for one in sources]
        default = [n / sum(rows) for n in rows]
        return [Part(one.source, chain, one.weight or w) for one, w in zip(sources, default, strict=True)]


def _kept(source: Source, names: Sequence[str], shares: Sequence[float]) -> tuple[float, ...]:
    counts = modality_counts(source, names)
    kept = shares_kept(counts, shares)
    shown = ", ".join(f"{name} {n:.0%}" for name, n in zip(names, kept, strict=True))
    _log.info("views that are kept, for the modality shares asked for: %s", shown)
    return kept


def modality_counts(source: Source, names: Sequence[str], most: int = 2000) -> list[int]:
    """How often each of `names` occurs in at most `most` visits, evenly spaced. No image is read."""
    counts = dict.fromkeys(names, 0)
    for row in range(0, len(source), max(-(-len(source) // most), 1)):
        for view in source[row].views:
            if view.modality in counts:
                counts[view.modality] += 1
    return list(counts.values())


def room_for(levels: Sequence[str], most: int) -> Pack:
    """Room for any visit of at most `most` views, for a pass in which every visit is in its own row."""
    texts = {"visit": 1, "eye": 2, "view": most}
    return Pack(images=most, texts=max(sum(texts[level] for level in levels), 1), apart=False)


def visit_passes(
    data: Data,
    parts: Mapping[str, list[Named]],
    names: Sequence[str],
    steps: Sequence[Step],
    tokenizer: Tokenizer,
    wording: Wording,
    batch: int,
    most: int = 8,
) -> dict[str, dict[str, Any]]:
    """The arguments data, classes, prompts and modalities of evals.VisitScores for each held-out source, by its name.

    names: modalities. steps: image steps for each view. wording: the prompts of a class. most: views of a visit.
    """
    found = {}
    for end, one in scored_names(data, parts):
        classes: tuple[str, ...] = tuple(getattr(one.source, "classes", ()))
        first = VisitViews(tuple(names), tuple(steps), most=most, labels=True)
        views = one_epoch(one.source, (first, TokenizeVisit(tokenizer)), batch=batch, room=room_for(LEVELS, most))
        prompts = [tokenizer(list(wording(name, names[0]))) for name in classes]
        found[f"visits{end}"] = {"data": views, "classes": classes, "prompts": prompts, "modalities": tuple(names)}
    return found
