"""KeepFIT's data: CSV files of FLAIR and MM-Retinal, and batches that pair public images with expert examples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.open import Sources
from data_pipelines.pipeline import mix
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.columns import Indexed, read_once
from data_pipelines.sources.flair import flair_frame, mm_retinal
from data_pipelines.sources.tables import SUFFIXES
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.tasks.image_text import shares
from data_pipelines.transforms.flair import Canvas, CategoryCaption, Diagnosed, EliteReport, FlairAugment
from data_pipelines.transforms.steps import Flip, Select, Tokenize
from data_pipelines.words import Named, word_of

PREFIX = "elite/"
_log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """The iterator that pipeline.Data returns for one process."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Data(Protocol):
    """The interface of an infinite pipeline.Data."""

    @property
    def batch(self) -> int: ...
    def __call__(self, shard: int = 0, shards: int = 1) -> Batches: ...


@dataclass(frozen=True)
class WithElite:
    """Pair each batch of `public` with a batch of `elite`, stored under elite/...; both are shuffled independently.

    `keys` are the keys of the elite examples to include. Raises DataError if the batch sizes differ.
    """

    public: Data | Any
    elite: Data | Any
    keys: tuple[str, ...] = ("image", "text")

    def __post_init__(self) -> None:
        if self.public.batch != self.elite.batch:
            raise DataError(
                f"elite batches are 1:1, got {self.public.batch} public examples and {self.elite.batch} elite examples"
            )

    @property
    def batch(self) -> int:
        """Number of public examples in a global batch; there are as many elite examples."""
        return self.public.batch

    def __call__(self, shard: int = 0, shards: int = 1) -> SideBySide:
        """The iterator of one process."""
        return SideBySide(self.public(shard, shards), self.elite(shard, shards), self.keys)


@dataclass(frozen=True)
class WithAppearance:
    """Add appearance vectors of a frozen model to each batch: appearance and elite/appearance, f32 [B A].

    `look` maps images u8 [B h w 3] to vectors f32 [B A]. It is called in the training process, so that batches do not
    depend on the workers that read them.
    """

    data: Data | Any
    look: Callable[[np.ndarray], np.ndarray]

    @property
    def batch(self) -> int:
        """Number of public examples in a global batch; there are as many elite examples."""
        return self.data.batch

    def __call__(self, shard: int = 0, shards: int = 1) -> Looking:
        """The iterator of one process."""
        return Looking(self.data(shard, shards), self.look)


class Looking:
    """The iterator of WithAppearance; its state is the state of the underlying batches."""

    def __init__(self, batches: Batches, look: Callable[[np.ndarray], np.ndarray]) -> None:
        self._batches, self._look = batches, look

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        keys = [key for key in ("image", PREFIX + "image") if key in batch]
        return batch | {key.replace("image", "appearance"): self._look(batch[key]) for key in keys}

    def get_state(self) -> dict[str, Any]:
        """The state as {"step": int}, which can be stored as JSON."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at batch state["step"]."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stop workers and threads."""
        self._batches.close()


