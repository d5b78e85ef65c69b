"""Training and evaluation data of whole visits: the steps of a visit, shares of modalities, and passes with labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

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


def parts_of_visits(
    sources: Sequence[Named],
    first: VisitViews,
    tokenizer: Tokenizer,
    *,
    shares: Sequence[float] = (),
    flip: bool = True,
    later: Sequence[Step] = (),
) -> list[Part]:
    """The parts of a mix of visits, weighted by `weight` or the number of visits.

    shares: wanted share of each of `first.names` among the images; () takes them as they come. Views of a modality that is
    too frequent are left out at random. later: further steps.
    """
    steps = (*((FlipVisit(),) if flip else ()), TokenizeVisit(tokenizer), *later)
    rows = [len(one.source) for one in sources]
    kept = _kept(joined(sources), first.names, shares) if shares else ()
    start = VisitViews(**{**first.__dict__, "keep": kept})
    default = [n / sum(rows) for n in rows]
    return [Part(one.source, (start, *steps), one.weight or w) for one, w in zip(sources, default, strict=True)]


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
    first: VisitViews,
    tokenizer: Tokenizer,
    wording: Wording,
    batch: int,
) -> dict[str, dict[str, Any]]:
    """The arguments data, classes, prompts and modalities of evals.VisitScores for each held-out source, by its name."""
    found = {}
    for end, one in scored_names(data, parts):
        classes: tuple[str, ...] = tuple(getattr(one.source, "classes", ()))
        whole = VisitViews(first.names, first.steps, LEVELS, most=first.most, labels=True)
        passes = one_epoch(one.source, (whole, TokenizeVisit(tokenizer)), batch=batch, room=room_for(LEVELS, first.most))
        prompts = [tokenizer(list(wording(name, first.names[0]))) for name in classes]
        found[f"visits{end}"] = {"data": passes, "classes": classes, "prompts": prompts, "modalities": first.names}
    return found
