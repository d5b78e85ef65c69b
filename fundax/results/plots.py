"""The plots of a report page: ROC, precision-recall, calibration, confusion, predicted against true, training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from fundax.metrics.calibration import reliability
from fundax.metrics.classification import roc
from fundax.results.blocks import Block, Heading, Matrix, Panels, Text
from fundax.results.evaluation import Evaluation
from fundax.results.figures import confusion_counts, largest, most_frequent
from fundax.results.panels import COLOURS, DASHES, Frame, Line, panel, svg
from fundax.results.scores import positives

Rows = Mapping[str, tuple[np.ndarray, np.ndarray]]  # run -> truth bool [n], ranks [n]
_BORDERS = ("solid", "dashed", "dotted", "dashed")
_SKIP = ("images_per_second", "data_wait", "rows", "unlabelled", "labels_used", "_low", "_high", "minus_mean_error")


def curves_of_classes(group: Sequence[Evaluation]) -> list[Block]:
    """ROC, precision-recall and calibration, with a line for each run; the panel of an absent class has only a note."""
    by_run = {evaluation.run: positives(evaluation) for evaluation in group}
    first = next(iter(by_run.values()))
    drawn = most_frequent(np.array([truth.sum() for _, _, truth, _ in first]))
    names = [first[k][0] for k in drawn]
    rows = [{run: classes[k][2:] for run, classes in by_run.items()} for k in drawn]
    parts = {
        "ROC": [_roc(name, row) for name, row in zip(names, rows, strict=True)],
        "Precision and recall": [_precision_recall(name, row) for name, row in zip(names, rows, strict=True)],
        "Calibration": _calibration(group),
    }
    bound = f" Only the {len(names)} largest of {len(first)} classes are shown." if len(names) < len(first) else ""
    level = Text(f"The dotted line of precision is the prevalence of the class, the precision of guessing.{bound}")
    runs = _key(list(by_run))
    out: list[Block] = []
    if len(names) == 1:
        titled = [(title, plot, text) for title, panels in parts.items() for _, plot, text in panels]
        out = [Heading(f"ROC, precision and recall, calibration: {names[0]}"), Panels(titled, runs, few=True), level]
        return out
    for title, panels in parts.items():
        rest = ", each class against the rest" if title != "Calibration" else ""
        out += [Heading(title + rest), Panels(panels, runs, few=len(panels) <= 3)]
        out += [level] if title == "Precision and recall" else []
    return out


def confusion(evaluation: Evaluation) -> Matrix:
    """Confusion matrix with counts and shares of the true class. Rows are true classes, columns predicted classes."""
    assert evaluation.truth is not None
    counts, names = largest(
        confusion_counts(evaluation.truth, evaluation.scores.argmax(1), len(evaluation.names)), list(evaluation.names)
    )
    k, totals = len(names), counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    cells = [[(int(counts[r, c]), float(shares[r, c]), *_fill(shares[r, c])) for c in range(k)] for r in range(k)]
    right = int((evaluation.truth == evaluation.scores.argmax(1)).sum())
    caption = f"{evaluation.run}: {right} of {len(evaluation.truth)} correct; counts and % of the true class"
    return Matrix(caption, [f"{name} (n={n})" for name, n in zip(names, totals, strict=True)], cells)


def predicted_and_true(group: Sequence[Evaluation]) -> list[Block]:
    """Mean prediction over the deciles of the true values, with a line for each run."""
    panels = []
    for c, name in enumerate(group[0].names):
        lines = []
        for k, evaluation in enumerate(group):
            assert evaluation.truth is not None
            lines.append(Line(*_deciles(evaluation.truth[:, c], evaluation.scores[:, c]), k, dots=True))
        limits = _limits(np.concatenate([v for line in lines for v in (line.x, line.y)]))
        frame = Frame(limits, limits, "true value (deciles)", "mean prediction", diagonal=True)
        panels.append(_panel(name, lines, frame))
    return [
        Heading("Predicted and true values"),
        Panels(panels, _key([evaluation.run for evaluation in group]), few=True),
    ]


def training(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> list[Block]:
    """Panels of training and evaluation metrics over steps, with a line for each run.

    `curves` maps the name of a run and of a metric to its steps and values.
    """
    names = dict.fromkeys(name for series in curves.values() for name in series if _wanted(name))
    panels = []
    for name in sorted(names, key=_order):
        by_run = {run: series[name] for run, series in curves.items() if name in series}
        if max(len(steps) for steps, _ in by_run.values()) < 2:
            continue
        styles = {run: k for k, run in enumerate(curves)}
        lines = [Line(x, y, styles[run], dots=len(x) < 20) for run, (x, y) in by_run.items()]
        steps, values = (np.concatenate([s[i] for s in by_run.values()]) for i in (0, 1))
        last = ", ".join(f"{y[-1]:.3g}" for _, y in by_run.values())
        frame = Frame((0, float(steps.max()) or 1.0), _limits(values), "step")
        panels.append(_panel(f"{name} (last {last})", lines, frame))
    if not panels:
        return [Text("No metric was logged at two steps, because these runs were only evaluated.")]
    return [Panels(panels, _key(list(curves)))]


def _key(runs: Sequence[str]) -> list[tuple[str, str]]:
    """The CSS styles of the lines by run; empty for a single run."""
    if len(runs) < 2:
        return []
    borders = [(COLOURS[k % len(COLOURS)], _BORDERS[k % len(DASHES)]) for k in range(len(runs))]
    return [(run, f"border-top-color:{colour};border-top-style:{border}")
            for run, (colour, border) in zip(runs, borders, strict=True)]  # fmt: skip


def _panel(title: str, lines: Sequence[Line], frame: Frame, notes: Sequence[str] = ()) -> tuple[str, str, str]:
    drawn = svg(partial(panel, lines=lines, frame=frame, notes=notes))
    return title, drawn, f"{frame.y_label} over {frame.x_label}. {' '.join(notes)}".strip()


def _roc(name: str, rows: Rows) -> tuple[str, str, str]:
    lines, notes = [], []
    for k, (truth, scores) in enumerate(rows.values()):
        if why := _absent(truth):
            notes.append(why)
            continue
        away, hit, area = roc(truth, scores)
        lines.append(Line(away, hit, k))
        notes.append(f"AUC {area:.3f}")
    if lines and len(rows) == 1:
        truth = next(iter(rows.values()))[0]
        notes.append(f"n = {int(truth.sum())} of {len(truth)}")
    frame = Frame(x_label="1 − specificity", y_label="sensitivity", diagonal=True)
    return _panel(name, lines, frame, notes if lines else list(dict.fromkeys(notes)))


def _precision_recall(name: str, rows: Rows) -> tuple[str, str, str]:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    lines, notes, share = [], [], math.nan
    for k, (truth, scores) in enumerate(rows.values()):
        if why := _absent(truth):
            notes.append(why)
            continue
        precision, recall, _ = precision_recall_curve(truth, scores)
        begin = int(np.flatnonzero(recall == recall.max())[-1])  # lower thresholds only add false positives
        lines.append(Line(recall[begin:-1][::-1], precision[begin:-1][::-1], k))  # scikit-learn adds the point (0, 1)
        notes.append(f"AP {average_precision_score(truth, scores):.3f}")
        share = float(truth.mean())
    frame = Frame(x_label="recall (sensitivity)", y_label="precision", level=share)
    return _panel(name, lines, frame, notes if lines else list(dict.fromkeys(notes)))


def _calibration(group: Sequence[Evaluation]) -> list[tuple[str, str, str]]:
    """Reliability: predicted probability against observed frequency."""
    frame = Frame(x_label="predicted probability", y_label="observed frequency", diagonal=True)
    if group[0].kind == "classification":
        scores = [evaluation.scores[:, 1] if evaluation.binary else evaluation.scores for evaluation in group]
        lines = [
            _reliability(evaluation.truth, score, k)
            for k, (evaluation, score) in enumerate(zip(group, scores, strict=True))
        ]
        title = f"Probability of {group[0].names[1]}" if group[0].binary else "Confidence of the predicted class"
        return [_panel(title, lines, frame)]
    labels = [positives(evaluation) for evaluation in group]
    return [
        _panel(name, [_reliability(rows[c][2].astype(int), rows[c][3], k) for k, rows in enumerate(labels)], frame)
        for c in most_frequent(np.array([truth.sum() for _, _, truth, _ in labels[0]]))
        for name in group[0].names[c : c + 1]
    ]


def _reliability(truth: np.ndarray | None, scores: np.ndarray, style: int) -> Line:
    curve = reliability(truth, scores, bins=10)
    filled = curve["count"] > 0
    return Line(curve["confidence"][filled], curve["observed"][filled], style, dots=True)


def _absent(truth: np.ndarray) -> str:
    if not len(truth):
        return "no labelled row"
    return "" if truth.any() and not truth.all() else "absent" if not truth.any() else "the only class"


def _fill(share: float) -> tuple[str, str]:
    """Background colour, from white to dark blue, and text colour of a share from 0 to 1."""
    low, middle, high = (247, 251, 255), (107, 174, 214), (8, 48, 107)
    rgb = [round(float(np.interp(share, (0, 0.5, 1), three))) for three in zip(low, middle, high, strict=True)]
    return "rgb({},{},{})".format(*rgb), "#fff" if share > 0.6 else "#1a1a1a"


def _deciles(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(truth) & np.isfinite(predicted)
    parts = [p for p in np.array_split(np.argsort(truth[known], kind="stable"), 10) if len(p)]
    x, y = (np.array([v[known][p].mean() for p in parts]) for v in (truth, predicted))
    return x, y


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    room = (high - low or abs(high) or 1.0) * 0.06
    return low - room, high + room


def _wanted(name: str) -> bool:
    return name.count("/") < 2 and not name.endswith(_SKIP)


def _order(name: str) -> tuple[bool, bool, bool, str]:
    training = name.startswith("train/")
    return not name.endswith("train/loss"), training, not name.endswith(("loss", "auc", "accuracy")), name
