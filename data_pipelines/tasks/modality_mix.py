"""Mix sources of several modalities into one stream, with a sampling weight for each modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.open import Named, Sources, named
from data_pipelines.pipeline import Part, one_epoch
from data_pipelines.records import DataError, modality_name
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.modality_folders import modality_folders
from data_pipelines.synthetic.render import DRAWERS
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.steps import Select, Squash, Step
from data_pipelines.transforms.views import Grouped, SingleView

ByModality = dict[str, list[Named]]


def by_modality(data: Sources, wanted: Sequence[str], synthetic: Eyes, keep: bool = False) -> ByModality:
    """Group the sources of --data by modality.

    Each word of --data is `synthetic` (all modalities that can be rendered), a folder with VisionFM's layout
    `<Modality>/*`, or a source that data_pipelines.open supports; such a source has the modality of its first record.

    wanted: modalities to include. synthetic: number, seed and size of the synthetic eyes of each modality. keep: render
    synthetic eyes once and keep them in memory. Raises DataError if no source has a wanted modality.
    """
    found: ByModality = {}
    words = data.data or ("synthetic",)
    for word in words:
        for name, source in _sources(word, data, wanted, synthetic, keep):
            if name in wanted:
                found.setdefault(name, []).append(source)
    if not found:
        raise DataError(f"{' '.join(words)}: no images of {', '.join(wanted)}")
    return found


def shares(sources: ByModality, steps: tuple[Step, ...], balanced: bool) -> list[Part]:
    """The parts of a mix, weighted equally by modality if `balanced`, else by the number of images.

    Within a modality, sources are weighted by their `weight`, which defaults to the number of images.
    """
    parts = []
    for group in sources.values():
        weights = [one.weight or len(one.source) for one in group]
        whole = 1.0 if balanced else float(sum(weights))
        parts += [Part(one.source, steps, whole * w / sum(weights)) for one, w in zip(group, weights, strict=True)]
    return parts


def probe_data(wanted: Sequence[str], unseen: Eyes, size: int, batch: int) -> dict[str, Any]:
    """One labelled pass over the synthetic eyes `unseen` for each wanted modality that can be rendered."""
    steps = (Grouped(SingleView(text=None)), Squash(size), Select(("image", "label", "modality", "group")))
    names = [name for name in DRAWERS if name in wanted and unseen.n]
    eyes = {name: CachedSource(replace(unseen, modalities=(name,))) for name in names}
    return {name: one_epoch(source, steps, batch=batch) for name, source in eyes.items()}


def images(sources: ByModality) -> int:
    """Total number of images in all sources."""
    return sum(len(one.source) for group in sources.values() for one in group)


def _sources(word: str, data: Sources, wanted: Sequence[str], synthetic: Eyes, keep: bool) -> list[tuple[str, Named]]:
    if word == "synthetic":
        drawn = [name for name in DRAWERS if name in wanted]
        eyes = [Eyes(synthetic.n, synthetic.seed, synthetic.start, (name,), synthetic.size) for name in drawn]
        return [(name, Named(word, CachedSource(e) if keep else e)) for name, e in zip(drawn, eyes, strict=True)]
    if Path(word).is_dir() and _has_modalities(Path(word)):
        return [(name, Named(word, source)) for name, source in modality_folders(word).items()]
    one = named(word, {"images": data.image_dir}, data.data_dir)
    return [(one.source[0].views[0].modality, one)]


def _has_modalities(root: Path) -> bool:
    """Whether a subfolder has the name of a modality."""
    for folder in root.iterdir():
        try:
            if folder.is_dir() and modality_name(folder.name):
                return True
        except DataError:
            continue
    return False
