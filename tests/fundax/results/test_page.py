"""The report page: right numbers, nothing injected, blanks with reasons, pairs that match and pairs that do not."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fundax.evals.kinds import (
    Cases,
    LandmarkResult,
    ReconstructionResult,
    ReportResult,
    RetrievalResult,
    Scores,
    SegmentationResult,
)
from fundax.metrics.statistics import Estimate, blank
from fundax.results import sections
from fundax.results.blocks import (
    Case,
    Cell,
    Columns,
    Gallery,
    Heading,
    Matrix,
    Panels,
    Reports,
    Section,
    Table,
    Text,
    number,
    page,
    picture,
)
from fundax.results.kinds import evaluations
from fundax.results.page import report
from fundax.results.read import read_run
from fundax.results.scores import compare, headline, operating, subgroups
from fundax.types import UserError
from launch import main

HOSTILE = '<script>alert("x")</script>&<img src=http://a.b/c>'


def classified(rng, n=60, names=("normal", "glaucoma"), skill=1.5, seed=3):
    """A test set of n images of n / 2 patients; the truth is a function of the seed alone."""
    labels = np.random.default_rng(seed).integers(len(names), size=n)
    logits = skill * np.eye(len(names))[labels] + rng.normal(size=(n, len(names)))
    pictures = np.tile(np.arange(4, dtype=np.uint8)[:, None, None, None] * 60, (1, 16, 16, 3))
    return {
        "labels": labels,
        "logits": logits,
        "probabilities": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        "classes": np.array(names),
        "patient": np.arange(n) // 2,
        "index": np.arange(n),
        "eye": np.arange(n) % 2,
        "sex": np.array(["f", "m", ""])[np.arange(n) // 2 % 3],
        "age": np.where(np.arange(n) % 7 == 0, np.nan, 30.0 + np.arange(n) // 2),
        "pictures": pictures,
        "picture_index": np.array([0, 5, 7, 9]),
    }


def run(folder: Path, *, curves=True, **evals) -> Path:
    (folder / "evals").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": "configs/x.py", "args": {"lr": 0.1}, "seed": 0}))
    if curves:
        rows = [{"step": k, "time": 1.0, "train/loss": 2.0 - 0.1 * k, "test/macro_auc": 0.5} for k in range(3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, arrays in evals.items():
        np.savez(folder / "evals" / f"{name}.npz", **arrays)
    return folder


def rows_of(folder):
    """The evaluations of a run that have rows."""
    return evaluations(read_run(folder))[0]


def test_one_page_of_three_runs_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 3)) < 0.4).astype(np.float32)
    labels[:5, 0], labels[:, 2] = np.nan, 0  # some not labelled, and one that nobody has
    several = {
        "labels": labels,
        "probabilities": rng.random((40, 3)).astype(np.float32),
        "classes": np.array(["a", "b", "c"]),
    }
    value = rng.normal(size=(30, 2))
    valued = {"value": value, "predicted": value + 0.1, "names": np.array(["cup/disc", HOSTILE])}
    overlays = np.zeros((2, 8, 8, 3), np.uint8)
    dense = {"dice": rng.random(12), "index": np.arange(12), "pictures": overlays, "picture_index": np.array([1, 3])}
    dense |= {"picture_overlay": overlays}
    shots = {"method": np.array(["linear"] * 2), "shots": np.array([1, 1]), "seed": np.array([0, 1])}
    shots |= {"macro_auc": np.array([0.6, 0.8]), "balanced_accuracy": np.array([np.nan, np.nan])}
    shots |= {"labels": np.arange(6) % 2, "linear_1_probabilities": np.tile(np.eye(2)[np.arange(6) % 2], (2, 1, 1))}
    first = run(tmp_path / "a", test=classified(rng), labels=several, few=shots, odd={"margin": np.ones(3)})
    second = run(tmp_path / "b", test=classified(rng), values=valued, masks=dense)
    third = run(tmp_path / "c", curves=False, test=classified(rng, names=("normal", HOSTILE)))
    out = tmp_path / "pages" / "page.html"
    report([first, second, third], out, resamples=20)
    text = out.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert "<script" not in text
    assert "<img src=http" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)" in text
    assert text.count("data:image/jpeg") == 4 + 4 + 4 + 2 * 2
    for words in ("Comparison", "McNemar", "DeLong, paired", "only c has this evaluation", ">test, a</h2>", "Holm",
                 "sex: f", "age: 40-54", "eye: right",
                 "linear", "0.700", "± 0.141", "margin [3]", "absent",
                 "<b>1.000</b><small>1.000 to 1.000</small>", "on the same rows", "train/loss",
                 "Below each image: overlay"):  # fmt: skip
        assert words in text, words
    assert "http" not in text.replace("http-equiv", "").replace("src=http://a.b", "")


def test_numbers_are_those_of_the_evaluation_and_groups_add_up(tmp_path):
    from sklearn.metrics import roc_auc_score

    arrays = classified(np.random.default_rng(1))
    judged = rows_of(run(tmp_path / "a", test=arrays))[0]
    found = headline(judged, 50)
    assert found["AUC"].value == pytest.approx(roc_auc_score(arrays["labels"], arrays["probabilities"][:, 1]))
    right = arrays["logits"].argmax(1) == arrays["labels"]
    assert found["accuracy"].value == pytest.approx(right.mean())
    assert found["accuracy"].low < right.mean() < found["accuracy"].high
    assert found["Brier score"].value == pytest.approx(np.mean((arrays["probabilities"][:, 1] - arrays["labels"]) ** 2))
    name, rows, gaps = subgroups(judged, 50)
    assert name == "AUC"
    assert sum(r.rows for r in rows if r.attribute == "sex") == 60
    assert rows[0].patients == 30
    assert {"sex", "age", "eye"} == set(gaps)
    ages = [r for r in rows if r.attribute == "age"]
    assert [r.group for r in ages] == ["under 40", "40-54", "55-69", "unknown"]
    assert "at least 10" in next(r for r in ages if r.group == "55-69").estimate.note


def test_what_an_evaluation_ranked_by_is_kept(tmp_path):
    """Zero-shot ranks by the logit of the class itself: its AUC is not that of the softmax."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    logits = np.array([[3, 9, 0], [2, 0, 0], [1, 2, 8], [0, 1, 0], [0, 0, 1], [1, 0, 2.0]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    from fundax.evals.zero_shot import class_rows

    arrays = {"labels": labels, "logits": logits, "probabilities": shares, "classes": np.array(["a", "b", "c"])}
    rows = class_rows(logits, labels, ["a", "b", "c"])
    judged = rows_of(run(tmp_path / "a", zero=arrays | rows))[0]
    assert headline(judged, 20)["macro AUC"].value == pytest.approx(np.mean(rows["auc"]))
    np.testing.assert_array_equal(judged.ranks, logits)
    np.testing.assert_array_equal(rows_of(run(tmp_path / "b", zero=arrays))[0].ranks, shares)


