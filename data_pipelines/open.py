"""The data of a run: sources, opened from words of the command line (words.py), and their parts train, val and test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.records import MODALITIES, DataError, Record, Source, modality_name
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.each_view import EachView
from data_pipelines.sources.matching import Matched, names_of
from data_pipelines.sources.modality_folders import Moments
from data_pipelines.sources.modality_stats import Stats, as_json, declared_names, moments_of, read_stats
from data_pipelines.sources.parts import PARTS, divide, fold_parts, joint
from data_pipelines.sources.splits import patients_of, read_split, split_record, write_split
from data_pipelines.synthetic.sources import Eyes, Patients
from data_pipelines.words import DATA_DIR, Named, digest, named, split_column, value_names


@dataclass(frozen=True)
class Sources:
    """The images to train and evaluate on.

    Args:
        data: Sources to train on: CSV files, folders, tfds:NAME, array_record:FOLDER, synthetic; options follow commas.
        val: Sources to evaluate on; without them, some patients of --data are held out.
        split: JSON file with the part of each patient; it is written at the first use and read afterwards.
        fractions: Shares of the patients in the parts train, val and test.
        part: Part to evaluate on: val, test or all (every row of --data, not split); empty takes val.
        fold: K/N makes the K-th of N folds of the patients the part test, and divides the others by --fractions.
        image_dir: Folder that the image paths of a CSV start from; empty takes the folder of the CSV.
        data_dir: Folder of the data sets that `launch.py data build` wrote.
        patients: Number of synthetic patients to train on without --data.
        modalities: Modalities to train on if a source has several; synthetic eyes have CFP, UWF, FFA and OCT.
        modality_file: JSON file of `launch.py data stats`: mean and deviation of modalities, which may have new names.
        each_view: Take every view of a visit as an image of its own; otherwise methods of single images draw one in each step.
    """

    data: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    split: str = ""
    fractions: tuple[float, ...] = (0.9, 0.1)
    part: Literal["", "val", "test", "all"] = ""
    fold: str = ""
    image_dir: str = ""
    data_dir: str = DATA_DIR
    patients: int = 3000
    modalities: tuple[str, ...] = ("CFP",)
    modality_file: str = ""
    each_view: bool = False

    @functools.cached_property
    def measured(self) -> dict[str, Stats]:
        """Mean and deviation of modalities, by name, in --modality-file; kept in `used`. Not an argument."""
        found = read_stats(self.modality_file) if self.modality_file else {}
        if found:
            self.used["modalities"] = as_json(found)
        return found

    @property
    def known(self) -> tuple[str, ...]:
        """The modalities that `modality` of a batch indexes: MODALITIES and those that --modality-file declares."""
        return (*MODALITIES, *declared_names(self.measured))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of --modalities as they stand in `known`. Raises DataError for an unknown one."""
        return tuple(modality_name(name, declared_names(self.measured)) for name in self.modalities)

    def moments(self) -> tuple[Moments, Moments]:
        """Mean and deviation of --modalities, one row each. Raises DataError for an unknown modality."""
        return moments_of(self.modalities, self.measured)

    @functools.cached_property
    def used(self) -> dict[str, Any]:
        """A JSON record of the data read so far, which a run stores. Not an argument.

        "sources": a list of {"name", "word", "rows", "digest"}. "classes": the names that labels were matched to.
        "split": the content of a split file (splits.split_record), which `split` can read again.
        """
        return {"sources": []}

    def eyes(self, seed: int, size: int, **fields: Any) -> Eyes:
        """The synthetic eyes to train on, with `size` pixels; `fields` are further fields of Eyes."""
        return Eyes(self.patients, seed, modalities=self.modalities, size=size, **fields)

    def open(self, words: Sequence[str], **columns: str) -> list[Named]:
        """Open the sources of `words`; `columns` are default options of a CSV."""
        own = {"images": self.image_dir} if self.image_dir else {}
        own |= {"declare": "+".join(names)} if (names := declared_names(self.measured)) else {}
        return [named(word, columns | own, self.data_dir) for word in words]

    def noted(self, sources: Sequence[Named]) -> list[Named]:
        """The sources under names that differ, entered into `used`."""
        found: list[Named] = []
        for one in sources:
            taken = {other.name for other in found}
            names = (one.name if k == 1 else f"{one.name}_{k}" for k in range(1, len(taken) + 2))
            found.append(replace(one, name=next(name for name in names if name not in taken)))
            row = {"name": found[-1].name, "word": one.word, "rows": len(one.source), "digest": digest(one)}
            if row not in self.used["sources"]:
                self.used["sources"].append(row)
        return found

    def parts(
        self,
        synthetic: Mapping[str, Source],
        seed: int,
        labels: Callable[[Record], Any] | None = None,
        names: Sequence[str] = PARTS,
        opener: Callable[[Sequence[str]], list[Named]] | None = None,
        also: Sequence[str] = (),
        **columns: str,
    ) -> dict[str, list[Named]]:
        """The sources of each part. Parts share no patient.

        A part is what --val or --split names, what the data have (folders train, valid and test, or a column `split`), or
        is cut from the patients by `fractions`, of which there is one for each of `names`. With --part all, every part is
        all of --data.

        Args:
            synthetic: the parts to use without --data (synthetic_parts).
            labels: the label of a record to stratify by (sources.splits.split).
            opener: opens the sources of words; None is `open`.
            also: words of sources in addition to --data.
            columns: default options of a CSV.

        Raises DataError for a --part that the data do not have, and as `named` and `divide` do.
        """
        opener = opener or functools.partial(self.open, **columns)
        if not self.data and not also:
            whole = {"all": joint(list(synthetic.values()))} if self.part == "all" else {}
            parts = {name: [Named("synthetic", source)] for name, source in (dict(synthetic) | whole).items()}
            return self._with_part(parts)
        opened, shares = self.noted(opener((*self.data, *also))), self._shares(names)
        if self.part == "all":
            return dict.fromkeys((*shares, "val", "all"), opened)
        if self.fold and (self.split or self.val):
            raise DataError(f"--fold {self.fold}: the folds are the parts; leave out --split and --val")
        stored = read_split(self.split) if self.split and Path(self.split).is_file() else None
        parts, patients = {name: [] for name in shares}, {}
        for one in opened:
            for name, source in self._divided(one, shares, stored, seed, labels).items():
                parts.setdefault(name, []).append(replace(one, source=source))
                if not isinstance(source, Eyes):
                    prefix = f"{name}/" if one.given.get(name) is source else ""  # in folders, names repeat
                    patients.setdefault(name, {})[one.name] = [prefix + patient for patient in patients_of(source)]
        if patients:
            self.used["split"] = split_record(patients, stored.salt if stored else "", seed=seed)
            if self.split and stored is None:
                write_split(self.split, self.used["split"])
        return self._with_part(parts | ({"val": self.noted(opener(self.val))} if self.val else {}))

    def scored(self, parts: Mapping[str, list[Named]]) -> list[Named]:
        """The sources of the part to evaluate on; [] if nothing is held out."""
        return parts.get(self.part or "val", [])

    def held_out(self, parts: Mapping[str, list[Named]]) -> list[Named]:
        """The parts of `scored`. Raises DataError if nothing is held out."""
        if not self.scored(parts):
            given = f"--fractions {' '.join(map(str, self.fractions))}"
            raise DataError(f"{given}: no part is held out to evaluate on; give a second share to val, or --val")
        return self.scored(parts)

    def _with_part(self, parts: dict[str, list[Named]]) -> dict[str, list[Named]]:
        if self.each_view:
            whole = parts.items()
            parts = {name: [replace(one, source=EachView(one.source)) for one in some] for name, some in whole}
        if self.part and not parts.get(self.part):
            raise DataError(f"--part {self.part}: the data have the parts {', '.join(parts)}")
        return parts

    def _shares(self, names: Sequence[str]) -> dict[str, float]:
        if not 1 <= len(self.fractions) <= len(names):
            listed = ", ".join(names)
            raise DataError(f"--fractions {self.fractions}: expected at most {len(names)} numbers, for {listed}")
        shares = dict(zip(names, self.fractions, strict=False))
        if self.val:
            shares.pop("val", None)
            shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        return shares

    def _divided(
        self, one: Named, shares: Mapping[str, float], stored: Any, seed: int, labels: Any
    ) -> Mapping[str, Source]:
        if self.fold:
            return fold_parts(one.source, self.fold, shares, seed=seed, labels=labels)
        if isinstance(one.source, Eyes):
            few = max(16, len(one.source) // 50)
            return {name: one.source if name == "train" else one.source.split(_TASKLESS[name], few) for name in shares}
        given = one.given or ({} if stored is not None else split_column(one))
        return divide(one.source, given, shares, called=one.name, stored=stored, seed=seed, labels=labels)


@dataclass(frozen=True)
class Data(Sources):
    """The images to train and evaluate on, and what is read of them.

    Args:
        classes: Names of the classes (findings, values, structures) in order, or CODE:NAME; empty takes those of the data.
        image_column: Column of a CSV with the image paths; empty takes "image".
        text_column: Column of a CSV with the texts; empty takes "text".
        separator: Separator of the columns of a CSV; "tab" for a tab.
    """

    classes: tuple[str, ...] = ()
    image_column: str = ""
    text_column: str = ""
    separator: str = ","

    def open(self, words: Sequence[str], **columns: str) -> list[Named]:
        """Open the sources of `words`; `columns` are default options of a CSV."""
        own = {"image": self.image_column, "text": self.text_column, "sep": self.separator}
        return super().open(words, **columns | {k: v for k, v in own.items() if v})

    def matched(
        self, sources: Sequence[Named], *, strict: bool, target: str = "label", names: Sequence[str] = ()
    ) -> list[Named]:
        """The sources with labels (or the given target) numbered by `names`, else by `classes`; as they are without both.

        strict: whether a class that is not among them is an error (for training), or its rows are left out.
        """
        names = tuple(names) or self.classes
        if not names:
            return list(sources)
        self.used["classes"] = list(names_of(names))
        return [self._matched(one, strict, target, names) for one in sources]

    def _matched(self, one: Named, strict: bool, target: str, names: tuple[str, ...]) -> Named:
        own = value_names(one) if target == "value" else tuple(getattr(one.source, "classes", ()))
        first = one.source[0].targets
        if own == names or target not in first:
            return one
        if target == "value" and not own:  # of a source that cannot name them
            if len(np.ravel(first[target])) != len(names_of(names)):
                count = len(np.ravel(first[target]))
                raise DataError(f"{one.name}: has {count} values, expected {len(names)}: {', '.join(names)}")
            return one
        strictly = strict and self.part != "all" and one.options.get("others") != "drop"
        match = Matched(one.source, names, one.name, target, own if target == "value" else (), strictly)
        return replace(one, source=match)


_TASKLESS: Mapping[str, Any] = {"train": "train", "val": "val", "test": "test"}
_OF_TASK: Mapping[str, Any] = {"train": "task_train", "val": "task_val", "test": "test"}


def synthetic_parts(
    source: Eyes | Patients, *, keep: bool, val: int, test: int = 0, task: bool = False
) -> dict[str, Source]:
    """Parts of synthetic patients: `source` for training, and `val` and `test` other patients; 0 omits the test part.

    keep: keep the training images in memory (without worker processes). task: use patients that no pretraining has seen.
    """
    names = _OF_TASK if task else _TASKLESS
    counts = {"train": source.n, "val": val} | ({"test": test} if test else {})
    made = {name: source.split(names[name], n) for name, n in counts.items()}
    return {name: CachedSource(one) if keep or name != "train" else one for name, one in made.items()}


def joined(sources: Sequence[Named]) -> Source:
    """Concatenate sources with the same classes. Raises DataError if the classes differ."""
    classes = [tuple(getattr(one.source, "classes", ())) for one in sources]
    for one, own in zip(sources, classes, strict=True):
        if own != classes[0]:
            listed = " and ".join(f"{o.name} ({', '.join(c)})" for o, c in ((sources[0], classes[0]), (one, own)))
            raise DataError(f"{listed} have different classes; name the common ones: --classes A B C")
    return joint([one.source for one in sources])
