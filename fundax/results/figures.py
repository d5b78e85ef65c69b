"""Figures of a run as PNG files: confusion matrix, ROC curves, training curves, few-shot results, regression.

Every function writes one PNG and returns its path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fundax.metrics import classification as metrics
from fundax.results.panels import COLOURS, Frame, Line, panel, plain, png, style
from fundax.results.read import read_curves
from fundax.types import UserError

MOST_CLASSES = 24  # drawn in a figure or a matrix

# metrics that share an axis from 0 to 1
HIGHER = (
    *("macro_auc", "macro_ap", "macro_accuracy", "accuracy", "balanced_accuracy", "macro_f1", "kappa", "r2", "pearson"),
    *("mean_dice", "mean_iou", "mean_sensitivity", "within_half"),
)


def confusion(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], path: str | Path, about: str = ""
) -> Path:
    """Draw a confusion matrix with counts and percentages of the true class.

    The predicted class has the highest score. A class without rows has an empty row. If there are more than MOST_CLASSES
    classes, the largest classes are drawn, and the others as a single class.

    Args:
        labels: i32 [N].
        scores: f32 [N K].
        classes: class names.
        path: path of the PNG file, which is returned.
        about: the data, part and step, written below.

    Raises UserError for inconsistent shapes.
    """
    labels, scores = _checked(labels, scores, classes)
    counts, classes = largest(confusion_counts(labels, scores.argmax(axis=1), len(classes)), list(classes))
    k, totals = len(classes), counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = max(4.5, 0.62 * k + 2.6)
    with png(path, (side + 0.8, side), classes, about) as (figure, names):
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = "white" if share[row, column] > 0.55 else "#1a1a1a"
            text = f"{counts[row, column]}\n{100 * share[row, column]:.0f} %"
            axes.text(column, row, text, ha="center", va="center", color=dark, fontsize=8)
        axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        rows = [f"{name} (n={n})" for name, n in zip(names, totals[:, 0], strict=True)]
        axes.set_yticks(range(k), rows)
        axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#d0d0d0", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel="Predicted", ylabel="True")
        right = int((labels == scores.argmax(axis=1)).sum())
        share_right = 100 * right / max(len(labels), 1)
        axes.set_title(f"Confusion matrix: {right} of {len(labels)} correct ({share_right:.1f} %)", loc="left")
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
        bar.set_label("Share of the true class")
        bar.outline.set_visible(False)
    return Path(path)


def roc(labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], path: str | Path, about: str = "") -> Path:
    """Draw one-vs-rest ROC curves: a panel with the macro average of the classes present, then a panel for each class.

    The macro curve is the mean sensitivity at equal false positive rates. Each panel shows its own curve in colour and
    the others in grey, because many curves on the same axes are hard to distinguish. If there are more than MOST_CLASSES
    classes, only the largest classes have a panel, but the macro average is over all classes.

    Args:
        labels: i32 [N], or f32 [N K] of 0, 1 and NaN (multi-label).
        scores: f32 [N K], higher is more likely.
        classes: class names.
        path: path of the PNG file, which is returned.
        about: the data, part and step, written below.

    Raises UserError for inconsistent shapes.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim == 1:
        labels, scores = _checked(labels, scores, classes)
        labels = (labels[:, None] == np.arange(len(classes))[None]).astype(np.float32)
    away = np.linspace(0, 1, 501)
    rocs = _roc_curves(labels, scores, away)  # class to (curve, AUC)
    drawn = most_frequent((labels == 1).sum(0))
    others = [Line(away, rocs[k][0], -1) for k in drawn if k in rocs]
    columns = min(4, len(drawn) + 1)
    rows = math.ceil((len(drawn) + 1) / columns)
    with png(path, (2.6 * columns, 2.75 * rows + 0.3), classes, about) as (figure, names):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for at, axes in enumerate(grid):
            axes.set_visible(at <= len(drawn))
            axes.tick_params(labelbottom=at + columns > len(drawn), labelleft=at % columns == 0)
        if rocs:
            mean = np.mean([curve for curve, _ in rocs.values()], axis=0)
            area = np.mean([value for _, value in rocs.values()])
            _roc_panel(grid[0], "Macro average", away, others, mean, f"AUC {area:.3f}\n{len(rocs)} classes")
        for k, axes in zip(drawn, grid[1:], strict=False):
            count = (labels[:, k] == 1).sum()
            if k in rocs:
                _roc_panel(axes, names[k], away, others, rocs[k][0], f"AUC {rocs[k][1]:.3f}\nn = {count}")
            else:
                why = "no other class" if count else "absent"
                _roc_panel(axes, names[k], away, others, None, f"{why}\nn = {count}")
        figure.supxlabel("False positive rate (1 - specificity)")
        figure.supylabel("True positive rate (sensitivity)")
        rest = "" if len(drawn) == len(classes) else f"; the {len(drawn)} largest of {len(classes)} classes"
        figure.suptitle(f"ROC, each class against the rest: {len(labels)} images{rest}", fontweight="bold", fontsize=11)
    return Path(path)


