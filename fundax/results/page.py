"""The report page about one run or several: metrics with intervals, plots, subgroups, cases, tests between runs, configuration.

It reads run directories: config.json, metrics.jsonl, evals/*.npz; the checkpoint only where attention maps are asked for."""

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
from fundax.results.blocks import Beside, Block, Cell, Heading, Section, Table, Text, number, write
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
    """Write the page. attention: overlay the class token's attention on the cases, for runs whose model is a ViT.

    Raises UserError for a folder that is not a run or has no evaluations, and for runs of one name.
    """
    if resamples < 1:
        raise UserError(f"--resamples {resamples}; expected a number from 1 up")
    read = [read_run(path, name) for path, name in zip(runs, _names(runs), strict=True)]
    pairs = [evaluations(run) for run in read]
    found = [one for ones, _ in pairs for one in ones]
    groups = grouped(found)
    context = Context(resamples, lambda one: _validation(one, found))
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
        f"Intervals are 95 % confidence intervals. Bootstraps resample patients ({resamples} times) where the evaluation "
        "names them, and rows elsewhere."
    )
    return write(out, title or f"Report of {', '.join(run.name for run in read)}", lead, sections)


def grouped(found: Iterable[Evaluation]) -> Groups:
    """Evaluations that belong together: one name, kind, set of classes and data. Called "eval", or "eval, run" where two differ."""
    alike: dict[tuple[Any, ...], list[Evaluation]] = {}
    for one in found:
        alike.setdefault((one.name, one.kind, one.names, one.about.digest, one.about.part), []).append(one)
    called = [name for name, *_ in alike]
    out: Groups = {}
    for (name, kind, *_), group in alike.items():
        title = name if called.count(name) == 1 else f"{name}, {group[0].run}"
        out[title if title not in out else f"{title} ({kind})"] = group
    return out


def _shown(groups: Groups, what: str) -> Iterable[tuple[str, list[Evaluation]]]:
    """The groups, with a progress bar on a terminal: ten thousand rows take a minute."""
    console = Console(stderr=True)
    return track(list(groups.items()), what, console=console, transient=True) if console.is_terminal else groups.items()


