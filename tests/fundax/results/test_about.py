"""Data, part and step of results: shown with every number; results that do not belong together are not combined."""

import json
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure

from fundax.evals.kinds import ByClass, Cases, ClassificationResult, LandmarkResult, Rows, Scores, SegmentationResult
from fundax.evals.supervised import Classified
from fundax.evals.zero_shot import class_rows
from fundax.metrics.classification import classification
from fundax.results.finished import draw_run, show
from fundax.results.kinds import evaluations
from fundax.results.page import report
from fundax.results.read import read_result, read_run
from fundax.results.scores import compare, operating, subgroups
from fundax.results.tables import by_class
from fundax.runtime import log
from fundax.types import UserError
from launch import main

NAMES = ("normal", "glaucoma", "macular hole")


def stored(step=12, part="val", digest="d1", preprocessing="p1", data=("clinic",)):
    """`about` as the trainer writes it."""
    about = {"data": list(data), "digest": digest, "part": part, "step": step, "preprocessing": preprocessing}
    return np.array(json.dumps(about))


def classified(seed=0, names=NAMES, n=90, **more):
    """A classification of n images of n / 2 patients."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(names)
    logits = 1.2 * np.eye(len(names))[labels] + rng.normal(size=(n, len(names)))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return ClassificationResult(
        metrics={}, labels=labels, logits=logits, probabilities=probabilities, classes=np.array(names),
        rows=Rows(index=np.arange(n), patient=np.arange(n) // 2, **more),
        by_class=ByClass.read(classification(labels, probabilities, names)),
    )  # fmt: skip


def run(folder, **results):
    """A run directory with these results; a pair is a result with its `about`."""
    (folder / "evals").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": "configs/x.py", "args": {}, "seed": 0}))
    for name, (result, about) in results.items():
        np.savez(folder / "evals" / f"{name}.npz", **result.arrays(), **({} if about is None else {"about": about}))
    return folder


def texts(folder):
    """Every text of the figures that a run draws, by the file's name."""
    found = {}
    save = Figure.savefig

    def keep(figure, path, *args, **kwargs):
        found[path.name] = [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text"))]
        return save(figure, path, *args, **kwargs)

    with mock.patch.object(Figure, "savefig", keep):
        draw_run(folder)
    return found


def test_data_part_and_step_are_in_every_figure_table_and_section(tmp_path, capsys):
    words = "clinic, part val, step 12"
    cases = Cases(
        pictures=np.zeros((2, 8, 24, 3), np.uint8), picture_row=np.array([1, 0]), picture_score=np.array([0.2, 0.9])
    )
    masks = SegmentationResult(metrics={}, dice=np.array([[0.9], [0.2]]), classes=np.array(["disc"]), cases=cases)
    folder = run(
        tmp_path / "a",
        val=(classified(), stored()),
        masks=(masks, stored()),
        odd=(Scores(metrics={"x": 1.0}), stored()),
    )
    assert all(words in drawn for drawn in texts(folder).values())
    show(folder)
    assert f"val: 90 images, {words}" in capsys.readouterr().out
    page = report([folder], tmp_path / "page.html", resamples=5).read_text()
    assert page.count(words) >= 5  # twice in the results, and in each section


def test_one_auc_in_table_figure_and_page_though_the_model_is_certain(tmp_path):
    """float32 probabilities of certain rows are all 1: ties that the logits do not have."""
    rng = np.random.default_rng(3)
    labels = rng.integers(3, size=60)
    logits = (40 * np.eye(3)[labels] * rng.random((60, 1)) + 25 * rng.normal(size=(60, 3))).astype(np.float32)
    batch = {"image": np.zeros((60, 4, 4, 3), np.uint8), "label": labels, "index": np.arange(60)}
    forward = lambda params, extra, batch: {"logits": logits}  # noqa: E731
    result = Classified(data=lambda: [batch], classes=NAMES)(forward, {}, {})
    zero = ClassificationResult(
        metrics={}, labels=labels, logits=logits, probabilities=result.probabilities.astype(np.float32),
        classes=np.array(NAMES), ranked_by="logits", by_class=ByClass(**class_rows(logits, labels, NAMES)),
    )  # fmt: skip
    folder = run(tmp_path / "a", val=(result, None), zero=(zero, None))
    drawn, page = texts(folder), report([folder], tmp_path / "page.html", resamples=5).read_text()
    for name, one in (("val", result), ("zero", zero)):
        assert one.by_class is not None and one.by_class.auc is not None
        for k, auc in enumerate(one.by_class.auc):
            assert f"AUC {auc:.3f}\nn = {(labels == k).sum()}" in drawn[f"{name}_roc.png"]
            assert f"AUC {auc:.3f}" in page and f"<b>{auc:.3f}</b>" in page
        assert f"AUC {np.mean(one.by_class.auc):.3f}\n3 classes" in drawn[f"{name}_roc.png"]
    assert "threshold (logit)" in page and "threshold (probability)" in page


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (stored(step=36), "the validation rows are of step 36, these rows of step 12"),
        (stored(preprocessing="p2"), "the validation rows were preprocessed differently"),
        (stored(), ""),
    ],
)
def test_thresholds_are_chosen_by_the_same_weights_on_the_same_preprocessing(tmp_path, about, why):
    folder = run(tmp_path / "a", val=(classified(1), about), test=(classified(2), stored(part="test")))
    val, test = (next(e for e in evaluations(read_run(folder))[0] if e.name == name) for name in ("val", "test"))
    points = operating(test, val)
    assert all(why in point.note for _, point, _ in points) and all((not why) == bool(found) for *_, found in points)
    page = report([folder], tmp_path / "page.html", resamples=5).read_text()
    assert (why in page) and "thresholds are chosen on val" in page