def curves(metrics: str | Path, path: str | Path) -> Path:
    """Draw training curves from metrics.jsonl: the loss, the learning rate and the metrics of evals, over the step.

    The metrics in a panel have the same unit. Returns the path. Raises UserError if the file has no rows to draw.
    """
    if not Path(metrics).is_file():
        raise UserError(f"{metrics}: expected the metrics.jsonl of a run")
    series = read_curves(Path(metrics))
    panels = panels_of(series)
    if not panels:
        raise UserError(f"{metrics}: no rows to draw; expected metrics such as train/loss with a step")
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with png(path, (4.3 * columns, 3.2 * rows), []) as (figure, _):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, names) in zip(grid, panels.items(), strict=False):
            _panel(axes, title, {name: series[name] for name in names})
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
    return Path(path)


def pairs(pictures: np.ndarray, reconstruction: np.ndarray, path: str | Path, about: str = "") -> Path:
    """Draw images above their reconstructions, u8 [N H W 3] each. Returns the path."""
    if pictures.shape != reconstruction.shape or pictures.ndim != 4 or not len(pictures):
        raise UserError(f"images {pictures.shape} and reconstructions {reconstruction.shape}; expected [N H W 3] twice")
    with png(path, (1.7 * len(pictures) + 0.4, 3.7), [], about) as (figure, _):
        grid = figure.subplots(2, len(pictures), squeeze=False)
        for row, (title, images) in enumerate((("Image", pictures), ("Reconstruction", reconstruction))):
            for axes, image in zip(grid[row], images, strict=True):
                axes.imshow(image, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
            grid[row, 0].set_ylabel(title, fontweight="bold")
    return Path(path)


def shots(table: Mapping[str, np.ndarray], path: str | Path, about: str = "") -> Path:
    """Draw few-shot results: for each method, mean and standard deviation over draws by number of images per class.

    `table` has method, shots, balanced_accuracy and macro_auc [draws], as in FewShotResult. Results with zero shots are
    horizontal lines. Returns the path.
    """
    method, count = np.asarray(table["method"]), np.asarray(table["shots"])
    ticks = sorted({int(n) for n in count if n})
    titles = {"balanced_accuracy": "Balanced accuracy", "macro_auc": "Macro AUC"}
    with png(path, (9.4, 3.9), [], about) as (figure, _):
        for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for k, name in enumerate(dict.fromkeys(method)):
                draws = {n: table[key][(method == name) & (count == n)] for n in np.unique(count[method == name])}
                label, shown = str(name).replace("_", " "), style(k)
                if list(draws) == [0]:
                    axes.axhline(draws[0].mean(), label=label, **shown)
                    continue
                means, spread = (
                    [d.mean() for d in draws.values()],
                    [d.std(ddof=min(1, len(d) - 1)) for d in draws.values()],
                )
                axes.errorbar(list(draws), means, spread, label=label, marker="o", markersize=3.5, capsize=2.5, **shown)
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(n) for n in ticks], minor=False)
            axes.set(xlabel="Labelled images per class")
            axes.set_title(title, loc="left")
            plain(axes)
        figure.axes[0].legend(frameon=False, fontsize=8, loc="best")
    return Path(path)


