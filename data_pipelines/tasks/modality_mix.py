"""Mix sources of several modalities into one stream, with a sampling weight for each modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.images.decode import read_options
from data_pipelines.open import Sources
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.records import DataError, Source, modality_name
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.modality_folders import modality_folders
from data_pipelines.sources.parts import PARTS
from data_pipelines.synthetic.render import DRAWERS
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Squash, Step
from data_pipelines.transforms.views import Grouped, SingleView
from data_pipelines.words import READING, Named, word_of

ByModality = dict[str, list[Named]]


def by_modality(
    data: Sources, wanted: Sequence[str], synthetic: Eyes, keep: bool = False
) -> tuple[ByModality, ByModality]:
    """The sources of --data for training and for evaluation, by modality. Synthetic eyes have no evaluation part ({}).

    Each word of --data is `synthetic` (all modalities that can be rendered), a folder with VisionFM's layout
    `<Modality>/*`, or a source that data_pipelines.words supports; such a source has the modality of its first record.

    Args:
        data: sources and splits.
        wanted: modalities to include.
        synthetic: number, seed and size of the synthetic eyes of each modality.
        keep: render synthetic eyes once and keep them in memory.

    Raises DataError if no source has a wanted modality.
    """

    def opened(words: Sequence[str]) -> list[Named]:
        sources = [named for word in words for named in _sources(word, data, wanted, synthetic)]
        if not sources:
            raise DataError(f"{' '.join(words)}: no images of {', '.join(wanted)}")
        return sources

    if not data.data:
        return _grouped(opened(("synthetic",)), keep), {}
    parts = data.parts({}, synthetic.seed, names=PARTS, opener=opened)
    return _grouped(parts["train"], keep), _grouped(data.scored(parts), True)


def _grouped(sources: Sequence[Named], keep: bool) -> ByModality:
    grouped: ByModality = {}
    for named in sources:
        cached = replace(named, source=CachedSource(named.source)) if keep and isinstance(named.source, Eyes) else named
        grouped.setdefault(named.options["modality"], []).append(cached)
    return grouped


def shares(sources: ByModality, steps: tuple[Step, ...], balanced: bool) -> list[Part]:
    """The parts of a mix, weighted equally by modality if `balanced`, else by the number of images.

    Within a modality, sources are weighted by their `weight`, which defaults to the number of images.
    """
    parts = []
    for group in sources.values():
        weights = [named.weight or len(named.source) for named in group]
        whole = 1.0 if balanced else float(sum(weights))
        parts += [Part(named.source, steps, whole * w / sum(weights)) for named, w in zip(group, weights, strict=True)]
    return parts


def probe_passes(
    data: Sources, held: ByModality, unseen: Eyes, wanted: Sequence[str], size: int, batch: int
) -> tuple[dict[str, tuple[tuple[str, ...], Any]], list[Named]]:
    """Classes and one pass over labelled images for a probe, by modality, and the held-out sources if none has labels.

    The images are the labelled sources of `held`. Without --data, they are the synthetic eyes `unseen` of each wanted
    modality that can be rendered, with two conditions if there are few eyes. The key includes the name of the source if
    a modality has several sources.
    """
    if not data.data:
        unseen = replace(unseen, conditions=("normal", "cataract") if unseen.n < 100 else None)
        names = [name for name in DRAWERS if name in wanted and unseen.n]
        drawn = {name: CachedSource(replace(unseen, modalities=(name,))) for name in names}
        return {n.lower(): (unseen.classes, _labelled(source, size, batch)) for n, source in drawn.items()}, []
    passes = {}
    for modality, group in held.items():
        known = [
            named for named in group if getattr(named.source, "classes", ()) and "label" in named.source[0].targets
        ]
        for named in known:
            name = modality.lower() + (f"_{named.name}" if len(known) > 1 else "")
            passes[name] = (named.source.classes, _labelled(named.source, size, batch))  # type: ignore[attr-defined]
    return passes, [] if passes else [named for group in held.values() for named in group]


def _labelled(source: Source, size: int, batch: int) -> Any:
    steps = (Grouped(SingleView(text=None)), Squash(size), Select(("image", "label", "modality", "group")))
    return one_epoch(source, steps, batch=batch)


def images(sources: ByModality) -> int:
    """Total number of images in all sources."""
    return sum(len(named.source) for group in sources.values() for named in group)


def _sources(word: str, data: Sources, wanted: Sequence[str], synthetic: Eyes) -> list[Named]:
    """The sources of a word that have a wanted modality, each with its modality in the option `modality`."""
    if word == "synthetic":
        eyes = {name: replace(synthetic, modalities=(name,)) for name in DRAWERS}
        candidates = [
            Named(f"synthetic_{name.lower()}", source, None, word, {"modality": name}) for name, source in eyes.items()
        ]
    elif Path(folder := word_of(word)[0]).is_dir() and _has_modalities(Path(folder)):
        options = word_of(word)[1]
        if unknown := [name for name in options if name not in READING]:
            raise DataError(f"{word}: unknown option {unknown[0]!r}; expected one of {', '.join(READING)}")
        sources = modality_folders(folder, reading=read_options(**options)).items()
        name_of = Path(folder).name
        candidates = [
            Named(f"{name_of}_{name.lower()}", source, None, word, {"modality": name}) for name, source in sources
        ]
    else:
        (named,) = data.open([word])
        candidates = [replace(named, options={**named.options, "modality": named.source[0].views[0].modality})]
    return [named for named in candidates if named.options["modality"] in wanted]


def _has_modalities(root: Path) -> bool:
    """Whether a subfolder has the name of a modality."""
    for folder in root.iterdir():
        try:
            if folder.is_dir() and modality_name(folder.name):
                return True
        except DataError:
            continue
    return False