def test_runs_are_paired_on_the_same_rows_only(tmp_path):
    rng = np.random.default_rng(0)
    good, bad = classified(rng, skill=4.0), classified(rng, skill=0.0)
    other = classified(rng, seed=4)
    runs = [rows_of(run(tmp_path / name, test=a))[0] for name, a in (("a", good), ("b", bad), ("c", other))]
    tests, reasons = compare(runs, 50)
    assert [t.what for t in tests] == ["AUC", "accuracy"]
    assert tests[0].difference.value > 0.2
    assert tests[0].p < 0.01
    assert tests[0].adjusted == pytest.approx(max(min(t.p for t in tests) * 2, tests[0].p))
    assert reasons == [f"{a} and c have different rows (their truth differ)" for a in "ab"]


def test_a_missing_class_is_a_blank_with_its_reason(tmp_path):
    rng = np.random.default_rng(0)
    arrays = classified(rng)
    arrays["labels"] = np.zeros(60, np.int64)
    folder = run(
        tmp_path / "a", test=arrays, other=classified(rng, names=("a", "b", "c")) | {"labels": np.ones(60, int)}
    )
    judged = rows_of(folder)
    assert "nothing to rank" in headline(next(j for j in judged if j.name == "test"), 20)["AUC"].note
    assert all(point.note for _, point, _ in operating(next(j for j in judged if j.name == "test"), None))
    report([folder], tmp_path / "page.html", resamples=20)
    assert "nothing to rank against" in (tmp_path / "page.html").read_text()


def test_attention_of_a_run_without_weights_is_left_out_with_a_warning(tmp_path, caplog):
    folder = run(tmp_path / "a", test=classified(np.random.default_rng(0)))
    report([folder], tmp_path / "page.html", resamples=5, attention=True)
    assert "a: no attention" in caplog.text
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 4


def test_thresholds_come_from_validation_where_it_is_there(tmp_path):
    rng = np.random.default_rng(0)
    folder = run(tmp_path / "a", test=classified(rng), valid=classified(rng, seed=5))
    out = tmp_path / "page.html"
    report([folder], out, resamples=10)
    assert "thresholds are chosen on valid" in out.read_text()


