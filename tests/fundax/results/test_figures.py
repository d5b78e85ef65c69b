"""Figures and the table of a run: what is drawn, not only that something is."""

import json
import subprocess
import sys
from unittest import mock

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fundax.evals.zero_shot import class_rows
from fundax.results import figures, panels
from fundax.results.finished import draw_run, show
from fundax.results.read import read_result
from fundax.results.tables import by_class
from fundax.runtime import log
from fundax.types import UserError

CLASSES = ["normal", "glaucoma", "neovascular age-related macular degeneration"]
LABELS = np.array([0, 0, 0, 1, 1])
SCORES = np.array([[3, 1, 0], [3, 1, 0], [1, 2, 0], [0, 3, 1], [0, 1, 3.0]])


@pytest.fixture
def drawn():
    """Every figure that is saved, so that a test can read its texts and lines."""
    kept = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        return save(figure, *args, **kwargs)

    with mock.patch.object(Figure, "savefig", keep):
        yield kept


def _texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def _is_picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return min(pixels.shape) > 300 and pixels.std() > 5


def test_confusion_counts_and_row_percent(drawn, tmp_path):
    path = figures.confusion(LABELS, SCORES, CLASSES, tmp_path / "new" / "c.png")
    assert _is_picture(path)
    assert sorted(_texts(drawn[0])) == sorted(["2\n67 %", "1\n33 %", "1\n50 %", "1\n50 %"])
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "Confusion matrix: 3 of 5 correct (60.0 %)"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "normal (n=3)",
        "glaucoma (n=2)",
        "neovascular age-related\nmacular degeneration (n=0)",
    ]
    np.testing.assert_allclose(axes.images[0].get_array(), [[2 / 3, 1 / 3, 0], [0, 0.5, 0.5], [0, 0, 0]])


def test_roc_areas_absent_classes_and_macro(drawn, tmp_path):
    assert _is_picture(figures.roc(LABELS, SCORES, CLASSES, tmp_path / "r.png"))
    # glaucoma: 3, 1 against 1, 1, 2: (3 + 2 * .5) / 6.
    assert _texts(drawn[0]) == ["AUC 0.833\n2 classes", "AUC 1.000\nn = 3", "AUC 0.667\nn = 2", "absent\nn = 0"]
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles[:3] == ["Macro average", "normal", "glaucoma"]
    away, hit = drawn[0].axes[2].lines[-1].get_data()
    assert (away[0], hit[0], away[-1], hit[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hit, away) == pytest.approx(2 / 3, abs=2e-3)


def test_roc_of_one_class_says_why(drawn, tmp_path):
    figures.roc(np.zeros(4, int), np.zeros((4, 2)), ["a", "b"], tmp_path / "r.png")
    assert _texts(drawn[0]) == ["no other class\nn = 4", "absent\nn = 0"]


def _metrics(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")
    return path


def test_curves_by_step_a_restart_replaces_its_steps(drawn, tmp_path):
    rows = [{"step": s, "train/loss": 5.0 - s, "train/lr": 0.1} for s in range(4)]
    rows += [{"step": 1, "train/teacher_entropy": 4.0}, {"step": 2, "train/teacher_entropy": 5.0}]
    rows += [{"step": 2, "train/loss": 9.0}, {"step": 3, "zero_shot/macro_auc": 0.9, "zero_shot/auc/normal": 0.8}]
    rows += [{"step": 3, "retrieval/image_to_text_R@1": 0.2, "train/images_per_second": 90.0}]
    path = _metrics(tmp_path / "metrics.jsonl", rows, end='{"step": 4, "tra')
    assert _is_picture(figures.curves(path, tmp_path / "curves.png"))
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes if axes.get_visible()}
    assert list(panels) == ["Loss", "Learning rate", "Entropy (nats)", "retrieval: recall", "zero_shot"]
    assert panels["Entropy (nats)"].get_ylim()[1] > 5
    steps, values = panels["Loss"].lines[0].get_data()
    np.testing.assert_array_equal(steps, [0, 1, 2, 3])
    np.testing.assert_array_equal(values, [5, 4, 9, 2])
    assert panels["zero_shot"].lines[0].get_label() == "macro_auc"


def test_curves_name_a_bad_file(tmp_path):
    bad = _metrics(tmp_path / "bad.jsonl", [{"train/loss": 1.0}, {"step": 1, "train/loss": 1.0}])
    with pytest.raises(UserError, match=r"bad\.jsonl line 1: .* expected JSON with a step"):
        figures.curves(bad, tmp_path / "c.png")
    with pytest.raises(UserError, match="no rows to draw"):
        figures.curves(_metrics(tmp_path / "empty.jsonl", []), tmp_path / "c.png")
    with pytest.raises(UserError, match=r"gone\.jsonl: expected the metrics\.jsonl of a run"):
        figures.curves(tmp_path / "gone.jsonl", tmp_path / "c.png")


def test_chinese_names_without_a_font_are_numbered(drawn, tmp_path):
    with mock.patch.object(panels, "CJK_FONTS", ()):
        figures.confusion(LABELS, SCORES, ["正常", "glaucoma", "黄斑裂孔"], tmp_path / "c.png")
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["class 0", "glaucoma", "class 2"]
    assert "No font with Chinese characters" in drawn[0].texts[0].get_text()


def test_first_installed_font_is_taken():
    with mock.patch.object(panels, "CJK_FONTS", ("No Such Font", "DejaVu Serif", "DejaVu Sans")):
        assert panels.cjk_font() == "DejaVu Serif"


def test_chinese_names_with_a_font_stay(drawn, tmp_path):
    if panels.cjk_font() is None:
        pytest.skip("no font with Chinese characters is installed")
    figures.confusion(LABELS, SCORES, ["正常", "glaucoma", "黄斑裂孔"], tmp_path / "c.png")
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["正常", "glaucoma", "黄斑裂孔"]
    assert not drawn[0].texts


def test_signs_of_mathematics_are_plain_text(drawn, tmp_path):
    figures.confusion(LABELS, SCORES, ["C/D > $0.6", "$x_{", "a_b^c$"], tmp_path / "c.png")
    assert drawn[0].axes[0].get_xticklabels()[1].get_text() == "$x_{"


def test_settings_are_left_alone_and_nothing_stays_open(tmp_path):
    from matplotlib import pyplot

    before, open_before = dict(matplotlib.rcParams), pyplot.get_fignums()
    figures.confusion(LABELS, SCORES, CLASSES, tmp_path / "c.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == open_before


def _workdir(folder):
    (folder / "evals").mkdir()
    rows = class_rows(SCORES, LABELS, CLASSES)
    np.savez(folder / "evals" / "zero_shot.npz", labels=LABELS, logits=SCORES, classes=np.array(CLASSES), **rows)
    np.savez(folder / "evals" / "retrieval.npz", image_to_text_rank=np.arange(3))
    _metrics(folder / "metrics.jsonl", [{"step": 1, "train/loss": 1.0}])
    return folder


def test_draw_run_draws_what_is_there(tmp_path):
    paths = draw_run(_workdir(tmp_path))
    names = ["training_curves.png", "zero_shot_confusion.png", "zero_shot_roc.png"]
    assert [path.name for path in paths] == names
    assert all(path.parent == tmp_path / "figures" and path.stat().st_size for path in paths)
    with pytest.raises(UserError, match=r"neither metrics\.jsonl nor evals"):
        draw_run(tmp_path / "nothing")


def test_few_shot_results(drawn, tmp_path):
    """A run of evaluations alone has no curves; a draw alone has no spread."""
    (tmp_path / "evals").mkdir()
    table = {"method": ["zero_shot", "linear", "linear", "linear"], "shots": [0, 1, 1, 4]}
    table |= {"balanced_accuracy": [0.4, 0.3, 0.5, 0.6], "macro_auc": [0.7, 0.6, 0.8, 0.9]}
    np.savez(tmp_path / "evals" / "few_shot.npz", **{key: np.array(value) for key, value in table.items()})
    _metrics(tmp_path / "metrics.jsonl", [{"step": 0, "few_shot/linear_1_macro_auc": 0.7}])
    assert [path.name for path in draw_run(tmp_path)] == ["few_shot_shots.png"]
    left = drawn[0].axes[0]
    assert left.containers[0].lines[0].get_ydata().tolist() == [0.4, 0.6]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["zero shot", "linear"]


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([0, 0, 0, 1, 7]), np.zeros((5, 3))])
def test_shapes_and_labels_are_checked(labels, tmp_path):
    with pytest.raises(UserError, match="expected"):
        figures.confusion(labels, SCORES, CLASSES, tmp_path / "c.png")


