"""What a run's evaluations left, read for a report: predictions beside the truth, by kind, and what else there is."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fundax.metrics.weighted import class_aucs
from fundax.types import UserError

MEASURES = ("dice", "iou", "hd95", "sensitivity", "specificity", "error", "distance", "auc_pixels")


GROUPS = ("sex", "age", "device", "modality", "eye", "site", "camera", "ethnicity")  # columns that make subgroups


KINDS = ("classes", "labels", "values", "measures")


class Cases(NamedTuple):
    """Thumbnails u8 [T h w 3], the rows [T] they are of, what each is [T] ("" if not said), overlays by name [T h w 3]."""

    pictures: np.ndarray
    rows: np.ndarray
    kinds: np.ndarray
    overlays: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Judged:
    """One evaluation of one run, of one kind.

    classes: truth i64 [N], scores f64 [N K] probabilities, names the K classes. labels: truth f64 [N K] of 0, 1, NaN.
    Both are ranked for AUC and AP by `ranks` f64 [N K]: what the evaluation itself ranked by, probabilities or logits.
    values: truth and scores f64 [N K] in the units of the data. measures: scores f64 [N K], a number per case and name
    (Dice, an error), no truth.
    """

    run: str
    eval: str
    kind: str
    names: tuple[str, ...]
    scores: np.ndarray
    truth: np.ndarray | None
    patients: np.ndarray | None = None
    index: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    cases: Cases | None = None
    bands: Mapping[str, np.ndarray] = field(default_factory=dict)  # of a forecast: numbers by horizon, each [bands]
    ranked: np.ndarray | None = None

    @property
    def ranks(self) -> np.ndarray:
        """f64 [N K]: the scores, unless the evaluation ranked by others."""
        return self.scores if self.ranked is None else self.ranked

    @property
    def rows(self) -> int:
        """N."""
        return len(self.scores)

    def fingerprint(self) -> str:
        """The first twelve digits of a SHA-256 of the truth, index and patients: two runs with one were given the same rows."""
        state = hashlib.sha256()
        for array in (self.truth, self.index, self.patients):
            if array is not None:
                plain = array.astype("U") if array.dtype.kind in "OU" else array
                state.update(f"{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes())
        return state.hexdigest()[:12]

    def part(self, rows: np.ndarray) -> Judged:
        """The chosen rows, without cases."""
        names = ("truth", "index", "patients", "ranked")
        kept = {name: None if (a := getattr(self, name)) is None else a[rows] for name in names}
        return replace(self, scores=self.scores[rows], columns={}, cases=None, bands={}, **kept)


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory as a report needs it. other: evaluations of another shape, arrays by name."""

    name: str
    path: Path
    config: Mapping[str, Any]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    judged: tuple[Judged, ...]
    other: Mapping[str, Mapping[str, np.ndarray]]
    digests: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_run(path: str | Path, name: str = "", words: Mapping[str, tuple[str, ...]] | None = None) -> Run:
    """A run directory: config.json, metrics.jsonl, evals/*.npz. words: column -> names of its numbers (modality, eye).

    Raises UserError for a folder that is no run, or one without evaluations.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run")
    files = sorted((path / "evals").glob("[!.]*.npz"))
    config = _json(path / "config.json")
    if not config and not files:
        raise UserError(f"{path} is no run: it has no config.json")
    if not files:
        raise UserError(f"{path} has no evaluations (evals/*.npz); launch.py eval {path} makes them")
    judged, other, notes, name = [], {}, [], name or path.resolve().name
    for file in files:
        arrays = _arrays(file)
        found, why = _judged(name, file.stem, arrays, words or {})
        judged += found
        if why:
            notes.append(f"{file.name}: {why}")
        if not found:
            other[file.stem] = arrays
    told = [path / "config.json", path / "preprocessing.json", *files]
    digests = {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in told if f.is_file()}
    return Run(name, path, config, read_curves(path / "metrics.jsonl"), tuple(judged), other, digests, tuple(notes))


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name to steps and finite values of a metrics.jsonl; a step run twice counts once, the later time."""
    found: dict[str, dict[float, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):  # a run that is being written to, or was killed
                break
            raise UserError(f"{path} line {number}: {line[:60]!r}; expected JSON with a step") from None
        for name, value in row.items():
            if isinstance(value, int | float) and np.isfinite(value) and name != "time":
                found.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(rows)), np.array([rows[step] for step in sorted(rows)])) for name, rows in found.items()
    }


