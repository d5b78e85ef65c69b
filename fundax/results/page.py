"""The report page of one or several runs: metrics with intervals, plots, subgroups, cases, tests, and configuration.

It is made from config.json, metrics.jsonl and evals/*.npz of the run directories. The checkpoint is read only for attention
maps."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from fundax.results import plots, scores
from fundax.results.about import about
from fundax.results.blocks import Block, Cell, Columns, Heading, Section, Table, Text, number, write
from fundax.results.cases import gallery
from fundax.results.evaluation import Evaluation
from fundax.results.kinds import KINDS, evaluations
from fundax.results.read import Run, read_run
from fundax.results.sections import Context, subgroups
from fundax.types import UserError

_log = logging.getLogger("fundax")
Groups = dict[str, list[Evaluation]]


def report(
    runs: Sequence[str | Path], out: str | Path, *, title: str = "", resamples: int = 1000, attention: bool = False
) -> Path:
    """Write the report page and return its path.

    Args:
        runs: run directories.
        out: path of the HTML file.
        title: title of the page; "" lists the runs.
        resamples: number of bootstrap resamples.
        attention: overlay the attention of the class token on the cases, for ViT models.

    Raises UserError for a folder that is not a run or has no evaluations, and for a run that is given twice.
    """
    if resamples < 1:
        raise UserError(f"--resamples {resamples}; expected a number from 1 up")
    read = [read_run(path, name) for path, name in zip(runs, _names(runs), strict=True)]
    pairs = [evaluations(run) for run in read]
    every = [evaluation for of_run, _ in pairs for evaluation in of_run]
    groups = grouped(every)
    context = Context(resamples, lambda evaluation: _validation(evaluation, every))
    sections = [Section("Results", _headlines(groups, resamples))]
    if len(read) > 1:
        sections.append(Section("Comparison", _comparison(groups, resamples)))
    for name, group in _shown(groups, "evaluations"):
        sections.append(Section(name, _evaluation(group, read, context, attention)))
    if others := _others(read, [reasons for _, reasons in pairs]):
        sections.append(Section("Other evaluations", others))
    curves = {run.name: run.curves for run in read if run.curves}
    sections += [
        Section("Training", plots.training(curves)),
        Section("Configuration and data", _configuration(read, groups)),
    ]
    lead = (
        f"Intervals are 95 % confidence intervals. Bootstraps resample patients ({resamples} times), or rows if the "
        "patients are unknown."
    )
    return write(out, title or f"Report of {', '.join(run.name for run in read)}", lead, sections)


def grouped(items: Iterable[Evaluation]) -> Groups:
    """Group evaluations with the same name, kind, classes and data, by title.

    The title is the name of the evaluation, followed by the name of the run if several groups have the same name.
    """
    alike: dict[tuple[Any, ...], list[Evaluation]] = {}
    for item in items:
        alike.setdefault((item.name, item.kind, item.names, item.about.digest, item.about.part), []).append(item)
    names = [name for name, *_ in alike]
    out: Groups = {}
    for (name, kind, *_), group in alike.items():
        title = name if names.count(name) == 1 else f"{name}, {group[0].run}"
        out[title if title not in out else f"{title} ({kind})"] = group
    return out


def _shown(groups: Groups, label: str) -> Iterable[tuple[str, list[Evaluation]]]:
    """The groups, with a progress bar on a terminal, because ten thousand rows take a minute."""
    console = Console(stderr=True)
    return (
        track(list(groups.items()), label, console=console, transient=True) if console.is_terminal else groups.items()
    )


def _label(group: str, evaluation: Evaluation) -> str:
    run = f", {evaluation.run}"
    return group if group.endswith(run) else group + run


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice")
    for parts in range(1, 6):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _headlines(groups: Groups, resamples: int) -> list[Block]:
    """A table for each set of metrics, with a row for each evaluation and run."""
    tables: dict[tuple[str, ...], list[list[Any]]] = {}
    long: list[Block] = []
    for name, group in _shown(groups, "intervals"):
        for evaluation in group:
            metrics = scores.headline(evaluation, resamples)
            patients = "–" if evaluation.patients is None else str(len(np.unique(evaluation.patients)))
            if len(metrics) > 8:  # many structures or landmarks: a row for each
                source = f" ({evaluation.about.text()})" if evaluation.about.text() else ""
                caption = f"{_label(name, evaluation)}{source}: {evaluation.rows} rows, {patients} patients"
                long.append(Table(("", "value"), [(key, number(each)) for key, each in metrics.items()], caption))
                continue
            row = [
                Cell(_label(name, evaluation), evaluation.about.text()),
                evaluation.rows,
                patients,
                *map(number, metrics.values()),
            ]
            tables.setdefault(tuple(metrics), []).append(row)
    if not tables and not long:
        return [Text("No evaluation has rows of predictions; see the other evaluations below.", soft=False)]
    made = [Table(("evaluation, run", "rows", "patients", *names), rows) for names, rows in tables.items()]
    note = "The AUC of two classes has DeLong's interval, clustered by patient if known. ECE has no interval."
    return [*made, *([Columns(long)] if long else []), Text(note)]


def _comparison(groups: Groups, resamples: int) -> list[Block]:
    rows, reasons = [], []
    for name, group in _shown(groups, "comparisons"):
        tests, why = scores.compare(group, resamples)
        reasons += [f"{name}: {line}." for line in why]
        rows += [
            (f"{name}: {t.what}", f"{t.first} − {t.second}", t.test, number(t.difference), _p(t.p), _p(t.adjusted))
            for t in tests
        ]
        if len({evaluation.run for evaluation in group}) < 2:
            reasons.append(f"{name}: only {group[0].run} has this evaluation with these classes and data.")
    head = ("metric", "difference of", "test", "difference", "p", "p, Holm")
    note = Text("Holm's correction is over the tests of the same evaluation.")
    out: list[Block] = [Table(head, rows), note] if rows else [Text("No two runs can be paired.", soft=False)]
    return [*out, Text("Not compared. " + " ".join(dict.fromkeys(reasons)))] if reasons else out


def _evaluation(group: list[Evaluation], runs: Sequence[Run], context: Context, attention: bool) -> list[Block]:
    kind = KINDS[group[0].kind]
    made = dict.fromkeys(
        f"{evaluation.run}: {evaluation.about.text()}" for evaluation in group if evaluation.about.text()
    )
    out: list[Block] = [Text("; ".join(made) + ".")] if made else []
    out += kind.page(group, context) if kind.page is not None else []
    for evaluation in group:
        out += subgroups(evaluation, context.resamples)
        cases = getattr(evaluation.result, "cases", None)
        if cases is not None and kind.cases is not None:
            more = _attention(next(r for r in runs if r.name == evaluation.run), cases.pictures) if attention else {}
            shown = gallery(evaluation, cases, kind.cases, more)
            out += [shown] if shown is not None else []
    return out


def _validation(evaluation: Evaluation, every: Iterable[Evaluation]) -> Evaluation | None:
    """The evaluation of the same run on validation data, with val, valid or validation in its name instead of test.

    Without such a name, it is the only evaluation of the run on a part `val` with the same classes.
    """
    wanted = {evaluation.name.replace("test", word) for word in ("validation", "valid", "val")} - {evaluation.name}
    alike = [
        o
        for o in every
        if o is not evaluation and (o.run, o.names, o.kind) == (evaluation.run, evaluation.names, evaluation.kind)
    ]
    if named := [o for o in alike if o.name in wanted]:
        return named[0]
    held_out = [o for o in alike if o.about.part == "val"]
    return held_out[0] if len(held_out) == 1 and evaluation.about.part not in ("", "val") else None


def _attention(run: Run, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The mean attention of the class token over each case. A model without a class token gives {} and a warning."""
    from fundax.inference.explain import overlay, read_looker

    try:
        looker = read_looker(run.path)
        seen = [overlay(picture, looker.look(picture)["mean"]) for picture in pictures]
    except UserError as error:
        _log.warning("%s: no attention: %s", run.name, error)
        return {}
    return {"attention": np.stack(seen)}