class SideBySide:
    """The iterator of WithElite. Both halves are at the same step, so the state of the public half is sufficient."""

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
        """The state as {"step": int}, which can be stored as JSON."""
        return self._public.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at batch state["step"]."""
        self._public.set_state(state)
        self._elite.set_state(state)

    def close(self) -> None:
        """Stop workers and threads of both halves."""
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
    """Training batches of augmented public images, paired with expert examples, which are sampled with seed + 1.

    `loader` are the arguments of pipeline.mix. With `synonyms`, categories of public images are also recognised by their
    synonyms.
    """
    resize, words = Canvas(size), Tokenize(tokenizer)
    keys = ("image", "text", "status")
    public_keys = Select((*keys, "category", "patient"))
    learn = (CategoryCaption(by_synonym=synonyms), resize, Flip(), FlairAugment(), words, public_keys)
    study = (EliteReport(), resize, words, Select(keys))
    expert = mix(shares(experts, study), **{**loader, "seed": loader["seed"] + 1})
    return WithElite(mix(shares(public, learn), **loader), expert, keys)


def frames(words: Sequence[str], image_dir: str = "", **ban: Any) -> list[Named]:
    """Sources from CSV files in FLAIR's format; a folder stands for all of its CSV files.

    `words` are paths, optionally followed by options: ",modality=FFA,images=DIR". `ban` are arguments of flair_frame.
    Raises DataError for a folder without CSV files and for an unknown option.
    """
    out = []
    for word in words:
        path, options = _options(word, "modality", "images", "name", "sep", "encoding")
        listed = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
        paths = [file for file in listed if file.suffix.lower() in set(SUFFIXES) - {".txt"} or file == Path(path)]
        if not paths:
            raise DataError(f"{path}: expected CSV files, one for each data set")
        reading = {name: options[name] for name in ("modality", "sep", "encoding") if name in options}
        for file in paths:
            root = options.get("images") or image_dir or file.parent
            frame = flair_frame(file, root, **reading, **ban)
            out.append(Named(options.get("name", file.stem), frame, None, word))
    return out


def elite(words: Sequence[str], image_dir: str = "", **defaults: str) -> list[Named]:
    """Sources from CSV files in MM-Retinal's formats.

    `words` are paths, optionally followed by options: ",modality=OCT,images=DIR,suffix=.jpg,language=zh".
    """
    out = []
    for word in words:
        path, options = _options(word, "modality", "images", "suffix", "language", "name", "sep", "encoding")
        name, root = options.pop("name", Path(path).stem), options.pop("images", image_dir) or Path(path).parent
        out.append(Named(name, mm_retinal(path, root, **defaults | options), None, word, {"elite": "yes"}))
    return out


def opened(public: Sequence[str], image_dir: str = "", **ban: Any) -> Callable[[Sequence[str]], list[Named]]:
    """Make a function that opens the words in `public` as CSV files of FLAIR, and all others as expert reports."""

    def opener(words: Sequence[str]) -> list[Named]:
        out: list[Named] = []
        for word in words:
            out += frames([word], image_dir, **ban) if word in public else elite([word], image_dir)
        return out

    return opener


def sources(
    data: Sources, elite: Sequence[str], eyes: Eyes, seed: int, keep: bool
) -> tuple[list[Named], list[Named], dict[str, list[Named]]]:
    """The public sources and the expert reports for training, and the parts for evaluation by name.

    Missing sources are replaced by synthetic ones: photographs and reports of `eyes`, and other eyes of each modality for
    evaluation. With `keep`, synthetic images are kept in memory.
    """
    drawn = [eyes, eyes.split("task_train", max(eyes.n // 20, 4))]
    public, experts = ([Named("synthetic", Diagnosed(CachedSource(source) if keep else source))] for source in drawn)
    if not data.data and not elite:
        unseen = eyes.split("val", min(max(14, eyes.n // 10), 280))
        each = {name: CachedSource(replace(unseen, modalities=(name,))) for name in data.modalities}
        return public, experts, {"val": [Named(name, source) for name, source in each.items()]}
    parts = data.parts({}, seed, opener=opened(data.data + data.val, data.image_dir), also=elite)
    known = [[named for named in parts["train"] if ("elite" in named.options) == expert] for expert in (False, True)]
    return known[0] or public, known[1] or experts, {name: by_category(part) for name, part in parts.items()}


@dataclass(frozen=True)
class ByCategory(Indexed):
    """The rows of a FLAIR source that have exactly one category, which becomes the label."""

    source: Source

    @read_once
    def index(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The sorted categories, and the rows i64 with exactly one category."""
        categories = [tuple(dict.fromkeys(self.source[row].findings)) for row in range(len(self.source))]
        rows = [row for row, names in enumerate(categories) if len(names) == 1]
        return tuple(sorted({categories[row][0] for row in rows})), np.array(rows, np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """The categories, sorted."""
        return self.index[0]

    def __len__(self) -> int:
        return len(self.index[1])

    def __getitem__(self, index: int) -> Record:
        record = self.source[int(self.index[1][index])]
        return replace(record, targets={"label": np.int32(self.classes.index(record.findings[0]))})


def by_category(sources: Sequence[Named]) -> list[Named]:
    """Convert FLAIR sources to labelled sources with the categories as classes; other sources are unchanged.

    Rows with no or several categories are not scored. A source with fewer than two classes is omitted.
    """
    out = []
    for named in sources:
        if "elite" in named.options or getattr(named.source, "classes", ()):
            out.append(named)
            continue
        source = ByCategory(named.source)
        if len(source) < len(named.source):
            message = "%s: %d of %d rows have several categories or none, and are not scored"
            _log.warning(message, named.name, len(named.source) - len(source), len(named.source))
        if len(source.classes) > 1:
            out.append(replace(named, source=source))
    return out


def id_counts(sources: Sequence[Any], tokenizer: Any) -> np.ndarray:
    """Counts i64 [V] of each token id in the reports of the sources, without start, end and padding tokens."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for source in sources:
        for row in range(len(source)):
            counts += np.bincount(tokenizer([source[row].report])[0], minlength=len(counts))
    counts[[tokenizer.start, tokenizer.end, tokenizer.pad]] = 0
    return counts


def _options(word: str, *known: str) -> tuple[str, dict[str, str]]:
    path, options = word_of(word)
    if unknown := set(options) - set(known):
        raise DataError(f"{word}: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    return path, options