def _judged(
    run: str, name: str, arrays: Mapping[str, np.ndarray], words: Mapping[str, Any]
) -> tuple[list[Judged], str]:
    """What the arrays hold, of each kind; and why something was left out."""
    found = []
    try:
        for make in (_classified, _valued, _measured):
            if (main := make(arrays)) is not None:
                kind, names, scores, truth = main
                beside = _beside(arrays, len(scores), words)
                if kind == "classes" and truth is not None:
                    beside["ranked"] = _ranked(arrays, truth, scores)
                found.append(Judged(run, name, kind, names, scores, truth, **beside))
    except ValueError as error:
        return found, str(error)
    return found, ""


Main = tuple[str, tuple[str, ...], np.ndarray, np.ndarray | None]


def _classified(arrays: Mapping[str, np.ndarray]) -> Main | None:
    if "labels" not in arrays or not {"probabilities", "logits"} & set(arrays):
        return None
    truth = np.asarray(arrays["labels"])
    scores = np.asarray(arrays["probabilities"] if "probabilities" in arrays else arrays["logits"], np.float64)
    if scores.ndim == 1 or (scores.shape[-1] == 1 and truth.ndim == 1):  # of the second of two classes alone
        if "probabilities" not in arrays:
            scores = 0.5 * (1 + np.tanh(scores / 2))
        scores = np.stack([1 - scores.reshape(-1), scores.reshape(-1)], 1)
    elif "probabilities" not in arrays:
        scores = _softmax(scores) if truth.ndim == 1 else 0.5 * (1 + np.tanh(scores / 2))
    names = tuple(map(str, arrays["classes"])) if "classes" in arrays else ()
    names = names or tuple(f"class {k}" for k in range(scores.shape[-1]))
    if scores.ndim != 2 or len(scores) != len(truth) or scores.shape[1] != len(names):
        raise ValueError(f"labels {truth.shape}, scores {scores.shape} and {len(names)} classes do not fit together")
    if not np.isfinite(scores).all():
        raise ValueError(f"row {int(np.argwhere(~np.isfinite(scores))[0][0])}: a score is not finite")
    if truth.ndim == 2 and truth.shape == scores.shape:
        return "labels", names, scores, truth.astype(np.float64)
    if truth.ndim != 1 or (len(truth) and not (np.nanmin(truth) >= 0 and np.nanmax(truth) < len(names))):
        raise ValueError(f"labels {truth.shape} are not classes 0 to {len(names) - 1}, nor one column for each")
    if truth.dtype.kind == "f" and not np.isfinite(truth).all():
        raise ValueError(f"row {int(np.flatnonzero(~np.isfinite(truth))[0])}: the label is NaN")
    return "classes", names, scores, truth.astype(np.int64)


