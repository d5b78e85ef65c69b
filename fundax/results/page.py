"""A page about one run or several: numbers with intervals, pictures, groups, cases, tests between runs, configuration.

It reads run directories alone: config.json, metrics.jsonl, evals/*.npz; the checkpoint only where attention is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from data_pipelines.records import EYES, MODALITIES
from fundax.metrics.statistics import Estimate
from fundax.results import plots as run_pictures
from fundax.results import scores as run_scores
from fundax.results.html import Html, Section, joined, number, plain, table, tag, write
from fundax.results.read import Judged, Run, read_run
from fundax.types import UserError

_log = logging.getLogger("fundax")


WORDS = {"modality": MODALITIES, "eye": tuple(eye or "unknown" for eye in EYES), "sex": ("female", "male")}


_PER_CLASS = ("AUC", "AP", "sensitivity", "specificity", "precision", "F1")


def report(
    runs: Sequence[str | Path], out: str | Path, *, title: str = "", resamples: int = 1000, attention: bool = False
) -> Path:
    """Write the page. attention: overlays of the class token's attention over the cases, for runs whose model is a ViT.

    Raises UserError for a folder that is no run or has no evaluations, and runs of one name.
    """
    if resamples < 1:
        raise UserError(f"--resamples {resamples}; expected a number from 1 up")
    read = [read_run(path, name, WORDS) for path, name in zip(runs, _names(runs), strict=True)]
    groups = grouped(read)
    sections = [Section("Results", _headlines(groups, resamples))]
    if len(read) > 1:
        sections.append(Section("Comparison", _comparison(groups, resamples)))
    for name, group in _shown(groups, "evaluations"):
        sections.append(Section(name, _evaluation(group, read, resamples, attention)))
    if others := _others(read):
        sections.append(Section("Other evaluations", others))
    curves = {run.name: run.curves for run in read if run.curves}
    sections += [
        Section("Training", run_pictures.training(curves)),
        Section("Configuration and data", _configuration(read, groups)),
    ]
    names = ", ".join(run.name for run in read)
    lead = f"Intervals are of 95 %. Bootstraps draw patients ({resamples} times) where the evaluation names them, else rows."
    return write(out, title or f"Report of {names}", lead, sections)


def grouped(runs: Sequence[Run]) -> dict[str, list[Judged]]:
    """Evaluations that belong together, of one name, kind and classes; called "eval", or "eval, run" where two differ."""
    alike: dict[tuple[Any, ...], list[Judged]] = {}
    for judged in (one for run in runs for one in run.judged):
        alike.setdefault((judged.eval, judged.kind, judged.names), []).append(judged)
    called = [name for name, _, _ in alike]
    out: dict[str, list[Judged]] = {}
    for (name, kind, _), group in alike.items():
        title = name if called.count(name) == 1 else f"{name}, {group[0].run}"
        out[title if title not in out else f"{title} ({kind})"] = group
    return out


def _shown(groups: dict[str, list[Judged]], what: str) -> Iterable[tuple[str, list[Judged]]]:
    """The groups, with a bar on a terminal: ten thousand rows take a minute."""
    console = Console(stderr=True)
    return track(list(groups.items()), what, console=console, transient=True) if console.is_terminal else groups.items()


def _label(group: str, judged: Judged) -> str:
    run = f", {judged.run}"
    return group if group.endswith(run) else group + run


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The last part of each path that tells the runs apart."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice")
    for parts in range(1, 6):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _headlines(groups: dict[str, list[Judged]], resamples: int) -> Html:
    """One table for each set of metrics: a row for each evaluation and run."""
    tables: dict[tuple[str, ...], list[list[Any]]] = {}
    long: list[Html] = []
    for name, group in _shown(groups, "intervals"):
        for judged in group:
            found = run_scores.headline(judged, resamples)
            patients = "–" if judged.patients is None else str(len(np.unique(judged.patients)))
            if len(found) > 8:  # many structures or landmarks: a row for each
                said = f"{_label(name, judged)}: {judged.rows} rows, {patients} patients"
                long.append(table(("", "value"), [(what, number(one)) for what, one in found.items()], said))
                continue
            row = [_label(name, judged), judged.rows, patients, *map(number, found.values())]
            tables.setdefault(tuple(found), []).append(row)
    if not tables and not long:
        return tag("p", "No evaluation left predictions beside the truth; see the other evaluations below.")
    note = "AUC of two classes: DeLong's interval, over patients where they are named. ECE has no interval."
    made = [table(("evaluation, run", "rows", "patients", *names), rows) for names, rows in tables.items()]
    return joined((*made, tag("div", *long, class_="beside"), tag("p", note, class_="soft")))


def _comparison(groups: dict[str, list[Judged]], resamples: int) -> Html:
    rows, reasons = [], []
    for name, group in _shown(groups, "comparisons"):
        tests, why = run_scores.compare(group, resamples)
        reasons += [f"{name}: {line}." for line in why]
        rows += [
            (f"{name}: {t.what}", f"{t.first} − {t.second}", t.test, number(t.difference), _p(t.p), _p(t.adjusted))
            for t in tests
        ]
        if len({judged.run for judged in group}) < 2:
            reasons.append(f"{name}: only {group[0].run} has it, with these classes.")
    head = ("what", "difference of", "test", "difference", "p", "p, Holm")
    said = "Holm's correction is over the tests of one evaluation."
    parts = [table(head, rows), tag("p", said, class_="soft")] if rows else [tag("p", "No two runs can be paired.")]
    if reasons:
        parts.append(tag("p", "Not compared. ", " ".join(dict.fromkeys(reasons)), class_="soft"))
    return joined(parts)


def _evaluation(group: list[Judged], runs: Sequence[Run], resamples: int, attention: bool) -> Html:
    parts: list[Html] = []
    if group[0].kind in ("classes", "labels"):
        parts += [run_pictures.curves_of_classes(group), _probabilities(group)]
        if group[0].kind == "classes":
            found = [run_pictures.confusion(judged) for judged in group]
            parts += [tag("h3", "Confusion"), tag("div", *found, class_="beside")]
        for judged in group:
            parts += [_classes(judged), _operating(judged, _validation(judged, runs)), _bands(judged)]
    if group[0].kind == "values":
        parts.append(run_pictures.scatter(group))
        parts += [_targets(judged, resamples) for judged in group]
    for judged in group:
        if group[0].kind == "measures":
            logged = _last_values(next(run for run in runs if run.name == judged.run), judged.eval)
            parts += [tag("h3", f"As logged: {judged.run}"), logged] if logged is not None else []
        parts.append(_subgroups(judged, resamples))
        if judged.cases is not None and len(judged.cases.rows):
            more = _attention(next(r for r in runs if r.name == judged.run), judged) if attention else {}
            parts.append(run_pictures.cases(judged, judged.cases, more))
    return joined(parts)


def _probabilities(group: list[Judged]) -> Html:
    found = {judged.run: run_scores.probability_scores(judged) for judged in group}
    names = next(iter(found.values()))
    if len(names) <= 2:
        rows = [(run, *(number(scores[name]) for name in names)) for run, scores in found.items()]
        return table(("run", *names), rows)
    rows = [(name, *(number(scores[name]) for scores in found.values())) for name in names]
    return table(("", *found), rows)


def _classes(judged: Judged) -> Html:
    rows = []
    for name, count, found, why in run_scores.by_class(judged):
        rows.append(
            (name, count, *(number(found[key]) if found[key].defined else _dash(found[key], why) for key in _PER_CLASS))
        )
    what = "at probability 0.5" if judged.kind == "labels" else "of the likeliest class"
    ranked = "" if judged.ranked is None else " Rows are ranked by the logit of the class itself."
    said = f"{judged.run}: AUC with DeLong's interval; sensitivity to F1 {what}.{ranked}"
    return joined((tag("h3", "By class"), table(("class", "n", *_PER_CLASS), rows, said)))


def _operating(judged: Judged, chosen_on: Judged | None) -> Html:
    rows = []
    for name, point, found in run_scores.operating(judged, chosen_on):
        cells = [
            number(found[key]) if key in found and not point.note else "–"
            for key in ("sensitivity", "specificity", "ppv", "npv")
        ]
        threshold = (
            plain(point.threshold) if not point.note else tag("span", "–", tag("small", point.note), class_="blank")
        )
        rows.append((f"{name}, {_short(point.chosen_for)}", threshold, *cells))
    where = f"on {chosen_on.eval}" if chosen_on is not None else "on these very rows, so that the numbers flatter"
    said = f"{judged.run}: thresholds are chosen {where}. Exact intervals that take rows as independent."
    head = ("class, chosen for", "threshold", "sensitivity", "specificity", "PPV", "NPV")
    return joined((tag("h3", "Operating points"), table(head, rows, said)))


def _bands(judged: Judged) -> Html:
    """A forecast by how far it looks."""
    found = dict(judged.bands)
    if not {"from", "to", "rows"} <= set(found):
        return Html("")
    notes = [str(note) for note in found.pop("note", np.full(len(found["from"]), ""))]
    first, last = found.pop("from"), found.pop("to")
    rows = []
    for k, note in enumerate(notes):
        cells = [plain(float(a[k])) if a.dtype.kind == "f" else str(a[k]) for a in found.values()]
        rows.append((f"{first[k]:g} to {last[k]:g}", *cells, note))
    said = {"auc": "AUC", "f1": "F1", "brier": "Brier score", "ece": "ECE"}
    head = ("horizon, days", *(said.get(name, name) for name in found), "")
    return joined((tag("h3", f"By horizon: {judged.run}"), table(head, rows)))


def _short(chosen_for: str) -> str:
    return (
        chosen_for.replace("sensitivity", "sens.").replace("specificity", "spec.").replace(">=", "≥") or "no threshold"
    )


def _validation(judged: Judged, runs: Sequence[Run]) -> Judged | None:
    """The same run's evaluation of validation rows: test -> val, valid or validation in its name."""
    run = next(run for run in runs if run.name == judged.run)
    wanted = {judged.eval.replace("test", word) for word in ("validation", "valid", "val")} - {judged.eval}
    found = [o for o in run.judged if o.eval in wanted and (o.names, o.kind) == (judged.names, judged.kind)]
    return found[0] if found else None


