"""Subsets of a source, and splits by patient: hashed or stratified by class, and stored in a citable file.

A split file can be published: it holds salted digests instead of the patients' names. The salt is in a separate file,
split.salt, which stays private: with both files, one can test whether a name is among the patients. Checkpoints
are selected on the validation part; the test part is for the final evaluation."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.files.json_files import checked, read_json
from data_pipelines.records import DataError, Record, Source, text_hash
from data_pipelines.sources.columns import Indexed, Stored, read_once


def select(source: Source, rows: Iterable[int] | Callable[[Record], bool]) -> Subset:
    """Select rows by number, in the given order, or by a predicate on records (image files are not read)."""
    chosen = (row for row in range(len(source)) if rows(source[row])) if callable(rows) else rows
    array = np.fromiter(chosen, np.int64)
    if array.size and not -len(source) <= array.min() <= array.max() < len(source):
        raise DataError(f"rows {array.min()}..{array.max()} are not all within the {len(source)} of the source")
    return Subset(source, Stored(array))


class Selected:
    """Base of sources that have some of the rows of another source: `chosen` (Stored) holds their numbers."""

    source: Source
    chosen: Any

    @property
    def rows(self) -> np.ndarray:
        """Row numbers i64 in the other source."""
        return self.chosen.array

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the source; classes that are absent from the subset keep their number."""
        return tuple(getattr(self.source, "classes", ()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.rows[index])]


@dataclass(frozen=True)
class Subset(Selected):
    """Rows of another source."""

    source: Source
    chosen: Stored


@dataclass(frozen=True)
class Concatenated:
    """Concatenation of sources."""

    sources: tuple[Source, ...]
    classes: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def split_by(
    source: Source, key: str = "patient", fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, Part]:
    """Named parts that share no patient; by default {"train": .8, "val": .1, "test": .1}.

    Patients are ordered by a hash of their name and the seed, and divided where the rows reach each fraction. The result
    does not depend on the order of the rows, the machine or the number of workers. key: "patient", or another string
    column of a CSV ("text" keeps equal captions together). Nothing is read until a part is used.
    """
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1} if fractions is None else dict(fractions)
    if min(fractions.values(), default=0) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise DataError(f"the fractions of a split must be positive and add up to 1, got {fractions}")
    return {name: Part(source, key, tuple(fractions.items()), name, seed) for name in fractions}


@dataclass(frozen=True)
class Part(Selected, Indexed):
    """A part of a source, made by split_by."""

    source: Source
    key: str
    fractions: tuple[tuple[str, float], ...]
    name: str
    seed: int

    @read_once
    def chosen(self) -> Stored:
        hashes = hashes_of(self.source, self.key, self.seed)
        groups, member, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        # a group belongs to the part in which the middle of its rows falls
        middle = (np.cumsum(counts) - counts / 2) / len(hashes)
        edges = np.cumsum([share for _, share in self.fractions])[:-1]
        part = [name for name, _ in self.fractions].index(self.name)
        chosen = np.flatnonzero(np.searchsorted(edges, middle, "right")[member] == part)
        if not len(chosen):
            raise DataError(f"split {self.name!r} is empty: {len(groups)} different {self.key}s are too few")
        return Stored(chosen)


def hashes_of(source: Source, key: str, seed: int) -> np.ndarray:
    """Hashes u64 [rows] of the key, from the source's columns if it has them, else from its records."""
    own = getattr(source, "hashes", None)
    if own is not None:
        return own(key, seed)
    if key not in ("patient", "report"):
        raise DataError(f"{type(source).__name__} can be split by patient or report, not by {key!r}")
    words = (text_hash(str(getattr(source[row], key)).encode(), seed) for row in range(len(source)))
    return np.fromiter(words, np.uint64, len(source))


def patients_of(source: Source) -> list[str]:
    """The patient of each row: the source's own `patients()` if it has them, else from its records."""
    own = getattr(source, "patients", None)
    if own is not None:
        return list(own())
    if isinstance(source, Subset | Part):
        whole = patients_of(source.source)
        return [whole[row] for row in source.rows]
    return [source[row].patient for row in range(len(source))]


FORMAT = "fundax split 3"
_WITHOUT_SALT = "fundax split 2"  # {part: {source: digests}}
_OF_ONE_SOURCE = "fundax split 1"  # {part: digests}, without salt


@dataclass(frozen=True)
class StoredSplit:
    """A split file that was read. parts: part -> source -> digests of patients; salt: "" in files of earlier versions."""

    parts: Mapping[str, Mapping[str, Sequence[str]]]
    salt: str = ""
    file: str = "the split"