def test_thresholds_of_other_data_are_those_of_the_runs_validation(tmp_path):
    other = stored(part="all", digest="d2", data=("messidor",))
    folder = run(tmp_path / "a", val=(classified(1), stored()), messidor=(classified(2), other))
    page = report([folder], tmp_path / "page.html", resamples=5).read_text()
    assert "thresholds are chosen on val" in page and "messidor, part all, step 12" in page


def test_runs_on_other_data_are_neither_paired_nor_drawn_together(tmp_path):
    """The same labels, rows and classes, of two hospitals: nothing in the arrays tells them apart."""
    first = run(tmp_path / "a", test=(classified(1), stored(part="test")))
    second = run(tmp_path / "b", test=(classified(2), stored(part="test", digest="d2", data=("other",))))
    ones = [evaluations(read_run(folder))[0][0] for folder in (first, second)]
    tests, reasons = compare(ones, 5)
    assert not tests
    assert reasons == [
        "a and b were evaluated on different data (clinic, part test, step 12; other, part test, step 12)"
    ]
    page = report([first, second], tmp_path / "page.html", resamples=5).read_text()
    assert "No two runs can be paired" in page and "test, a</h2>" in page and "test, b</h2>" in page


def test_groups_of_patients_have_intervals_gaps_and_reasons(tmp_path):
    n = 90
    age = np.linspace(30, 90, n)
    age[:4] = np.nan
    columns = {
        "sex": np.where(np.arange(n) // 2 % 2, "female", "male"), "age": age.astype(np.float32),
        "site": np.where(np.arange(n) < 80, "north", "south"), "camera": np.where(np.arange(n) % 3, "a", "b"),
    }  # fmt: skip
    folder = run(tmp_path / "a", test=(classified(1, **columns), stored(part="test")))
    name, rows, gaps = subgroups(evaluations(read_run(folder))[0][0], 50)
    assert name == "macro AUC"
    groups = {(row.attribute, row.group): row.estimate for row in rows}
    assert {group for attribute, group in groups if attribute == "age"} == {
        *("under 40", "40-54", "55-69", "70 and over", "unknown"),
    }
    both = [groups["sex", "female"], groups["sex", "male"]]
    gap = gaps["sex"]
    assert gap.value == pytest.approx(abs(both[0].value - both[1].value))
    assert gap.low < gap.value < gap.high and "minus" in gap.note
    assert "at least 10" in groups["site", "south"].note and "fewer than two groups" in gaps["site"].note
    assert groups["camera", "b"].note == "all rows have the class normal"
    page = report([folder], tmp_path / "page.html", resamples=20).read_text()
    assert "age: 40-54" in page and "Intervals of gaps resample patients" in page


def test_figures_of_very_many_classes_have_a_bound(tmp_path):
    names = tuple(f"disease {k}" for k in range(100))
    result = classified(names=names, n=200)
    folder = run(tmp_path / "a", val=(result, None))
    drawn = texts(folder)
    assert "76 other classes (n=152)" in drawn["val_confusion.png"]
    assert sum(text.startswith("disease ") for text in drawn["val_roc.png"]) == 24
    assert (tmp_path / "a" / "figures" / "val_confusion.png").stat().st_size < 2_000_000
    page = report([folder], tmp_path / "page.html", resamples=5).read_text()
    assert "Only the 24 largest of 100 classes are shown" in page and "76 other classes" in page


def test_names_are_data_and_no_markup_on_the_console():
    table = by_class(classified(names=("[/nope]", "drusen [small]", "[red]x")), "[bold]val")
    assert table is not None
    with (console := log.console(width=160)).capture() as kept:
        console.print(table)
    assert all(name in kept.get() for name in ("[/nope]", "drusen [small]", "[red]x", "[bold]val"))


def test_sheets_of_cases_say_measure_unit_and_colours(tmp_path):
    cases = Cases(
        pictures=np.zeros((2, 8, 24, 3), np.uint8), picture_row=np.array([1, 0]), picture_score=np.array([0, 11.14])
    )
    points = LandmarkResult(
        metrics={}, error=np.array([[11.14, 1], [0, 0]]), names=np.array(["fovea", "disc"]), cases=cases,
        rows=Rows(index=np.array([40, 41])),
    )  # fmt: skip
    masks = SegmentationResult(metrics={}, dice=np.ones((2, 1)), classes=np.array(["vessel"]), cases=cases)
    drawn = texts(run(tmp_path / "a", points=(points, None), masks=(masks, None)))
    assert "row 40: mean error 11.1 pixels of the original" in drawn["points_cases.png"]
    assert "Left: photograph. Right: reference (circles) and prediction (crosses)" in drawn["points_cases.png"]
    assert {"fovea", "disc"} <= set(drawn["points_cases.png"]) and "vessel" in drawn["masks_cases.png"]
    assert "row 1: mean Dice 0.000" in drawn["masks_cases.png"]


@pytest.mark.parametrize(
    "broken",
    [
        {"labels": np.full(90, np.nan)}, {"labels": np.zeros((90, 2, 2))}, {"labels": np.array(3)},
        {"labels": np.array(["a"] * 90)}, {"probabilities": np.full((90, 3), np.nan)}, {"probabilities": np.zeros(90)},
        {"probabilities": np.array(0.5)}, {"classes": np.array("a")}, {"classes": np.array(["a"])},
        {"patient": np.arange(7)}, {"index": np.arange(5)}, {"age": np.array(3.0)}, {"logits": np.zeros(4)},
        {"about": np.array("{")}, {"about": np.array("[1]")}, {"about": np.arange(3)}, {"count": np.array(1)},
        {"auc": np.array(["x"] * 3)}, {"note": np.array("one")}, {"metric_value": np.array(1.0)},
        {"pictures": np.zeros((1, 2), np.uint8), "picture_row": np.array([0])},
        {"pictures": np.zeros((1, 4, 4, 3), np.uint8), "picture_row": np.array(0)},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_arrays_are_one_line_that_names_the_file(tmp_path, capsys, broken):
    """A page or one line with the file, never a traceback."""
    folder = run(tmp_path / "a", val=(classified(), None))
    np.savez(folder / "evals" / "val.npz", **classified().arrays() | broken)
    code = main(["report", str(folder), "--out", str(tmp_path / "p.html"), "--resamples", "5"])
    words = capsys.readouterr().err
    assert code in (0, 2)
    if code == 2:
        assert "val.npz" in words and len(words.strip().splitlines()) == 1, words
    else:
        assert (tmp_path / "p.html").is_file()
    try:
        draw_run(folder)
    except UserError as error:
        assert "val" in str(error)


def test_labels_that_are_all_unknown_are_a_page_of_blanks(tmp_path):
    from fundax.evals.kinds import MultiLabelResult

    result = MultiLabelResult(
        metrics={}, labels=np.full((20, 3), np.nan), probabilities=np.random.default_rng(0).random((20, 3)),
        classes=np.array(NAMES),
    )  # fmt: skip
    folder = run(tmp_path / "a", val=(result, None))
    assert read_result(folder / "evals" / "val.npz").kind == "multi_label"
    page = report([folder], tmp_path / "page.html", resamples=5).read_text()
    assert "no labelled row" in page
    draw_run(folder)
