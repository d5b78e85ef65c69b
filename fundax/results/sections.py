"""The section of the report page for each kind of evaluation, as blocks: tables, plots, and reasons for missing values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fundax.evals.kinds import ClassificationResult, FewShotResult, ReconstructionResult, Result, RetrievalResult
from fundax.metrics.statistics import Estimate, auc_interval
from fundax.results import plots, scores
from fundax.results.blocks import (
    Block,
    Case,
    Cell,
    Columns,
    Gallery,
    Heading,
    Table,
    Text,
    number,
    picture,
    plain,
)
from fundax.results.evaluation import GROUPS, Evaluation

_PER_CLASS = ("AUC", "AP", "sensitivity", "specificity", "precision", "F1")


class Context(NamedTuple):
    """Settings of a section: the number of resamples, and a function to the evaluation on validation data."""

    resamples: int
    validation: Callable[[Evaluation], Evaluation | None]


def classification(group: Sequence[Evaluation], context: Context) -> list[Block]:
    """Curves, calibration, confusion, metrics by class, operating points and horizons of a classification."""
    out: list[Block] = [*plots.curves_of_classes(group), _probabilities(group)]
    if group[0].kind == "classification":
        out += [Heading("Confusion"), Columns([plots.confusion(evaluation) for evaluation in group])]
    for evaluation in group:
        out += [*_classes(evaluation), *_operating(evaluation, context.validation(evaluation)), *_horizons(evaluation)]
    return out


def regression(group: Sequence[Evaluation], context: Context) -> list[Block]:
    """Predicted against true values, and the metrics of each target."""
    return [*plots.predicted_and_true(group), *(_targets(evaluation, context.resamples) for evaluation in group)]


def measures(group: Sequence[Evaluation], context: Context) -> list[Block]:
    """The logged metrics of an evaluation of masks or landmarks."""
    out: list[Block] = []
    for evaluation in group:
        out += (
            [Heading(f"As logged: {evaluation.run}"), *logged(evaluation.result)] if evaluation.result.metrics else []
        )
    return out


def logged(result: Result) -> list[Block]:
    """The metrics of a result, without metrics of single classes."""
    rows = [(name, plain(value, 4)) for name, value in result.metrics.items() if "/" not in name]
    return [Table(("metric", "value"), rows)] if rows else []


def arrays(result: Any) -> list[Block]:
    """The metrics of a result without figures, its table (arrays table_NAME [rows]), and the shapes of other arrays.

    The arrays table_NAME_value, table_NAME_low and table_NAME_high are one column with intervals.
    """
    columns = {key.removeprefix("table_"): array for key, array in result.other.items() if key.startswith("table_")}
    with_interval = [name.removesuffix("_low") for name in columns if name.endswith("_low")]
    cells: dict[str, list[Cell | str]] = {}
    for name, values in columns.items():
        stem, _, end = name.rpartition("_")
        if stem not in with_interval:
            cells[name.replace("_", " ")] = [_plain_cell(value) for value in values]
        elif end == "value":
            low, high = (columns[f"{stem}_{bound}"] for bound in ("low", "high"))
            each = zip(values, low, high, strict=True)
            head = stem.replace("_", " ").replace("auc", "AUC")
            cells[f"{head} (95 % interval)"] = [
                number(Estimate(float(value), float(a), float(b))) for value, a, b in each
            ]
    rows = list(zip(*cells.values(), strict=True))
    listed = ", ".join(f"{key} {list(array.shape)}" for key, array in result.other.items() if key[:6] != "table_")
    table = [Table(list(cells), rows)] if rows else []
    return [*logged(result), *table, *([Text(f"Not shown: {listed}.")] if listed else [])]


def _plain_cell(value: Any) -> Cell | str:
    return plain(float(value)) if isinstance(value, np.floating) else str(value)


def retrieval(result: RetrievalResult) -> list[Block]:
    """Recall at k and ranks in both directions."""
    return logged(result)


def reconstruction(result: ReconstructionResult) -> list[Block]:
    """Images with their reconstructions below."""
    shown = [
        Case([(picture(image), f"image {k + 1}"), (picture(again), f"reconstruction {k + 1}")], "", "")
        for k, (image, again) in enumerate(zip(result.pictures, result.reconstruction, strict=True))
    ]
    return [*logged(result), Gallery([("", shown)], note="Above: image. Below: reconstruction.")]


def few_shot(result: FewShotResult) -> list[Block]:
    """Macro AUC and balanced accuracy by method and number of images per class."""
    rows = []
    for method, shots in dict.fromkeys(zip(map(str, result.method), map(int, result.shots), strict=True)):
        mine = (result.method == method) & (result.shots == shots)
        cells = [_over_draws(values[mine]) for values in (result.macro_auc, result.balanced_accuracy)]
        rows.append((method.replace("_", " "), shots, int(mine.sum()), number(scores.over_draws(result, mine)), *cells))
    caption = (
        "Means over draws of the training images. The first column of macro AUC has an interval over the patients of the "
        "test set (200 resamples); the other columns have the standard deviation over draws."
    )
    head = ("method", "images per class", "draws", "macro AUC, interval", "macro AUC", "balanced accuracy")
    return [Table(head, rows, caption)]


def subgroups(evaluation: Evaluation, resamples: int) -> list[Block]:
    """The main metric by subgroup, and the gaps between groups."""
    if not evaluation.columns:
        return [
            Heading("Subgroups"),
            Text(f"{evaluation.run}: no attribute of the rows ({', '.join(GROUPS)}) has two values."),
        ]
    name, table, gaps = scores.subgroups(evaluation, resamples)
    head = ("group", "rows", "patients", *(("positives",) if evaluation.binary else ()), name)
    rows = []
    for r in table:
        group = "all" if r.attribute == "all" else f"{r.attribute}: {r.group}"
        rows.append((group, r.rows, r.patients, *((r.positives,) if evaluation.binary else ()), number(r.estimate)))
    gap_rows = [(attribute, number(gap), gap.note if gap.defined else "") for attribute, gap in gaps.items()]
    caption = f"Groups of fewer than {scores.LEAST} patients are blank. Ages are grouped in bands of years."
    gap_caption = "Intervals of gaps resample patients and do not account for the choice of the two groups."
    return [
        Heading(f"Subgroups: {evaluation.run}"),
        Table(head, rows, caption),
        Table(("largest gap", name, "between"), gap_rows, gap_caption, kind="words"),
    ]


def _probabilities(group: Sequence[Evaluation]) -> Table:
    by_run = {evaluation.run: scores.probability_scores(evaluation) for evaluation in group}
    names = next(iter(by_run.values()))
    if len(names) <= 2:
        return Table(("run", *names), [(run, *(number(each[n]) for n in names)) for run, each in by_run.items()])
    return Table(("", *by_run), [(n, *(number(each[n]) for each in by_run.values())) for n in names])


def _classes(evaluation: Evaluation) -> list[Block]:
    rows = []
    for name, count, metrics, why in scores.by_class(evaluation):
        cells = [
            number(metrics[key]) if metrics[key].defined or key == "AUC" else _dash(metrics[key], why)
            for key in _PER_CLASS
        ]
        rows.append((name, count, *cells))
    where = "at probability 0.5" if evaluation.kind == "multi_label" else "of the most probable class"
    by_logit = " Rows are ranked by the logit of the class." if _ranked_by_logits(evaluation) else ""
    caption = f"{evaluation.run}: AUC with DeLong's interval; sensitivity to F1 {where}.{by_logit}"
    return [Heading("By class"), Table(("class", "n", *_PER_CLASS), rows, caption)]


def _ranked_by_logits(evaluation: Evaluation) -> bool:
    return evaluation.ranks is not evaluation.scores and not np.array_equal(evaluation.ranks, evaluation.scores)


def _operating(evaluation: Evaluation, chosen_on: Evaluation | None) -> list[Block]:
    rows = []
    for name, point, metrics in scores.operating(evaluation, chosen_on):
        keys = ("sensitivity", "specificity", "ppv", "npv")
        cells = [number(metrics[key]) if key in metrics and not point.note else Cell("–", kind="blank") for key in keys]
        threshold = Cell("–", point.note, "blank") if point.note else plain(point.threshold)
        title = f"{name}, {_short(point.chosen_for)}" if point.chosen_for else name
        rows.append((title, threshold, *cells))
    where = f"on {chosen_on.name}" if chosen_on is not None else "on the same rows, which makes the numbers optimistic"
    caption = (
        f"{evaluation.run}: thresholds are chosen {where}. Exact (Clopper-Pearson) intervals treat rows as independent."
    )
    logits = _ranked_by_logits(evaluation)
    caption += " Thresholds are logits, because zero-shot classification ranks the rows by logits." if logits else ""
    head = (
        "class, chosen for",
        "threshold (logit)" if logits else "threshold (probability)",
        "sensitivity",
        "specificity",
        "PPV",
        "NPV",
    )
    return [Heading("Operating points"), Table(head, rows, caption)]


def _horizons(evaluation: Evaluation) -> list[Block]:
    bands = getattr(evaluation.result, "horizons", None)
    if bands is None:
        return []
    titles = {"rows": "rows", "positives": "positives", "auc": "AUC", "f1": "F1", "brier": "Brier score", "ece": "ECE"}
    columns = {titles[key]: a for key in titles if (a := getattr(bands, key)) is not None}
    notes = [""] * len(bands.from_) if bands.note is None else list(map(str, bands.note))
    rows = []
    for k, note in enumerate(notes):
        cells = [plain(float(a[k])) if a.dtype.kind == "f" else str(a[k]) for a in columns.values()]
        rows.append((f"{bands.from_[k]:g} to {bands.to[k]:g}", *cells, note))
    return [
        Heading(f"By horizon: {evaluation.run}"),
        Table(("horizon, days", *columns, ""), rows, _days_alone(evaluation)),
    ]


def _days_alone(evaluation: Evaluation) -> str:
    found = evaluation.result
    if not isinstance(found, ClassificationResult) or found.rows is None or found.rows.horizon is None:
        return ""
    alone = number(auc_interval(found.labels == 1, found.rows.horizon, patients=evaluation.patients))
    return f"The number of days alone, without an image, has an AUC of {alone.text} ({alone.small})."


def _targets(evaluation: Evaluation, resamples: int) -> Table:
    targets = scores.targets(evaluation, resamples)
    rows = [(name, count, *map(number, values.values())) for name, count, values in targets]
    return Table(("target", "rows", *targets[0][2]), rows, f"{evaluation.run}: each target in its own unit.")


def _short(chosen_for: str) -> str:
    short = chosen_for.replace("sensitivity", "sens.").replace("specificity", "spec.").replace(">=", "≥")
    return short or "no threshold"


def _dash(estimate: Estimate, why: str) -> Cell:
    """A dash with the reason, unless the AUC in the same row has the same reason."""
    return Cell("–", "" if why and estimate.note == why else estimate.note, "blank")


def _over_draws(values: Iterable[float]) -> Cell:
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return number(Estimate(float("nan")))
    return Cell(f"{known.mean():.3f}", f"± {known.std(ddof=1):.3f}" if len(known) > 1 else "one draw", "value")
