"""Cases of an evaluation: its thumbnails with the truth and the prediction, for the report page and as a PNG sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fundax.evals.kinds import Cases
from fundax.evals.pictures import COLOURS as PAINT
from fundax.results.blocks import Case, Gallery, picture
from fundax.results.evaluation import Evaluation
from fundax.results.panels import png
from fundax.types import UserError

MOST = 16  # thumbnails of one evaluation of one run


class View(NamedTuple):
    """Functions that show the cases of a kind of evaluation.

    `caption` maps (evaluation, row) to a title and a text. `goodness` maps (evaluation, rows [T]) to f64 [T], higher for
    better cases.
    """

    caption: Callable[[Evaluation, int], tuple[str, str]]
    goodness: Callable[[Evaluation, np.ndarray], np.ndarray]


def gallery(evaluation: Evaluation, cases: Cases, view: View, more: Mapping[str, np.ndarray]) -> Gallery | None:
    """Thumbnails with truth and prediction, grouped by the kind of case, or into the best and the worst cases.

    `more` are further overlays u8 [T h w 3] by name. Returns None if no thumbnail belongs to a row of the evaluation.
    """
    inside = np.flatnonzero((cases.picture_row >= 0) & (cases.picture_row < evaluation.rows))
    if not len(inside):
        return None
    shown = {} if cases.picture_overlay is None else {"overlay": cases.picture_overlay}
    shown |= more
    goodness = view.goodness(evaluation, cases.picture_row[inside])
    order = [int(k) for k in inside[np.argsort(-goodness, kind="stable")]]
    if cases.picture_kind is not None:
        kinds = dict.fromkeys(str(cases.picture_kind[k]) for k in order)
        split = {kind: [k for k in order if str(cases.picture_kind[k]) == kind] for kind in kinds}
    else:
        half = len(order) // 2
        split = {"best": order[:half], "worst": order[::-1][: len(order) - half]}
    each = max(1, MOST // max(len(split), 1))
    groups = [
        (f"{evaluation.run}: {kind}", [_case(evaluation, cases, view, shown, k) for k in chosen[:each]])
        for kind, chosen in split.items() if chosen
    ]  # fmt: skip
    height, width = cases.pictures.shape[1:3]
    return Gallery(groups, width > 1.4 * height, f"Below each image: {', '.join(shown)}." if shown else "")


def _case(evaluation: Evaluation, cases: Cases, view: View, shown: Mapping[str, np.ndarray], k: int) -> Case:
    row = int(cases.picture_row[k])
    images = [(picture(cases.pictures[k]), f"row {row}")]
    images += [(picture(overlay[k]), f"row {row}, {name}") for name, overlay in shown.items()]
    title, words = view.caption(evaluation, row)
    return Case(images, title, words, f"row {row}" if evaluation.index is None else f"index {evaluation.index[row]}")


def class_caption(evaluation: Evaluation, row: int) -> tuple[str, str]:
    """The true class, and the predicted class with its probability."""
    assert evaluation.truth is not None
    truth, scores = int(evaluation.truth[row]), evaluation.scores[row]
    best = int(scores.argmax())
    if best == truth:
        return evaluation.names[truth], f"predicted correctly ({scores[best]:.2f})"
    return evaluation.names[
        truth
    ], f"predicted as {evaluation.names[best]} ({scores[best]:.2f}); true class {scores[truth]:.2f}"


def label_caption(evaluation: Evaluation, row: int) -> tuple[str, str]:
    """The findings that are present, and the findings that were predicted wrongly."""
    assert evaluation.truth is not None
    truth, scores = evaluation.truth[row], evaluation.scores[row]
    known = np.flatnonzero(np.isfinite(truth))
    present = [evaluation.names[k] for k in known if truth[k] > 0.5]
    wrong = [k for k in known if (scores[k] >= 0.5) != (truth[k] > 0.5)]
    wrongly = ", ".join(
        f"{'+' if scores[k] >= 0.5 else '−'} {evaluation.names[k]} ({scores[k]:.2f})" for k in wrong[:4]
    )
    return ", ".join(present) or "no finding", wrongly or "all correct"


def value_caption(evaluation: Evaluation, row: int) -> tuple[str, str]:
    """Predicted and true values."""
    assert evaluation.truth is not None
    rows = zip(evaluation.names, evaluation.scores[row], evaluation.truth[row], strict=True)
    return "", "; ".join([f"{name} {predicted:.3g} (true {true:.3g})" for name, predicted, true in rows][:4])


def measure_caption(evaluation: Evaluation, row: int) -> tuple[str, str]:
    """The measures of the case."""
    parts = [f"{name} {value:.3g}" for name, value in zip(evaluation.names, evaluation.scores[row], strict=True)]
    return parts[0], ", ".join(parts[1:4])


def class_goodness(evaluation: Evaluation, rows: np.ndarray) -> np.ndarray:
    """Probability of the true class."""
    assert evaluation.truth is not None
    return evaluation.scores[rows, evaluation.truth[rows]]


def error_goodness(evaluation: Evaluation, rows: np.ndarray) -> np.ndarray:
    """Minus the mean absolute difference of scores and truth."""
    assert evaluation.truth is not None
    return -np.nan_to_num(np.abs(evaluation.scores - evaluation.truth)[rows]).mean(1)


def score_goodness(evaluation: Evaluation, rows: np.ndarray) -> np.ndarray:
    """The first measure, such as Dice: higher is better."""
    return np.nan_to_num(evaluation.scores[rows, 0])


def distance_goodness(evaluation: Evaluation, rows: np.ndarray) -> np.ndarray:
    """Minus the first measure, such as a distance: lower is better."""
    return -np.nan_to_num(evaluation.scores[rows, 0])


def sheet(
    cases: Cases,
    index: np.ndarray | None,
    path: str | Path,
    *,
    measure: str = "score {:.3g}",
    legend: str = "",
    names: Sequence[str] = (),
    about: str = "",
) -> Path:
    """Write a PNG of the thumbnails in two columns, each with its row and its score. Returns the path.

    Args:
        cases: thumbnails with scores.
        index: rows of the source, or None to number the rows of the result.
        path: path of the PNG file.
        measure: format of a score with its name and unit.
        legend: description of the parts of a thumbnail.
        names: names of the classes or landmarks, in the order of the overlay's colours.
        about: the data, part and step, written below.

    Raises UserError if the thumbnails have no scores.
    """
    from matplotlib.patches import Patch

    pictures, score = cases.pictures, cases.picture_score
    if pictures.ndim != 4 or not len(pictures) or score is None:
        raise UserError(f"pictures {pictures.shape}; expected [T h w 3] with a score each")
    rows, aspect = math.ceil(len(pictures) / 2), pictures.shape[2] / pictures.shape[1]
    with png(path, (9.4, (4.6 / aspect + 0.3) * rows + 0.6), list(names), about) as (figure, shown):
        for at, axes in enumerate(figure.subplots(rows, 2, squeeze=False).ravel()):
            axes.set_axis_off()
            if at < len(pictures):
                row = cases.picture_row[at]
                axes.imshow(pictures[at])
                title = f"row {row if index is None else index[row]}: {measure.format(score[at])}"
                axes.set_title(title, loc="left", fontsize=9, fontweight="normal")
        if legend:
            figure.suptitle(legend, fontsize=9.5, fontweight="normal")
        if shown:
            colours = ["#{:02x}{:02x}{:02x}".format(*PAINT[k % len(PAINT)]) for k in range(len(shown))]
            patches = [Patch(facecolor=c, edgecolor="#606060", label=n) for c, n in zip(colours, shown, strict=True)]
            figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return Path(path)