def _others(runs: Sequence[Run], reasons: Sequence[dict[str, str]]) -> list[Block]:
    """Evaluations without rows of predictions, and the reasons why evaluations are omitted."""
    out: list[Block] = []
    for run, left_out in zip(runs, reasons, strict=True):
        for name, result in run.results.items():
            kind = KINDS[result.kind]
            if kind.alone is not None:
                text = about(result).text()
                out += [Heading(f"{name}, {run.name}"), *([Text(text)] if text else []), *kind.alone(result)]
        out += [Text(f"{run.name}: {name}: {why}") for name, why in left_out.items()]
    return out


def _configuration(runs: Sequence[Run], groups: Groups) -> list[Block]:
    args = {run.name: {k: _value(v) for k, v in run.config.get("args", {}).items()} for run in runs}
    keys = dict.fromkeys(key for values in args.values() for key in values)
    rows = [_columns(key, [values.get(key, "") for values in args.values()]) for key in keys]
    fixed = [key for key in ("config", "steps", "batch", "seed", "best") if key not in keys]
    rows = [_columns(key, [_value(run.config.get(key, "")) for run in runs]) for key in fixed] + rows
    rows += [
        _columns(f"{package} version", [_value(run.config.get("versions", {}).get(package, "")) for run in runs])
        for package in dict.fromkeys(p for run in runs for p in run.config.get("versions", {}))
    ]
    prints = [
        (_label(name, evaluation), evaluation.rows, evaluation.fingerprint())
        for name, group in groups.items()
        for evaluation in group
    ]
    files = [(f"{run.name}/{file}", digest) for run in runs for file, digest in run.digests.items()]
    caption = "SHA-256 of truth, row numbers and patients: equal for the same rows."
    return [
        Table(("argument", *(run.name for run in runs)), rows, kind="words"),
        *(Heading("Data"), Table(("evaluation, run", "rows", "digest"), prints, caption)),
        *(Heading("Files read"), Table(("file", "SHA-256"), files)),
    ]


def _columns(name: str, values: list[str]) -> tuple[Any, ...]:
    differs = len(set(values)) > 1
    return (name, *(Cell(value or "–", kind="differs" if differs else "") for value in values))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