def _label(group: str, one: Evaluation) -> str:
    run = f", {one.run}"
    return group if group.endswith(run) else group + run


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    paths = [Path(run).resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice")
    for parts in range(1, 6):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _headlines(groups: Groups, resamples: int) -> list[Block]:
    """One table for each set of metrics, with a row for each evaluation and run."""
    tables: dict[tuple[str, ...], list[list[Any]]] = {}
    long: list[Block] = []
    for name, group in _shown(groups, "intervals"):
        for one in group:
            found = scores.headline(one, resamples)
            patients = "–" if one.patients is None else str(len(np.unique(one.patients)))
            if len(found) > 8:  # many structures or landmarks: a row for each
                of = f" ({one.about.text()})" if one.about.text() else ""
                caption = f"{_label(name, one)}{of}: {one.rows} rows, {patients} patients"
                long.append(Table(("", "value"), [(what, number(each)) for what, each in found.items()], caption))
                continue
            row = [Cell(_label(name, one), one.about.text()), one.rows, patients, *map(number, found.values())]
            tables.setdefault(tuple(found), []).append(row)
    if not tables and not long:
        return [Text("No evaluation kept predictions beside the truth; see the other evaluations below.", soft=False)]
    made = [Table(("evaluation, run", "rows", "patients", *names), rows) for names, rows in tables.items()]
    note = "AUC of two classes: DeLong's interval, clustered by patient where patients are known. ECE has no interval."
    return [*made, *([Beside(long)] if long else []), Text(note)]


def _comparison(groups: Groups, resamples: int) -> list[Block]:
    rows, reasons = [], []
    for name, group in _shown(groups, "comparisons"):
        tests, why = scores.compare(group, resamples)
        reasons += [f"{name}: {line}." for line in why]
        rows += [
            (f"{name}: {t.what}", f"{t.first} − {t.second}", t.test, number(t.difference), _p(t.p), _p(t.adjusted))
            for t in tests
        ]
        if len({one.run for one in group}) < 2:
            reasons.append(f"{name}: only {group[0].run} has it, with these classes and data.")
    head = ("metric", "difference of", "test", "difference", "p", "p, Holm")
    note = Text("Holm's correction is over the tests of one evaluation.")
    out: list[Block] = [Table(head, rows), note] if rows else [Text("No two runs can be paired.", soft=False)]
    return [*out, Text("Not compared. " + " ".join(dict.fromkeys(reasons)))] if reasons else out


def _evaluation(group: list[Evaluation], runs: Sequence[Run], context: Context, attention: bool) -> list[Block]:
    kind = KINDS[group[0].kind]
    made = dict.fromkeys(f"{one.run}: {one.about.text()}" for one in group if one.about.text())
    out: list[Block] = [Text("; ".join(made) + ".")] if made else []
    out += kind.page(group, context) if kind.page is not None else []
    for one in group:
        out += subgroups(one, context.resamples)
        cases = getattr(one.result, "cases", None)
        if cases is not None and kind.cases is not None:
            more = _attention(next(r for r in runs if r.name == one.run), cases.pictures) if attention else {}
            shown = gallery(one, cases, kind.cases, more)
            out += [shown] if shown is not None else []
    return out


def _validation(one: Evaluation, found: Iterable[Evaluation]) -> Evaluation | None:
    """The same run's evaluation of validation rows: its name has val, valid or validation in place of test.

    For rows of other data it is the run's only evaluation of a part `val` with these classes.
    """
    wanted = {one.name.replace("test", word) for word in ("validation", "valid", "val")} - {one.name}
    alike = [o for o in found if o is not one and (o.run, o.names, o.kind) == (one.run, one.names, one.kind)]
    if named := [o for o in alike if o.name in wanted]:
        return named[0]
    held_out = [o for o in alike if o.about.part == "val"]
    return held_out[0] if len(held_out) == 1 and one.about.part not in ("", "val") else None


def _attention(run: Run, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The mean attention of the class token over each case; nothing, and a warning, for a model without it."""
    from fundax.inference.explain import overlay, read_looker

    try:
        looker = read_looker(run.path)
        seen = [overlay(picture, looker.look(picture)["mean"]) for picture in pictures]
    except UserError as error:
        _log.warning("%s: no attention: %s", run.name, error)
        return {}
    return {"attention": np.stack(seen)}


def _others(runs: Sequence[Run], reasons: Sequence[dict[str, str]]) -> list[Block]:
    """Evaluations without rows of predictions, and why an evaluation is left out."""
    out: list[Block] = []
    for run, left_out in zip(runs, reasons, strict=True):
        for name, result in run.results.items():
            kind = KINDS[result.kind]
            if kind.alone is not None:
                of = about(result).text()
                out += [Heading(f"{name}, {run.name}"), *([Text(of)] if of else []), *kind.alone(result)]
        out += [Text(f"{run.name}: {name}: {why}") for name, why in left_out.items()]
    return out


def _configuration(runs: Sequence[Run], groups: Groups) -> list[Block]:
    args = {run.name: {k: _value(v) for k, v in run.config.get("args", {}).items()} for run in runs}
    keys = dict.fromkeys(key for found in args.values() for key in found)
    rows = [_side_by_side(key, [found.get(key, "") for found in args.values()]) for key in keys]
    fixed = [key for key in ("config", "steps", "batch", "seed", "best") if key not in keys]
    rows = [_side_by_side(key, [_value(run.config.get(key, "")) for run in runs]) for key in fixed] + rows
    rows += [
        _side_by_side(f"{package} version", [_value(run.config.get("versions", {}).get(package, "")) for run in runs])
        for package in dict.fromkeys(p for run in runs for p in run.config.get("versions", {}))
    ]
    prints = [(_label(name, one), one.rows, one.fingerprint()) for name, group in groups.items() for one in group]
    files = [(f"{run.name}/{file}", digest) for run in runs for file, digest in run.digests.items()]
    caption = "SHA-256 of truth, row numbers and patients: equal for the same rows."
    return [
        Table(("argument", *(run.name for run in runs)), rows, kind="words"),
        *(Heading("Data"), Table(("evaluation, run", "rows", "digest"), prints, caption)),
        *(Heading("Files read"), Table(("file", "SHA-256"), files)),
    ]


def _side_by_side(name: str, values: list[str]) -> tuple[Any, ...]:
    differs = len(set(values)) > 1
    return (name, *(Cell(value or "–", kind="differs" if differs else "") for value in values))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