def stratified(
    patients: Sequence[str], labels: Any, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Row numbers i64 of each part of a split by patient, stratified by class as closely as patients allow.

    patients: [N] names; labels: i32 [N], or f32 [N K] of zeros and ones. A patient is assigned to the rarest class of
    its rows. Patients are ordered by a digest of name and seed, so the result does not depend on the order of the rows,
    the machine or the Python version. Default fractions: train .7, val .15, test .15. Raises DataError if a part would be
    empty.
    """
    fractions = {"train": 0.7, "val": 0.15, "test": 0.15} if fractions is None else dict(fractions)
    if min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"the fractions of a split must be positive and add up to 1, got {fractions}")
    names, member, strata = _strata(patients, labels, seed)
    part = np.empty(len(names), np.int64)
    carried = np.zeros(len(fractions))  # rounding error of each part, carried over from the previous classes
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        exact = carried + np.array(list(fractions.values())) * len(inside)
        counts = _rounded(exact, len(inside))
        carried = exact - counts
        part[inside] = np.repeat(np.arange(len(fractions)), counts)
    rows = {name: np.flatnonzero(part[member] == k) for k, name in enumerate(fractions)}
    if empty := [name for name, chosen in rows.items() if not len(chosen)]:
        raise DataError(f"split {empty[0]!r} is empty: {len(names)} patients are too few for {fractions}")
    return rows


def folds(patients: Sequence[str], labels: Any, count: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Row numbers i64 of each of `count` cross-validation folds, by patient and stratified as in `stratified`."""
    names, member, strata = _strata(patients, labels, seed)
    if len(names) < count:
        raise DataError(f"{count} folds of {len(names)} patients; expected at least one each")
    fold = np.empty(len(names), np.int64)
    order = np.concatenate([np.flatnonzero(strata == s) for s in np.unique(strata)])
    fold[order] = np.arange(len(order)) % count
    return [np.flatnonzero(fold[member] == k) for k in range(count)]


def split_record(parts: Mapping[str, Mapping[str, Sequence[str]]], salt: str = "", **notes: Any) -> dict[str, Any]:
    """A split as JSON for write_split: salted digests in place of patients, "salt", and a "digest" that the salt does not change.

    parts: part -> source -> the patient of each of its rows. salt: hex digits; "" draws one. notes: further metadata (seed,
    date). Raises DataError if a patient is in two parts of a source.
    """
    salt = salt or secrets.token_hex(16)
    plain, salted = (
        {
            p: {n: sorted({_digest(name, key) for name in rows}) for n, rows in named.items()}
            for p, named in parts.items()
        }
        for key in ("", salt)
    )
    counts = {
        part: {name: {"patients": len(salted[part][name]), "rows": len(rows)} for name, rows in named.items()}
        for part, named in parts.items()
    }
    _check_disjoint(salted, "a split")
    whole = hashlib.sha256((json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()).hexdigest()[:12]
    return {"format": FORMAT, "digest": whole, "counts": counts, "notes": notes, "parts": salted, "salt": salt}


def write_split(path: str | Path, record: Mapping[str, Any]) -> str:
    """Write a split_record as JSON and its salt to a second file; returns the digest of the JSON file, for citation."""
    path = Path(path)
    text = json.dumps({k: v for k, v in record.items() if k != "salt"}, indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in ((salt_file(path), record["salt"] + "\n"), (path, text)):
        temporary = file.with_name(f"{file.name}.tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, file)
    return hashlib.sha256(text.encode()).hexdigest()


def salt_file(path: str | Path) -> Path:
    """The path of the salt of a split file: split.salt in the folder of split.json."""
    return Path(path).with_suffix(".salt")


def read_split(path: str | Path) -> StoredSplit:
    """A file of write_split, with its salt. The source of a file of the first format is "".

    Raises DataError if the file is not a split file, if its salt is missing, or if a patient is in two parts of a source.
    """
    record = read_json(Path(path), dict[str, Any], "a split written by fundax")
    found, parts = record.get("format"), record.get("parts")
    if found not in (FORMAT, _WITHOUT_SALT, _OF_ONE_SOURCE):
        raise DataError(f"{path}: expected a split written by fundax, whose format is {FORMAT!r}, not {found!r}")
    checked(
        parts, dict[str, list[str]] if found == _OF_ONE_SOURCE else dict[str, dict[str, list[str]]], f"{path}: parts"
    )
    parts = {name: {"": digests} for name, digests in parts.items()} if found == _OF_ONE_SOURCE else parts
    _check_disjoint(parts, str(path))
    return StoredSplit(parts, _read_salt(path) if found == FORMAT else "", str(path))


def _read_salt(path: str | Path) -> str:
    try:
        salt = salt_file(path).read_text(encoding="utf-8").strip()
        bytes.fromhex(salt)
    except (OSError, ValueError):
        raise DataError(
            f"{path}: the digests in it are salted, and the salt is not in {salt_file(path)}; whoever made the split has it"
        ) from None
    return salt


def divided(stored: StoredSplit, source: Source, name: str = "") -> dict[str, Subset]:
    """The parts of a source by the digests of read_split; the order of the rows does not matter.

    name: the source's name in the file; a file of a single source fits any name. Raises DataError if the file lacks the
    source or one of its patients, or if a patient of the file is not in the source.
    """
    parts, file = stored.parts, stored.file
    names = {one for found in parts.values() for one in found}
    name = name if name in names or len(names) != 1 else next(iter(names))
    if name not in names:
        raise DataError(f"{file}: has no source {name!r}, only {', '.join(sorted(names))}")
    where = {digest: part for part, found in parts.items() for digest in found.get(name, ())}
    digests = [_digest(patient, stored.salt) for patient in patients_of(source)]
    if unknown := [row for row, digest in enumerate(digests) if digest not in where]:
        raise DataError(f"{file}: {len(unknown)} rows are of patients it does not have, first row {unknown[0] + 1}")
    if absent := len(where.keys() - set(digests)):
        raise DataError(f"{file}: {absent} of its {len(where)} patients are not in the source")
    member = np.array([where[digest] for digest in digests])
    return {part: select(source, np.flatnonzero(member == part)) for part, found in parts.items() if found.get(name)}


def split(
    source: Source, fractions: Mapping[str, float], *, seed: int = 0, labels: Callable[[Record], Any] | None = None
) -> dict[str, Source]:
    """Split a source into named parts that share no patient. All configs split data with this function.

    Args:
        fractions: name of each part and its share of the patients.
        labels: the label of a record to stratify by, a class or a vector of findings (`stratified`). Without it,
            patients are ordered by a hash, and nothing is read until a part is used (`split_by`).

    Raises DataError as stratified and split_by do.
    """
    if labels is None:
        return dict(split_by(source, "patient", fractions, seed))
    records = [source[row] for row in range(len(source))]
    strata = np.stack([labels(record) for record in records])
    chosen = stratified([record.patient for record in records], strata, fractions, seed)
    return {name: select(source, rows) for name, rows in chosen.items()}


def _strata(patients: Sequence[str], labels: Any, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Unique patients ordered by digest, the index of each row's patient, and each patient's stratum (rarest first)."""
    labels = np.asarray(labels)
    if len(labels) != len(patients):
        raise DataError(f"{len(patients)} patients and {len(labels)} labels; expected one each per row")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"row {int(np.argwhere(~np.isfinite(labels))[0][0]) + 1}: the label is NaN")
    names = sorted(set(patients), key=lambda name: _digest(f"{seed} {name}"))
    place = {name: k for k, name in enumerate(names)}
    member = np.array([place[name] for name in patients], np.int64)
    classes = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)[None]
    rarity = np.argsort(np.argsort(classes.sum(0), kind="stable"))  # 0 is the rarest class
    of_row = np.where(classes > 0, rarity[None], classes.shape[1]).min(
        1
    )  # rows without any class form their own stratum
    strata = np.full(len(names), classes.shape[1], np.int64)
    np.minimum.at(strata, member, of_row)
    return names, member, strata


def _rounded(exact: np.ndarray, total: int) -> np.ndarray:
    """Round `exact` to integers that add up to `total`, by the largest remainder method."""
    counts = np.maximum(np.floor(exact), 0).astype(np.int64)
    while (missing := total - counts.sum()) != 0:
        rest = exact - counts
        counts[rest.argmax() if missing > 0 else np.where(counts > 0, rest, np.inf).argmin()] += np.sign(missing)
    return counts


def _digest(name: str, salt: str = "") -> str:
    if not salt:
        return hashlib.sha256(str(name).encode()).hexdigest()[:20]
    return hashlib.blake2b(str(name).encode(), key=bytes.fromhex(salt)[:64], digest_size=10).hexdigest()


def _check_disjoint(parts: Mapping[str, Mapping[str, Sequence[str]]], where: str) -> None:
    seen: dict[tuple[str, str], str] = {}
    for part, found in parts.items():
        for name, digests in found.items():
            for digest in digests:
                if seen.setdefault((name, digest), part) != part:
                    raise DataError(
                        f"{where}: a patient of {name or 'it'} is in {seen[name, digest]!r} and in {part!r}"
                    )