def test_import_does_not_load_matplotlib():
    heavy = "{'matplotlib', 'sklearn', 'jinja2'} & set(sys.modules)"
    code = f"import sys, fundax.results.figures, fundax.results.page; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_table_has_rows_averages_and_reasons(tmp_path):
    table = by_class(read_result(_workdir(tmp_path) / "evals" / "zero_shot.npz"), "zero_shot")
    console = log.console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
        text = console.export_text()
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert lines[0][:5] == ["normal", "3", "1.000", "1.000", "0.667"]
    assert lines[2][1:] == ["0", "–", "–", "–", "absent from the evaluation set"]
    assert lines[3][:3] == ["macro average", "5", "0.833"]
    assert lines[3][4] == "0.583"  # mean of 2/3 and 1/2


def test_an_evaluation_without_metrics_by_class_has_no_table(tmp_path):
    np.savez(tmp_path / "one.npz", labels=LABELS, logits=SCORES)
    assert by_class(read_result(tmp_path / "one.npz"), "one") is None
    with pytest.raises(UserError, match=r"gone\.npz: no such file"):
        read_result(tmp_path / "gone.npz")


def test_a_finished_run_prints_its_table_and_its_figures(tmp_path, capsys):
    show(_workdir(tmp_path))
    text = capsys.readouterr().out
    assert "zero_shot: 5 images" in text and "macro average" in text
    assert all(name in text.replace("\n", "") for name in ("training_curves.png", "zero_shot_roc.png"))


def test_a_panel_of_the_page_is_small_reproducible_and_has_no_names():
    line = panels.Line(np.linspace(0, 1, 1000), np.linspace(0, 1, 1000) ** 2)
    first, again = (panels.svg(lambda axes: panels.panel(axes, [line], panels.Frame(), ["AUC 0.833"])) for _ in "ab")
    assert first == again and first.startswith("<svg") and first.endswith("</svg>")
    assert len(first) < 6000 and ">AUC 0.833</text>" in first and "font-family" not in first
    x, y = panels.thin(line.x, line.y)
    assert len(x) <= panels.POINTS + 2 and (x[0], x[-1], y[-1]) == (0, 1, 1)