def _targets(judged: Judged, resamples: int) -> Html:
    found = run_scores.targets(judged, resamples)
    rows = [(name, count, *map(number, scores.values())) for name, count, scores in found]
    return table(("target", "rows", *found[0][2]), rows, f"{judged.run}: every target in its own unit.")


def _subgroups(judged: Judged, resamples: int) -> Html:
    if not judged.columns:
        said = f"{judged.run}: no column of this evaluation (sex, age, device, modality, eye) has two values."
        return joined((tag("h3", "Groups"), tag("p", said, class_="soft")))
    name, found, gaps = run_scores.subgroups(judged, resamples)
    many = run_scores.binary(judged)
    rows = [
        ("all" if r.attribute == "all" else f"{r.attribute}: {r.group}", r.rows, r.patients,
         *((r.positives,) if many else ()), number(r.estimate))
        for r in found
    ]  # fmt: skip
    head = ("group", "rows", "patients", *(("positives",) if many else ()), name)
    gap_rows = [(attribute, plain(gap.value), gap.note) for attribute, gap in gaps.items()]
    parts = [tag("h3", f"Groups: {judged.run}"), table(head, rows)]
    return joined((*parts, table(("largest gap", name, "between"), gap_rows, kind="words")))


def _attention(run: Run, judged: Judged) -> dict[str, np.ndarray]:
    """The mean attention of the class token over each case; nothing, and a line in the log, for a model without it."""
    from fundax.inference.explain import overlay, read_looker

    assert judged.cases is not None
    try:
        looker = read_looker(run.path)
        seen = [overlay(picture, looker.look(picture)["mean"]) for picture in judged.cases.pictures]
    except UserError as error:
        _log.warning("%s: no attention: %s", run.name, error)
        return {}
    return {"attention": np.stack(seen)}


