"""The presentation of each kind of evaluation: statistics, section of the report page, cases and figures.

`KINDS` maps the kind of a result to its presentation; a new kind of evaluation adds an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.records import EYES, MODALITIES
from fundax.evals.kinds import (
    ClassificationResult,
    FewShotResult,
    LandmarkResult,
    ReconstructionResult,
    RegressionResult,
    Result,
    SegmentationResult,
)
from fundax.metrics.statistics import Weighted
from fundax.results import cases, evaluation, figures, reports, scores, sections
from fundax.results.about import about
from fundax.results.blocks import Block
from fundax.results.cases import View
from fundax.results.evaluation import Evaluation
from fundax.results.read import Run
from fundax.results.sections import Context
from fundax.results.tables import by_class

WORDS = {"modality": MODALITIES, "eye": tuple(eye or "unknown" for eye in EYES), "sex": ("female", "male")}


class Kind(NamedTuple):
    """The presentation of a kind of evaluation.

    Args:
        rows: converts a result to rows of predictions; None if the kind has no rows.
        scores: computes the metrics of the rows.
        page: makes the blocks of the page for the same evaluation of several runs.
        alone: makes the blocks of a result without rows.
        cases: captions and order of the thumbnails.
        figures: functions (result, path) that write a figure, by the suffix of the file name.
        console: makes the table that is printed after a run.
    """

    rows: Callable[[Any], evaluation.View] | None = None
    scores: Callable[[Evaluation], dict[str, Weighted]] | None = None
    page: Callable[[Sequence[Evaluation], Context], list[Block]] | None = None
    alone: Callable[[Any], list[Block]] | None = None
    cases: View | None = None
    figures: Mapping[str, Callable[[Any, Path], Path]] = {}
    console: Callable[[Any, str], Any] | None = None


def _draw_confusion(result: ClassificationResult, path: Path) -> Path:
    return figures.confusion(
        result.labels, result.probabilities, list(map(str, result.classes)), path, about(result).text()
    )


def _draw_roc(result: ClassificationResult, path: Path) -> Path:
    return figures.roc(result.labels, result.ranks, list(map(str, result.classes)), path, about(result).text())


def _draw_masks(result: SegmentationResult, path: Path) -> Path:
    legend = "Left to right: photograph, reference, prediction"
    return _sheet(result, path, measure="mean Dice {:.3f}", legend=legend)


def _draw_points(result: LandmarkResult, path: Path) -> Path:
    legend = "Left: photograph. Right: reference (circles) and prediction (crosses)"
    return _sheet(result, path, measure="mean error {:.1f} pixels of the original", legend=legend)


def _sheet(result: Any, path: Path, **shown: str) -> Path:
    index, names = result.rows.index if result.rows else None, list(map(str, result.names))
    return cases.sheet(result.cases, index, path, names=names, about=about(result).text(), **shown)


def _draw_scatter(result: RegressionResult, path: Path) -> Path:
    return figures.scatter(result.value, result.predicted, result.names, path, about(result).text())


def _draw_pairs(result: ReconstructionResult, path: Path) -> Path:
    return figures.pairs(result.pictures, result.reconstruction, path, about(result).text())


def _draw_shots(result: FewShotResult, path: Path) -> Path:
    return figures.shots(result, path, about(result).text())


_MEASURES = Kind(
    rows=evaluation.of_measures,
    scores=scores.of_measures,
    page=sections.measures,
    cases=View(cases.measure_caption, cases.score_goodness),
    figures={"_cases.png": _draw_masks},
)

KINDS: dict[str, Kind] = {
    "scores": Kind(alone=sections.arrays),
    "classification": Kind(
        rows=evaluation.of_classes,
        scores=scores.of_classes,
        page=sections.classification,
        cases=View(cases.class_caption, cases.class_goodness),
        figures={"_confusion.png": _draw_confusion, "_roc.png": _draw_roc},
        console=by_class,
    ),
    "multi_label": Kind(
        rows=evaluation.of_classes,
        scores=scores.of_labels,
        page=sections.classification,
        cases=View(cases.label_caption, cases.error_goodness),
        figures={"_roc.png": _draw_roc},
        console=by_class,
    ),
    "regression": Kind(
        rows=evaluation.of_values,
        scores=scores.of_values,
        page=sections.regression,
        cases=View(cases.value_caption, cases.error_goodness),
        figures={"_scatter.png": _draw_scatter},
    ),
    "segmentation": _MEASURES,
    "landmarks": _MEASURES._replace(
        cases=View(cases.measure_caption, cases.distance_goodness), figures={"_cases.png": _draw_points}
    ),
    "retrieval": Kind(alone=sections.retrieval),
    "few_shot": Kind(alone=sections.few_shot, figures={"_shots.png": _draw_shots}),
    "reports": Kind(alone=reports.blocks, figures={".html": reports.page, ".png": reports.sheet}),
    "reconstruction": Kind(alone=sections.reconstruction, figures={"_pictures.png": _draw_pairs}),
}


def evaluations(run: Run) -> tuple[list[Evaluation], dict[str, str]]:
    """The evaluations of a run with rows of predictions, and by name the reasons why others have no rows."""
    out, reasons = [], {}
    for name, result in run.results.items():
        kind = KINDS[result.kind]
        if kind.rows is None or kind.scores is None:
            continue
        try:
            names, values, truth, ranks = kind.rows(result)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        words = WORDS | {"modality": (*MODALITIES, *_declared(run))}
        more: Any = evaluation.row_columns(getattr(result, "rows", None), len(values), words)
        out.append(Evaluation(run.name, name, result, about(result), names, values, truth, ranks, kind.scores, **more))
    return out, reasons


def _declared(run: Run) -> tuple[str, ...]:
    """The modalities that a run's own data declared, in the order of their numbers."""
    found = run.config.get("data", {}).get("modalities", {}).get("modalities", {})
    return tuple(name for name in found if name not in MODALITIES)


def draw(result: Result, folder: Path, name: str) -> list[Path]:
    """Draw the figures of a result, and return their paths. A result without thumbnails has no sheet of cases."""
    wanted = KINDS[result.kind].figures
    there = {suffix: f for suffix, f in wanted.items() if suffix != "_cases.png" or _has_scores(result)}
    return [function(result, folder / f"{name}{suffix}") for suffix, function in there.items()]


def _has_scores(result: Any) -> bool:
    return result.cases is not None and result.cases.picture_score is not None
