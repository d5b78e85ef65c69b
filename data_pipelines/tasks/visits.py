"""Training and evaluation data of whole visits: steps, shares of modalities, and labelled passes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipelines.language.tokenizers import Tokenizer
from data_pipelines.open import Data, joined
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.pipeline.packing import Pack
from data_pipelines.records import Source
from data_pipelines.tasks.image_text import Wording, scored_names
from data_pipelines.tasks.labelled import attribute_names
from data_pipelines.tasks.visit_cases import ShownVisit
from data_pipelines.transforms.steps import Step
from data_pipelines.transforms.visits import LEVELS, FlipVisit, TokenizeVisit, VisitViews, shares_kept
from data_pipelines.words import Named

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VisitOptions:
    """The arguments of a config for batches of visits.

    Args:
        views: Views of a visit that are used: all, a random one, or a random pair of two modalities of the same eye.
        shares: Desired fraction of each of --modalities among the images; empty uses all views.
        inherit: An eye or a view without a report uses the report of the visit.
        apart: Put two visits of the same patient into different batches.
        flip: Mirror visits at random, and exchange left and right in their texts.
        image_slots: Number of images in a batch for each of its visits.
        text_slots: Number of texts in a batch for each of its visits.
        missing_views: Fraction of the views of synthetic visits that are missing.
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
        """The capacity of a training batch."""
        return Pack(images=self.image_slots, texts=self.text_slots, apart=self.apart)

    def parts(
        self, sources: Sequence[Named], names: Sequence[str], steps: Sequence[Step], tokenizer: Tokenizer,
        levels: Sequence[str], most: int = 8,
    ) -> list[Part]:  # fmt: skip
        """The parts of a mix of visits, weighted by `weight` or by the number of visits.

        Args:
            sources: sources of visits.
            names: modalities.
            steps: image steps for each view.
            tokenizer: tokenizer of the texts.
            levels: levels of the texts to use: "visit", "eye" or "view".
            most: maximum number of views of a visit.
        """
        kept = _kept(joined(sources), names, self.shares) if self.shares else ()
        fields: dict[str, Any] = {"inherit": self.inherit, "choose": self.views, "most": most, "keep": kept}
        first = VisitViews(tuple(names), tuple(steps), tuple(levels), **fields)
        chain = (first, *((FlipVisit(),) if self.flip else ()), TokenizeVisit(tokenizer))
        rows = [len(named.source) for named in sources]
        default = [n / sum(rows) for n in rows]
        return [Part(named.source, chain, named.weight or w) for named, w in zip(sources, default, strict=True)]


def _kept(source: Source, names: Sequence[str], shares: Sequence[float]) -> tuple[float, ...]:
    counts = modality_counts(source, names)
    kept = shares_kept(counts, shares)
    shown = ", ".join(f"{name} {n:.0%}" for name, n in zip(names, kept, strict=True))
    _log.info("fraction of views that are kept to reach the desired modality shares: %s", shown)
    return kept


def modality_counts(source: Source, names: Sequence[str], most: int = 2000) -> list[int]:
    """The number of views of each of `names` in at most `most` evenly spaced visits. Images are not read."""
    counts = dict.fromkeys(names, 0)
    for row in range(0, len(source), max(-(-len(source) // most), 1)):
        for view in source[row].views:
            if view.modality in counts:
                counts[view.modality] += 1
    return list(counts.values())


def room_for(levels: Sequence[str], most: int) -> Pack:
    """The capacity for visits of at most `most` views, for a pass in which every visit has its own row."""
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
    """The arguments data, classes, prompts and modalities of evals.VisitScores for each held-out source, by name.

    Args:
        data, parts: the sources by part.
        names: modalities.
        steps: image steps for each view.
        tokenizer: tokenizer of the texts.
        wording: the prompts of a class.
        batch: visits per batch.
        most: maximum number of views of a visit.
    """
    out = {}
    for end, named in scored_names(data, parts):
        classes: tuple[str, ...] = tuple(getattr(named.source, "classes", ()))
        about = attribute_names(named.source)
        first = ShownVisit(tuple(names), tuple(steps), most=most, labels=True, about=about)
        views = one_epoch(named.source, (first, TokenizeVisit(tokenizer)), batch=batch, room=room_for(LEVELS, most))
        prompts = [tokenizer(list(wording(name, names[0]))) for name in classes]
        out[f"visits{end}"] = {"data": views, "classes": classes, "prompts": prompts, "modalities": tuple(names)}
    return out