def _others(runs: Sequence[Run]) -> Html:
    """Evaluations of another shape: tables of few-shot draws, scores by name, and what was left."""
    parts: list[Html] = []
    for run in runs:
        for name, arrays in run.other.items():
            shown = next((made for kind in (_shots, _named_values) if (made := kind(arrays)) is not None), None)
            scalars = _last_values(run, name)
            parts.append(tag("h3", f"{name}, {run.name}"))
            parts += [shown] if shown is not None else []
            parts += [scalars] if scalars is not None else []
            if shown is None and scalars is None:
                said = ", ".join(f"{key} {list(a.shape)}" for key, a in arrays.items())
                parts.append(tag("p", f"Not shown: {said}.", class_="soft"))
        for note in run.notes:
            parts.append(tag("p", f"{run.name}: {note}", class_="soft"))
    return joined(parts)


def _shots(arrays: Any) -> Html | None:
    if not {"method", "shots", "macro_auc", "balanced_accuracy"} <= set(arrays):
        return None
    rows = []
    for method, shots in dict.fromkeys(zip(map(str, arrays["method"]), map(int, arrays["shots"]), strict=True)):
        mine = (arrays["method"] == method) & (arrays["shots"] == shots)
        cells = [_spread(arrays[key][mine]) for key in ("macro_auc", "balanced_accuracy")]
        area = number(run_scores.over_draws(arrays, f"{method}_{shots}_probabilities"))
        rows.append((method.replace("_", " "), shots, int(mine.sum()), area, *cells))
    said = (
        "Mean over draws: of the AUC with an interval over patients (200 resamples); below, the deviation of the draws."
    )
    head = ("method", "images per class", "draws", "macro AUC, interval", "macro AUC", "balanced accuracy")
    return table(head, rows, said)


