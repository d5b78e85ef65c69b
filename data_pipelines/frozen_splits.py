"""Splits that a paper can cite: by patient, stratified by class, written to a file and read back the same.

The file holds no patient's name, only digests: it can be published. Selection belongs to validation; the test part is
for the last number (several of the published pipelines select on the test set; nothing here does).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import DataError, Source
from data_pipelines.splits import Subset, select

FORMAT = "fundax split 1"


def stratified(
    patients: Sequence[str], labels: Any, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Rows i64 of each part, no patient in two; every class is divided by the fractions as nearly as patients allow.

    patients: [N] names; labels: i32 [N], or f32 [N K] of zeros and ones. A patient counts under the rarest class that
    any of its rows has. Order of the rows, machine and Python do not matter: patients are ordered by a digest of name
    and seed. Default fractions: train .7, val .15, test .15. Raises DataError for a part that would stay empty.
    """
    fractions = {"train": 0.7, "val": 0.15, "test": 0.15} if fractions is None else dict(fractions)
    if min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"the fractions of a split must be positive and add up to 1, got {fractions}")
    names, member, strata = _strata(patients, labels, seed)
    part = np.empty(len(names), np.int64)
    carried = np.zeros(len(fractions))  # what rounding owes each part from the classes before
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
    """Rows i64 of each of `count` folds, by patient and stratified as in `stratified`: train on all but one."""
    names, member, strata = _strata(patients, labels, seed)
    if len(names) < count:
        raise DataError(f"{count} folds of {len(names)} patients; expected at least one each")
    fold = np.empty(len(names), np.int64)
    order = np.concatenate([np.flatnonzero(strata == s) for s in np.unique(strata)])
    fold[order] = np.arange(len(order)) % count
    return [np.flatnonzero(fold[member] == k) for k in range(count)]


def write_split(path: str | Path, patients: Sequence[str], parts: Mapping[str, Any], **said: Any) -> str:
    """Parts (name -> rows) as JSON, by digests of patients; returns the file's own digest, for the paper to cite.

    said: what else a reader should know (seed, source, date). Raises DataError where a patient is in two parts.
    """
    digests = np.array([_digest(name) for name in patients])
    named = {name: sorted({str(d) for d in digests[np.asarray(rows, np.int64)]}) for name, rows in parts.items()}
    _check_disjoint(named, str(path))
    counts = {name: {"patients": len(named[name]), "rows": len(rows)} for name, rows in parts.items()}
    told = {"format": FORMAT, "rows": len(digests), "counts": counts, "said": said, "parts": named}
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_split(path: str | Path, source: Source, patients: Sequence[str] | None = None) -> dict[str, Subset]:
    """The parts of a source by a file of write_split, whatever the order of its rows.

    patients: names by row; read from the records if not given. Raises DataError for another file, a patient the file
    does not know, or one it knows that the source lacks.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = told["parts"] if told["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a split written by fundax ({error})") from None
    if parts is None:
        raise DataError(f"{path}: format {told['format']!r}; expected {FORMAT!r}")
    _check_disjoint(parts, str(path))
    names = [source[row].patient for row in range(len(source))] if patients is None else patients
    where = {digest: name for name, digests in parts.items() for digest in digests}
    digests = [_digest(name) for name in names]
    if unknown := [row for row, digest in enumerate(digests) if digest not in where]:
        raise DataError(f"{path}: {len(unknown)} rows are of patients it does not have, first row {unknown[0] + 1}")
    if absent := len(where.keys() - set(digests)):
        raise DataError(f"{path}: {absent} of its {len(where)} patients are not in the source")
    member = np.array([where[digest] for digest in digests])
    return {name: select(source, np.flatnonzero(member == name)) for name in parts}


def parts_of(
    source: Source, path: str, fractions: Mapping[str, float], seed: int = 0, **said: Any
) -> dict[str, Subset]:
    """Parts of a source by patient: those of the file at `path`, which is written at the first use; "" writes none.

    Raises DataError for a file that lacks a part of `fractions`, and as read_split and stratified.
    """
    names = [source[row].patient for row in range(len(source))]
    if path and Path(path).is_file():
        found = read_split(path, source, names)
        if missing := [name for name in fractions if name not in found]:
            raise DataError(f"{path} has no part {missing[0]!r}, only {', '.join(found)}")
        return found
    rows = stratified(names, np.zeros(len(names), np.int64), fractions, seed)
    if path:
        write_split(path, names, rows, seed=seed, **said)
    return {name: select(source, chosen) for name, chosen in rows.items()}


def _strata(patients: Sequence[str], labels: Any, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Different patients ordered by digest, each row's place among them, each patient's stratum (rarest first)."""
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
    of_row = np.where(classes > 0, rarity[None], classes.shape[1]).min(1)  # none of them: a stratum of its own
    strata = np.full(len(names), classes.shape[1], np.int64)
    np.minimum.at(strata, member, of_row)
    return names, member, strata


def _rounded(exact: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `exact` that add up to `total`: largest remainders get one more."""
    counts = np.maximum(np.floor(exact), 0).astype(np.int64)
    while (missing := total - counts.sum()) != 0:
        rest = exact - counts
        counts[rest.argmax() if missing > 0 else np.where(counts > 0, rest, np.inf).argmin()] += np.sign(missing)
    return counts


def _digest(name: str) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()[:20]


def _check_disjoint(parts: Mapping[str, Sequence[str]], where: str) -> None:
    seen: dict[str, str] = {}
    for name, digests in parts.items():
        for digest in digests:
            if seen.setdefault(digest, name) != name:
                raise DataError(f"{where}: a patient is in {seen[digest]!r} and in {name!r}")