def test_mistakes_are_one_line(tmp_path, capsys):
    empty = run(tmp_path / "empty")
    assert main(["report", str(empty), "--out", str(tmp_path / "p.html")]) == 2
    assert "has no evaluations" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nothing"), "--out", str(tmp_path / "p.html")]) == 2
    assert "no such folder" in capsys.readouterr().err
    broken = run(tmp_path / "broken", test=classified(np.random.default_rng(0)))
    (broken / "evals" / "test.npz").write_bytes(b"PK\x03\x04 cut short")
    assert main(["report", str(broken), "--out", str(tmp_path / "p.html")]) == 2
    assert "test.npz: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()
    with pytest.raises(UserError, match="given twice"):
        report([empty, empty], tmp_path / "p.html")


def test_every_block_escapes_what_it_shows():
    """No name from a file becomes markup, wherever it stands; the numbers stand as a journal prints them."""
    case = Case([(picture(np.zeros((2, 2, 3), np.uint8)), HOSTILE)], HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)])
    blocks = [
        *(Heading(HOSTILE), Text(HOSTILE), Columns([Text(HOSTILE)]), Reports([case])),
        Table(
            (HOSTILE,),
            [(HOSTILE, Cell(HOSTILE, HOSTILE), number(Estimate(0.5, 0.4, 0.6)), number(blank("a < b")))],
            HOSTILE,
        ),
        Gallery([(HOSTILE, [case])], note=HOSTILE),
        Panels([(HOSTILE, "<svg/>", HOSTILE)], [(HOSTILE, "border-top-color:#000")]),
        Matrix(HOSTILE, [HOSTILE], [[(3, 0.75, "#fff", "#000")]]),
    ]
    text = page(HOSTILE, HOSTILE, [Section(HOSTILE, blocks)])
    assert "<script" not in text and "<img src=http" not in text and text.count("&lt;script&gt;") > 25
    assert "<b>0.500</b><small>0.400 to 0.600</small>" in text and "a &lt; b" in text
    assert ">3<small" in text and ">75</small>" in text and "<svg/>" in text
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert text.startswith("<!doctype html>") and "default-src 'none'" in text


def test_a_page_is_the_same_every_time_and_chinese_names_stay(tmp_path):
    folder = run(tmp_path / "a", test=classified(np.random.default_rng(0), names=("正常", "青光眼")))
    first, again = (report([folder], tmp_path / name, resamples=5).read_bytes() for name in ("x.html", "y.html"))
    assert first == again
    assert "青光眼" in first.decode() and "&#" not in first.decode().split("<body>")[1].split("青光眼")[0][-40:]


def test_results_of_this_version_are_shown_by_their_kind(tmp_path):
    """Every kind has its part of the page, with the metrics it declares."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    metrics = {"mean_dice": 0.625, "auc/normal": 0.5}
    cases = Cases(pictures=pictures, picture_row=np.array([4, 1]), picture_score=np.array([0.1, 0.9]))
    results = {
        "masks": SegmentationResult(metrics=metrics, dice=rng.random((5, 1)), classes=np.array(["disc"]), cases=cases),
        "points": LandmarkResult(metrics=metrics, error=rng.random((5, 2)), names=np.array(["fovea", "disc"])),
        "pairs": RetrievalResult(
            metrics={"image_to_text_R@1": 0.375}, image_to_text_rank=np.ones(3), text_to_image_rank=np.ones(3)
        ),
        "again": ReconstructionResult(metrics={"psnr": 31.5}, pictures=pictures, reconstruction=pictures),
        "texts": ReportResult(metrics={"cider": 1.25}, image=pictures, written=np.array(["a", "b"]), true=np.array(["c", "d"])),
        "alone": Scores(metrics={"spread": 0.0625}),
    }  # fmt: skip
    folder = run(tmp_path / "a", **{name: result.arrays() for name, result in results.items()})
    text = report([folder], tmp_path / "page.html", resamples=5).read_text(encoding="utf-8")
    for words in ("As logged: a", "0.6250", "0.3750", "31.5000", "1.250", "0.0625", "a: best", "a: worst", "row 4",
                 "pairs, a", "Below: reconstruction", "generated", "error fovea"):  # fmt: skip
        assert words in text, words
    assert "auc/normal" not in text
    assert text.count("data:image/jpeg") == 2 + 4 + 2


def test_a_table_of_an_evaluation_shows_values_with_their_intervals():
    ends = {f"table_auc_{end}": np.array([value]) for end, value in (("value", 0.5), ("low", 0.4), ("high", 0.6))}
    names = {"table_views": np.array(["CFP+OCT"]), "table_visits": np.array([3])}
    (table,) = sections.arrays(SimpleNamespace(metrics={}, other=names | ends))
    assert list(table.head) == ["views", "visits", "AUC (95 % interval)"]
    assert table.rows == [("CFP+OCT", "3", Cell("0.500", "0.400 to 0.600", "value"))]