def scatter(truth: np.ndarray, predicted: np.ndarray, names: Any, path: str | Path, about: str = "") -> Path:
    """Draw predicted over true values f32 [N K], with a panel and the diagonal for each target. Returns the path."""
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    with png(path, (2.9 * columns, 3.0 * rows), [str(name) for name in names], about) as (figure, shown):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for k, axes in enumerate(grid):
            axes.set_visible(k < len(names))
        for k, (axes, name) in enumerate(zip(grid, shown, strict=False)):
            known = ~np.isnan(truth[:, k])
            y, p = truth[known, k], predicted[known, k]
            axes.scatter(y, p, s=9, alpha=0.5, color=COLOURS[0], linewidths=0)
            axes.set_title(f"{name} (n={len(y)})", loc="left")
            if len(y):
                ends = float(min(y.min(), p.min())), float(max(y.max(), p.max()))
                axes.plot(ends, ends, color="#9a9a9a", linewidth=0.8, linestyle=(0, (2, 3)))
            plain(axes)
        figure.supxlabel("True")
        figure.supylabel("Predicted")
    return Path(path)


def confusion_counts(labels: np.ndarray, called: np.ndarray, classes: int) -> np.ndarray:
    """Counts i64 [K K]: rows are the truth, columns the predictions."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, called), 1)
    return counts


def most_frequent(totals: np.ndarray) -> list[int]:
    """The classes with the most rows, at most MOST_CLASSES, in the original order."""
    order = np.argsort(-totals, kind="stable")[:MOST_CLASSES]
    return sorted(int(k) for k in order)


def largest(counts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Merge the smaller classes of counts [K K] into a single last class, so that at most MOST_CLASSES + 1 remain."""
    kept = most_frequent(counts.sum(1))
    if len(kept) == len(names):
        return counts, names
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    out = np.zeros((len(kept) + 1, len(kept) + 1), np.int64)
    np.add.at(out, (place[:, None], place[None]), counts)
    return out, [*(names[k] for k in kept), f"{len(names) - len(kept)} other classes"]


def _checked(labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or scores.shape != (len(labels), len(classes)):
        raise UserError(
            f"labels {labels.shape} and scores {scores.shape}; expected [N] and [N {len(classes)}] for "
            f"{len(classes)} classes"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise UserError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {len(classes) - 1}")
    return labels, scores


def _roc_curves(labels: np.ndarray, scores: np.ndarray, away: np.ndarray) -> dict[int, tuple[np.ndarray, float]]:
    out = {}
    for k in range(scores.shape[1]):
        known = ~np.isnan(labels[:, k])
        truth, score = labels[known, k] == 1, scores[known, k]
        if truth.any() and not truth.all():
            false, true, area = metrics.roc(truth, score)
            out[k] = np.concatenate([[0.0], np.interp(away[1:], false, true)]), area
    return out


def _roc_panel(
    axes: Any, title: str, away: np.ndarray, others: Sequence[Line], curve: np.ndarray | None, note: str
) -> None:
    """Draw the curve of a class in colour over the others in grey."""
    lines = [*others] if curve is None else [*others, Line(away, curve)]
    panel(axes, lines, Frame(diagonal=True), (note,))
    axes.set(aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.set_title(title, fontsize=8.5, loc="left")


def panels_of(series: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the metrics in each panel, by title; the loss comes first."""
    panels: dict[str, list[str]] = {}
    for name in series:
        group, _, key = name.partition("/")
        if name.endswith("loss"):
            panels.setdefault("Loss", []).append(name)
        elif key in ("lr", "learning_rate"):
            panels.setdefault("Learning rate", []).append(name)
        elif name.endswith("entropy"):
            panels.setdefault("Entropy (nats)", []).append(name)
        elif key in HIGHER:
            panels.setdefault(group, []).append(name)
        elif "R@" in key:
            panels.setdefault(f"{group}: recall", []).append(name)
    order = sorted(panels, key=lambda title: (title != "Loss", title != "Learning rate", title))
    return {title: panels[title] for title in order}


def _panel(axes: Any, title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for k, (name, (steps, values)) in enumerate(series.items()):
        marker = "o" if len(steps) < 25 else ""
        label = name if title == "Loss" else name.rpartition("/")[2]
        axes.plot(steps, values, label=label, marker=marker, markersize=3, **style(k))
    axes.set_xlabel("Step")
    axes.set_title(title, loc="left")
    if title == "Entropy (nats)":
        axes.set_ylim(bottom=0)
    elif title not in ("Loss", "Learning rate"):
        axes.set_ylim(-0.02, 1.02)
    if title == "Learning rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=7, loc="best")
    elif title not in ("Loss", "Learning rate"):
        axes.set_ylabel(next(iter(series)).rpartition("/")[2])
    plain(axes)
