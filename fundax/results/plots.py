"""Pictures of a report: ROC, precision-recall, calibration, confusion, training curves, and cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fundax.metrics.calibration import reliability
from fundax.results.html import Html, captioned, joined, picture, tag
from fundax.results.read import Cases, Judged
from fundax.results.scores import binary, positives
from fundax.results.svg import Frame, Line, key, panel

CASES = 16  # thumbnails of one evaluation of one run


_BLUES = np.array([[247, 251, 255], [107, 174, 214], [8, 48, 107]], float)  # white to dark blue


def curves_of_classes(group: Sequence[Judged]) -> Html:
    """ROC, precision-recall and calibration, a line for each run; an absent class has an empty panel that says so.

    Of one question they stand beside each other; of several, the classes do.
    """
    found = {judged.run: positives(judged) for judged in group}
    names = [name for name, *_ in next(iter(found.values()))]
    rows = [{run: questions[k][2:] for run, questions in found.items()} for k in range(len(names))]
    parts = {
        "ROC": [_roc(name, one) for name, one in zip(names, rows, strict=True)],
        "Precision and recall": [_precision_recall(name, one) for name, one in zip(names, rows, strict=True)],
        "Calibration": _calibration(group),
    }
    runs = key(list(found)) if len(found) > 1 else ""
    level = tag("p", "The dotted level of precision is the share of the class: what guessing gives.", class_="soft")
    if len(names) == 1:
        side_by_side = tag("div", *(part for panels in parts.values() for part in panels), class_="panels few")
        return joined((tag("h3", "ROC, precision and recall, calibration"), runs, side_by_side, level))
    out = []
    for title, panels in parts.items():
        kind = "panels few" if len(panels) <= 3 else "panels"
        said = ", each class against the rest" if title != "Calibration" else ""
        out += [tag("h3", title + said), runs, tag("div", *panels, class_=kind)]
        out += [level] if title == "Precision and recall" else []
    return joined(out)


def _calibration(group: Sequence[Judged]) -> list[Html]:
    """Reliability: the probability said against how often it was so."""
    if group[0].kind == "classes":
        lines = []
        for k, judged in enumerate(group):
            scores = judged.scores[:, 1] if binary(judged) else judged.scores
            lines.append(_reliability(judged.truth, scores, k))
        what = f"Probability of {group[0].names[1]}" if binary(group[0]) else "Confidence in the answer"
        return [panel(what, lines, _probability_frame())]
    found = [positives(judged) for judged in group]
    return [
        panel(name, [_reliability(r[c][2].astype(int), r[c][3], k) for k, r in enumerate(found)], _probability_frame())
        for c, name in enumerate(group[0].names)
    ]


def confusion(judged: Judged) -> Html:
    """Counts and the share of the true class, rows being the truth; columns are numbered as the rows are."""
    assert judged.truth is not None
    k = len(judged.names)
    counts = np.zeros((k, k), np.int64)
    np.add.at(counts, (judged.truth, judged.scores.argmax(1)), 1)
    totals = counts.sum(1)
    rows = []
    for r, name in enumerate(judged.names):
        cells = [_cell(counts[r, c], totals[r]) for c in range(k)]
        rows.append((f"{r + 1} {name} (n={totals[r]})", cells))
    right = f"{counts.trace()} of {len(judged.truth)} right"
    head = tag("tr", tag("th", "true \\ predicted"), *(tag("th", str(c + 1)) for c in range(k)))
    body = joined(tag("tr", tag("th", name, scope="row"), *cells) for name, cells in rows)
    whole = tag("table", tag("thead", head), tag("tbody", body), class_="matrix")
    return captioned(whole, f"{judged.run}: {right}; counts, % of the true class")


def scatter(group: Sequence[Judged]) -> Html:
    """Predicted over true values, in deciles of the truth: the mean prediction of each, for each run."""
    panels = []
    for c, name in enumerate(group[0].names):
        lines, ends = [], []
        for k, judged in enumerate(group):
            assert judged.truth is not None
            x, y = _deciles(judged.truth[:, c], judged.scores[:, c])
            lines.append(Line(x, y, k, dots=True))
            ends += [x, y]
        every = np.concatenate(ends) if ends else np.zeros(0)
        limits = _limits(every)
        frame = Frame(limits, limits, "true value (tenths of the rows)", "mean prediction", diagonal=True)
        panels.append(panel(name, lines, frame))
    return joined((tag("h3", "Predicted and true"), tag("div", *panels, class_="panels few")))


def training(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Html:
    """Panels of training and evaluation numbers over steps, a line for each run. curves: run -> name -> steps, values."""
    names = dict.fromkeys(name for found in curves.values() for name in found if _wanted(name))
    panels = []
    for name in sorted(names, key=_order):
        found = {run: series[name] for run, series in curves.items() if name in series}
        if max(len(steps) for steps, _ in found.values()) < 2:
            continue
        styles = {run: k for k, run in enumerate(curves)}
        lines = [Line(x, y, styles[run], dots=len(x) < 20) for run, (x, y) in found.items()]
        steps, values = (np.concatenate([s[i] for s in found.values()]) for i in (0, 1))
        last = [f"{y[-1]:.3g}" for _, y in found.values()]
        frame = Frame((0, float(steps.max()) or 1.0), _limits(values), "step", "")
        panels.append(panel(name, lines, frame, [f"last {', '.join(last)}"]))
    if not panels:
        return tag("p", "No curve has two points: these runs only evaluated.", class_="soft")
    return joined((key(list(curves)) if len(curves) > 1 else "", tag("div", *panels, class_="panels")))


def cases(judged: Judged, seen: Cases, more: Mapping[str, np.ndarray]) -> Html:
    """Thumbnails with what was true and what was said. more: overlays by name, u8 [T h w 3] like the pictures."""
    order = _case_order(judged, seen)
    kinds = list(dict.fromkeys(str(seen.kinds[k]) for k in order)) if any(map(str, seen.kinds)) else ["best", "worst"]
    split = {kind: [k for k in order if str(seen.kinds[k]) == kind] for kind in kinds}
    if not any(map(str, seen.kinds)):
        half = len(order) // 2
        split = {"best": order[:half], "worst": order[::-1][: len(order) - half]}
    each = max(1, CASES // max(len(split), 1))
    shape = (
        "cases broad" if seen.pictures.shape[2] > 1.4 * seen.pictures.shape[1] else "cases"
    )  # several beside each other
    parts = []
    for kind, chosen in split.items():
        if chosen:
            shown = [_figure(judged, seen, more, k) for k in chosen[:each]]
            parts.append(tag("div", tag("h3", f"{judged.run}: {kind}"), tag("div", *shown, class_=shape)))
    overlays = ", ".join((*seen.overlays, *more))
    below = tag("p", f"Below each image: {overlays}.", class_="soft") if overlays else ""
    return joined((tag("div", *parts, class_="groups"), below))


def case_words(judged: Judged, row: int) -> Html:
    """What is said below the picture of a row."""
    scores = judged.scores[row]
    if judged.kind == "measures" or judged.truth is None:
        parts = [f"{name or 'score'} {value:.3g}" for name, value in zip(judged.names, scores, strict=True)]
        return joined((tag("b", parts[0]), " ", ", ".join(parts[1:4])))
    if judged.kind == "classes":
        truth, said = int(judged.truth[row]), int(scores.argmax())
        answer = f"said {judged.names[said]} ({scores[said]:.2f})" if said != truth else f"said so ({scores[said]:.2f})"
        own = f", the true class {scores[truth]:.2f}" if said != truth else ""
        return joined((tag("b", judged.names[truth]), " ", answer + own))
    if judged.kind == "labels":
        known = np.isfinite(judged.truth[row])
        wrong = [k for k in np.flatnonzero(known) if (scores[k] >= 0.5) != (judged.truth[row, k] > 0.5)]
        have = [judged.names[k] for k in np.flatnonzero(known) if judged.truth[row, k] > 0.5]
        said = ", ".join(f"{'+' if scores[k] >= 0.5 else '−'} {judged.names[k]} ({scores[k]:.2f})" for k in wrong[:4])
        return joined((tag("b", ", ".join(have) or "none of the findings"), " ", said or "all right"))
    pairs = [
        f"{name} {said:.3g} (true {true:.3g})"
        for name, said, true in zip(judged.names, scores, judged.truth[row], strict=True)
    ]
    return tag("span", "; ".join(pairs[:4]))


def _figure(judged: Judged, seen: Cases, more: Mapping[str, np.ndarray], k: int) -> Html:
    row = int(seen.rows[k])
    images = [picture(seen.pictures[k], f"row {row}")]
    shown = {**seen.overlays, **more}
    images += [picture(overlay[k], f"row {row}, {name}") for name, overlay in shown.items()]
    below = f"row {row}" if judged.index is None else f"index {judged.index[row]}"
    return tag("figure", *images, tag("figcaption", case_words(judged, row), tag("small", f" {below}")))


def _case_order(judged: Judged, seen: Cases) -> list[int]:
    """Pictures from the best case to the worst."""
    if judged.kind == "classes" and judged.truth is not None:
        good = judged.scores[seen.rows, judged.truth[seen.rows]]
    elif judged.truth is not None:
        good = -np.nan_to_num(np.abs(judged.scores - judged.truth)[seen.rows]).mean(1)
    else:
        sign = -1 if judged.names[0].startswith(("error", "hd95", "distance")) else 1
        good = sign * np.nan_to_num(judged.scores[seen.rows, 0])
    return [int(k) for k in np.argsort(-good, kind="stable")]


def _roc(name: str, rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Html:
    from sklearn.metrics import auc, roc_curve

    lines, notes = [], []
    for k, (truth, scores) in enumerate(rows.values()):
        if why := _absent(truth):
            notes.append(why)
            continue
        away, hit, _ = roc_curve(truth, scores)
        lines.append(Line(away, hit, k))
        notes.append(f"AUC {auc(away, hit):.3f}")
    if lines and len(rows) == 1:
        truth = next(iter(rows.values()))[0]
        notes.append(f"n = {int(truth.sum())} of {len(truth)}")
    frame = Frame(x_label="1 - specificity", y_label="sensitivity", diagonal=True)
    return panel(name, lines, frame, list(dict.fromkeys(notes)) if not lines else notes)


def _precision_recall(name: str, rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Html:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    lines, notes, share = [], [], math.nan
    for k, (truth, scores) in enumerate(rows.values()):
        if why := _absent(truth):
            notes.append(why)
            continue
        precision, recall, _ = precision_recall_curve(truth, scores)
        begin = int(np.flatnonzero(recall == recall.max())[-1])  # lower thresholds only add false alarms
        lines.append(Line(recall[begin:-1][::-1], precision[begin:-1][::-1], k))  # the last point is made up: (0, 1)
        notes.append(f"AP {average_precision_score(truth, scores):.3f}")
        share = float(truth.mean())
    frame = Frame(x_label="recall (sensitivity)", y_label="precision", level=share)
    return panel(name, lines, frame, list(dict.fromkeys(notes)) if not lines else notes)


def _absent(truth: np.ndarray) -> str:
    if not len(truth):
        return "no labelled row"
    return "" if truth.any() and not truth.all() else "absent" if not truth.any() else "nothing but this class"


def _reliability(truth: np.ndarray | None, scores: np.ndarray, style: int) -> Line:
    found = reliability(truth, scores, bins=10)
    there = found["count"] > 0
    return Line(found["confidence"][there], found["observed"][there], style, dots=True)


def _probability_frame() -> Frame:
    return Frame(x_label="probability said", y_label="share that was so", diagonal=True)


def _cell(count: int, total: int) -> Html:
    share = count / total if total else 0.0
    at = np.array([np.interp(share, (0, 0.5, 1), _BLUES[:, c]) for c in range(3)]).round().astype(int)
    ink = "#fff" if share > 0.6 else "#1a1a1a"
    style = f"background:rgb({at[0]},{at[1]},{at[2]});color:{ink}"
    return tag(
        "td", *((str(count), tag("small", f"{100 * share:.0f}", style=f"color:{ink}")) if count else ()), style=style
    )


def _deciles(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(truth) & np.isfinite(predicted)
    order = np.argsort(truth[known], kind="stable")
    parts = [p for p in np.array_split(order, 10) if len(p)]
    return tuple(np.array([v[known][p].mean() for p in parts]) for v in (truth, predicted))  # type: ignore[return-value]


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    room = (high - low or abs(high) or 1.0) * 0.06
    return low - room, high + room


_SKIP = ("images_per_second", "data_wait", "rows", "unlabelled", "labels_used", "_low", "_high", "minus_mean_error")


def _wanted(name: str) -> bool:
    return name.count("/") < 2 and not name.endswith(_SKIP)


def _order(name: str) -> tuple[bool, bool, bool, str]:
    training = name.startswith("train/")
    return not name.endswith("train/loss"), training, not name.endswith(("loss", "auc", "accuracy")), name