def _spread(values: np.ndarray) -> Html:
    known = values[np.isfinite(values)]
    if not len(known):
        return number(Estimate(float("nan"), note="not defined"))
    spread = f"± {known.std(ddof=1):.3f}" if len(known) > 1 else "one draw"
    return joined((tag("b", f"{known.mean():.3f}"), tag("small", spread)))


def _named_values(arrays: Any) -> Html | None:
    if not {"names", "values"} <= set(arrays) or arrays["names"].shape != arrays["values"].shape:
        return None
    return table(
        ("score", "value"), [(str(n), plain(float(v))) for n, v in zip(arrays["names"], arrays["values"], strict=True)]
    )


def _last_values(run: Run, name: str) -> Html | None:
    """What the evaluation logged last, but for the numbers of single classes."""
    found = {
        k.partition("/")[2]: y[-1] for k, (_, y) in run.curves.items() if k.startswith(f"{name}/") and k.count("/") < 2
    }
    return table(("number", "last"), [(k, plain(float(v), 4)) for k, v in found.items()]) if found else None


def _configuration(runs: Sequence[Run], groups: dict[str, list[Judged]]) -> Html:
    args = {run.name: {k: _value(v) for k, v in run.config.get("args", {}).items()} for run in runs}
    keys = dict.fromkeys(key for found in args.values() for key in found)
    rows = [_side_by_side(key, [found.get(key, "") for found in args.values()]) for key in keys]
    told = [key for key in ("config", "steps", "batch", "seed", "best") if key not in keys]
    rows = [_side_by_side(key, [_value(run.config.get(key, "")) for run in runs]) for key in told] + rows
    rows += [
        _side_by_side(f"{package} version", [_value(run.config.get("versions", {}).get(package, "")) for run in runs])
        for package in dict.fromkeys(p for run in runs for p in run.config.get("versions", {}))
    ]
    prints = [(_label(name, one), one.rows, one.fingerprint()) for name, group in groups.items() for one in group]
    files = [(f"{run.name}/{file}", digest) for run in runs for file, digest in run.digests.items()]
    parts = [
        table(("argument", *(run.name for run in runs)), rows, kind="words"),
        tag("h3", "Data"),
        table(
            ("evaluation, run", "rows", "digest"),
            prints,
            "SHA-256 of truth, row numbers and patients: equal for the same rows.",
        ),
        tag("h3", "Files read"),
        table(("file", "SHA-256"), files),
    ]
    return joined(parts)


def _side_by_side(name: str, values: list[str]) -> tuple[Any, ...]:
    differs = len(set(values)) > 1
    shown = [value or "–" for value in values]
    return (name, *(tag("em", value) if differs else value for value in shown))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _dash(estimate: Estimate, why: str) -> Html:
    """The reason once in a row is enough: where the AUC has it, other blanks are bare unless theirs is another."""
    said = "" if why and estimate.note == why else estimate.note
    return tag("span", "–", *((tag("small", said),) if said else ()), class_="blank")
