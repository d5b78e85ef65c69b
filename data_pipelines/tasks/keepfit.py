"""KeepFIT's data: the CSV files of FLAIR and of MM-Retinal, and batches of public images paired with expert examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.open import Named
from data_pipelines.pipeline import mix
from data_pipelines.records import DataError
from data_pipelines.sources.flair import flair_frame, mm_retinal
from data_pipelines.tasks.image_text import shares
from data_pipelines.transforms.flair import Canvas, CategoryCaption, EliteReport, FlairAugment
from data_pipelines.transforms.steps import Flip, Select, Tokenize

PREFIX = "elite/"
Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """What pipeline.Data makes for one process."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Data(Protocol):
    """pipeline.Data, an endless one."""

    @property
    def batch(self) -> int: ...
    def __call__(self, shard: int = 0, shards: int = 1) -> Batches: ...


@dataclass(frozen=True)
class WithElite:
    """Batches of `public` with those of `elite` under elite/...; both of one size, each in its own order.

    keys: of the elite examples that are kept. Raises DataError where the sizes differ.
    """

    public: Data | Any
    elite: Data | Any
    keys: tuple[str, ...] = ("image", "text")

    def __post_init__(self) -> None:
        if self.public.batch != self.elite.batch:
            raise DataError(
                f"elite batches are 1:1: {self.public.batch} public examples, {self.elite.batch} elite ones"
            )

    @property
    def batch(self) -> int:
        """Examples of each half, of all processes together."""
        return self.public.batch

    def __call__(self, shard: int = 0, shards: int = 1) -> SideBySide:
        """The iterator of one process."""
        return SideBySide(self.public(shard, shards), self.elite(shard, shards), self.keys)


@dataclass(frozen=True)
class WithAppearance:
    """Batches of `data` with what a frozen model sees in their images: appearance, elite/appearance f32 [B A].

    look: images u8 [B h w 3] to f32 [B A], called in the process that trains, so that batches stay a function of
    (seed, position) whatever reads them.
    """

    data: Data | Any
    look: Callable[[np.ndarray], np.ndarray]

    @property
    def batch(self) -> int:
        """Examples of each half, of all processes together."""
        return self.data.batch

    def __call__(self, shard: int = 0, shards: int = 1) -> Looking:
        """The iterator of one process."""
        return Looking(self.data(shard, shards), self.look)


class Looking:
    """See WithAppearance; its state is that of the batches it looks at."""

    def __init__(self, batches: Batches, look: Callable[[np.ndarray], np.ndarray]) -> None:
        self._batches, self._look = batches, look

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        keys = [key for key in ("image", PREFIX + "image") if key in batch]
        return batch | {key.replace("image", "appearance"): self._look(batch[key]) for key in keys}

    def get_state(self) -> dict[str, Any]:
        """{"step": int}, for JSON."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on at batch state["step"]."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Ends workers and threads."""
        self._batches.close()


class SideBySide:
    """See WithElite. Both halves are at the same step, so the public one's state says it all."""

    def __init__(self, public: Batches, elite: Batches, keys: tuple[str, ...]) -> None:
        self._public, self._elite, self._keys = public, elite, keys

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        public, elite = next(self._public), next(self._elite)
        if missing := [key for key in self._keys if key not in elite]:
            raise DataError(f"the elite examples have no {', '.join(missing)}, only {', '.join(sorted(elite))}")
        return public | {PREFIX + key: elite[key] for key in self._keys}

    def get_state(self) -> dict[str, Any]:
        """{"step": int}, for JSON."""
        return self._public.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on at batch state["step"]."""
        self._public.set_state(state)
        self._elite.set_state(state)

    def close(self) -> None:
        """Ends workers and threads of both."""
        self._public.close()
        self._elite.close()


def pairs(
    public: Sequence[Named],
    experts: Sequence[Named],
    tokenizer: Any,
    size: int,
    loader: Mapping[str, Any],
    synonyms: bool,
) -> WithElite:
    """Training batches of public images, augmented, each with an expert's example; the experts are sampled with seed + 1.

    loader: the arguments of pipeline.mix. synonyms: take the captions of public images from synonyms of their category.
    """
    resize, words = Canvas(size), Tokenize(tokenizer)
    keys = ("image", "text", "status")
    learn = (CategoryCaption(by_synonym=synonyms), resize, Flip(), FlairAugment(), words, Select((*keys, "category")))
    study = (EliteReport(), resize, words, Select(keys))
    expert = mix(shares(experts, study), **{**loader, "seed": loader["seed"] + 1})
    return WithElite(mix(shares(public, learn), **loader), expert, keys)


def frames(words: Sequence[str], image_dir: str = "", **ban: Any) -> list[Named]:
    """CSV files of FLAIR's form, with ",modality=FFA,images=DIR" after those that need it; a folder is all of its CSV files.

    ban: fields of flair_frame. Raises DataError for a folder without CSV files and for an unknown option.
    """
    found = []
    for word in words:
        path, options = _options(word, "modality", "images")
        paths = sorted(Path(path).glob("*.csv")) if Path(path).is_dir() else [Path(path)]
        if not paths:
            raise DataError(f"{path}: expected CSV files, one for each data set")
        for one in paths:
            root = options.get("images") or image_dir or one.parent
            found.append(Named(one.stem, flair_frame(one, root, modality=options.get("modality", "CFP"), **ban)))
    return found


def elite(words: Sequence[str], image_dir: str = "", **defaults: str) -> list[Named]:
    """CSV files of MM-Retinal's forms, with ",modality=OCT,images=DIR,suffix=.jpg,language=zh" after those that need it."""
    found = []
    for word in words:
        path, options = _options(word, "modality", "images", "suffix", "language")
        root = options.pop("images", image_dir) or Path(path).parent
        found.append(Named(Path(path).stem, mm_retinal(path, root, **defaults | options)))
    return found


def id_counts(sources: Sequence[Any], tokenizer: Any) -> np.ndarray:
    """How often each token id occurs in the reports of the sources, i64 [V]; start, end and padding are not counted."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for source in sources:
        for row in range(len(source)):
            counts += np.bincount(tokenizer([source[row].report])[0], minlength=len(counts))
    counts[[tokenizer.start, tokenizer.end, tokenizer.pad]] = 0
    return counts


def _options(word: str, *known: str) -> tuple[str, dict[str, str]]:
    path, *rest = word.split(",")
    options = {name: value for name, _, value in (part.partition("=") for part in rest)}
    if unknown := set(options) - set(known):
        raise DataError(f"{word}: unknown {', '.join(sorted(unknown))}; expected of {', '.join(known)}")
    return path, options