def _ranked(arrays: Mapping[str, np.ndarray], truth: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
    """The logits, where the AUC by class that the evaluation kept is theirs and not that of the probabilities.

    A class ranks other rows by its own logit in zero-shot, and by its probability among the classes elsewhere.
    """
    kept, logits = arrays.get("auc"), np.asarray(arrays.get("logits", np.zeros(0)), np.float64)
    if kept is None or logits.shape != scores.shape or kept.shape != scores.shape[1:]:
        return None

    def distance(ranks: np.ndarray) -> float:
        found = class_aucs(truth, ranks, np.ones((1, len(truth))))[:, 0]
        known = np.isfinite(found) & np.isfinite(kept)
        return float(np.abs(found - kept)[known].max(initial=0))

    return logits if distance(logits) < distance(scores) else None


def _valued(arrays: Mapping[str, np.ndarray]) -> Main | None:
    if not {"value", "predicted"} <= set(arrays):
        return None
    truth, scores = (_columns(arrays[key]) for key in ("value", "predicted"))
    if truth.shape != scores.shape:
        raise ValueError(f"value {truth.shape} and predicted {scores.shape} differ")
    return "values", _named(arrays.get("names"), scores.shape[1], "value"), scores, truth


def _measured(arrays: Mapping[str, np.ndarray]) -> Main | None:
    """Numbers per case: every array whose name begins with one of MEASURES, of as many rows as the first."""
    chosen = {
        key: _columns(a)
        for key, a in arrays.items()
        if key.startswith(MEASURES) and a.dtype.kind == "f" and a.ndim in (1, 2) and not key.endswith("_interval")
    }
    if "labels" in arrays or not chosen or ("index" not in arrays and "dice" not in chosen and "error" not in chosen):
        return None
    rows = len(arrays["index"]) if "index" in arrays else len(chosen.get("dice", chosen.get("error", [])))
    chosen = {key: a for key, a in chosen.items() if len(a) == rows}
    if not chosen:
        return None
    names: list[str] = []
    for key, a in chosen.items():
        said = arrays.get("classes", arrays.get("names"))
        inner = _named(said, a.shape[1], "") if a.shape[1] > 1 else ("",)
        names += [f"{key.replace('_', ' ')} {word}".strip() for word in inner]
    return "measures", tuple(names), np.concatenate(list(chosen.values()), 1), None


def _beside(arrays: Mapping[str, np.ndarray], rows: int, words: Mapping[str, Any]) -> dict[str, Any]:
    """Patients, index, subgroup columns and pictures, as far as they fit the rows."""
    fits = {key: a for key, a in arrays.items() if a.ndim == 1 and len(a) == rows}
    patients = fits.get("patient", fits.get("group"))
    columns = {}
    for key in GROUPS:
        if key in fits:
            said = words.get(key, ())
            integers = fits[key].dtype.kind in "iu" and said
            columns[key] = np.array([_word(v, said) for v in fits[key]], object) if integers else fits[key]
    return {
        "patients": patients,
        "index": fits.get("index"),
        "columns": {key: value for key, value in columns.items() if len(set(map(str, value))) > 1},
        "cases": _cases(arrays, rows),
        "bands": {key.removeprefix("band_"): a for key, a in arrays.items() if key.startswith("band_") and a.ndim == 1},
    }


def _cases(arrays: Mapping[str, np.ndarray], rows: int) -> Cases | None:
    pictures, at = arrays.get("pictures"), arrays.get("picture_index")
    if pictures is None or at is None or pictures.dtype != np.uint8 or pictures.ndim != 4 or len(at) != len(pictures):
        return None
    if "picture_score" in arrays and len(arrays.get("index", ())) == rows:  # named by index, not by row
        at = np.array([next(iter(np.flatnonzero(arrays["index"] == value)), -1) for value in at])
    inside = (at >= 0) & (at < rows)
    kinds = arrays["picture_kind"] if "picture_kind" in arrays else np.full(len(at), "")
    overlays = {
        key.removeprefix("picture_").replace("_", " "): a[inside]
        for key, a in arrays.items()
        if key.startswith("picture_") and a.dtype == np.uint8 and a.ndim == 4 and len(a) == len(at)
    }
    return Cases(pictures[inside], at[inside].astype(np.int64), kinds[inside], overlays)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({error}); launch.py eval writes it again") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _word(value: Any, words: tuple[str, ...]) -> str:
    return words[int(value)] if 0 <= int(value) < len(words) else ""


def _columns(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float64)
    return array[:, None] if array.ndim == 1 else array


def _named(names: np.ndarray | None, count: int, word: str) -> tuple[str, ...]:
    if names is not None and len(names) == count:
        return tuple(map(str, names))
    return tuple(f"{word} {k + 1}".strip() for k in range(count))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
