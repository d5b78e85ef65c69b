"""The parts train, val and test of a source: those that the data have, those of a split file, or cut by patient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.folders import PARTS as SPELLINGS
from data_pipelines.sources.splits import Concatenated, StoredSplit, divided, folds, patients_of, select, split

PARTS = tuple(SPELLINGS)
_log = logging.getLogger(__name__)


def part_of(word: str) -> str:
    """The part that a folder or a cell names: valid, validation and dev are "val"; "" if it is none."""
    return next((part for part, same in SPELLINGS.items() if word.strip().casefold() in same), "")


def joint(sources: Sequence[Any]) -> Source:
    """The rows of several sources with the same classes, in order."""
    return sources[0] if len(sources) == 1 else Concatenated(tuple(sources), tuple(getattr(sources[0], "classes", ())))


def column_parts(source: Source, cells: Sequence[str], called: str) -> dict[str, Source]:
    """The parts of a table by the cells of its column `split`; {} (and one line) if they name no parts.

    Raises DataError naming a row whose cell is empty or names no part, and for a patient in two parts.
    """
    members = np.array([part_of(cell) for cell in cells])
    if not (members != "").any():
        seen = ", ".join(sorted(set(cells))[:5])
        _log.warning("%s: its column split has %s, which are not train, val and test; it is not used", called, seen)
        return {}
    if (members == "").any():
        row = int(np.flatnonzero(members == "")[0])
        place = source[row].where or f"{called} row {row + 1}"
        raise DataError(f"{place}: split is {cells[row]!r}; expected train, val or test")
    patients, seen_in = patients_of(source), {}
    for patient, part in zip(patients, members.tolist(), strict=True):
        if seen_in.setdefault(patient, part) != part:
            raise DataError(
                f"{called}: patient {patient} is in the parts {seen_in[patient]} and {part} of its column split"
            )
    return {part: select(source, np.flatnonzero(members == part)) for part in PARTS if (members == part).any()}


def divide(
    source: Source,
    given: Mapping[str, Source],
    shares: Mapping[str, float],
    *,
    called: str,
    stored: StoredSplit | None = None,
    seed: int = 0,
    labels: Callable[[Record], Any] | None = None,
) -> dict[str, Source]:
    """The parts of a source: those that are `given`, and those that are missing from `shares` cut from train.

    Args:
        given: parts that the data have; {} if they have none.
        shares: name of each wanted part and its share of the patients.
        called: name of the source in messages and in the split.
        stored: a split file (splits.read_split), by which patients are divided instead of by `seed`.
        labels: label of a record to stratify by, see splits.split.

    Raises DataError if parts are given and train is not one of them.
    """
    if given and "train" not in given:
        raise DataError(f"{called}: has the parts {', '.join(given)}; expected also train")
    missing = [name for name in shares if name not in given]
    if not missing:
        return dict(given)
    rest = {name: share for name, share in shares.items() if name == "train" or name in missing}
    whole = given["train"] if given else source
    if stored is not None:
        kept = {part: found for part, found in stored.parts.items() if part in rest or not given}
        if absent := [name for name in rest if name not in stored.parts]:
            raise DataError(f"{stored.file}: has no part {absent[0]!r}, only {', '.join(stored.parts)}")
        cut: Mapping[str, Source] = divided(replace(stored, parts=kept), whole, called)
    elif len(rest) == 1:
        cut = dict.fromkeys(rest, whole)
    else:
        cut = split(whole, {name: share / sum(rest.values()) for name, share in rest.items()}, seed=seed, labels=labels)
    parts = {**given, **cut}
    if given:
        sizes = ", ".join(f"{name} {len(parts[name])}" for name in PARTS if name in parts)
        verb = "is" if len(missing) == 1 else "are"
        _log.warning("%s: %s %s cut from train; rows: %s", called, " and ".join(missing), verb, sizes)
    return {name: parts[name] for name in (*PARTS, *parts) if name in parts}


def fold_parts(
    source: Source,
    fold: str,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    labels: Callable[[Record], Any] | None = None,
) -> dict[str, Source]:
    """The parts of a source for cross-validation: fold K of N ("K/N") is test, the others are divided by `shares`.

    The test parts of different folds have no patient in common if the seed is the same.

    Args:
        shares: name and share of each part; the share of test is ignored.
        labels: label of a record to stratify by, see splits.split.

    Raises DataError if `fold` is not K/N, or if there are fewer patients than folds.
    """
    number, slash, count = fold.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) and int(count) > 1):
        raise DataError(f"--fold {fold!r}: expected K/N, such as 1/5 for the first of five folds")
    records = [source[row] for row in range(len(source))]
    strata = np.stack([labels(record) for record in records]) if labels else np.zeros(len(records), np.int32)
    held = folds([record.patient for record in records], strata, int(count), seed)[int(number) - 1]
    rest = select(source, np.setdiff1d(np.arange(len(records)), held))
    wanted = {name: share for name, share in shares.items() if name != "test"}
    total = sum(wanted.values())
    cut = split(rest, {name: share / total for name, share in wanted.items()}, seed=seed, labels=labels)
    return {**(cut if len(wanted) > 1 else dict.fromkeys(wanted, rest)), "test": select(source, held)}
