"""Written reports against the true ones: findings by hand, the arrays, and both pictures of them."""

import re

import numpy as np
import pytest
from PIL import Image

from fundax.evals.reports import WrittenReports, finding_counts, finding_metrics
from fundax.results.finished import draw_run
from fundax.results.read import read_result
from fundax.types import UserError

TEXTS = ["drusen <b>", "drusen, hole", "cup", "padding"]


def decode(ids):
    return [TEXTS[int(row[0])] for row in ids]


def find(text):
    return {word for word in ("drusen", "hole", "cup") if word in text}


@pytest.fixture
def result():
    text = np.array([[0], [1], [2], [3]], np.int32)
    batch = {"image": np.full((4, 8, 8, 3), 90, np.uint8), "text": text, "valid": np.array([1, 1, 1, 0], bool)}
    written = np.array([[1], [1], [0], [3]])
    evaluate = WrittenReports(data=lambda: iter([batch]), decode=decode, findings={"findings": find}, shown=2)
    return evaluate(lambda params, extra, b: {"report": written} if set(b) == {"image"} else {}, {}, {})


def test_findings_by_hand(result):
    # written: drusen hole | drusen hole | drusen;  true: drusen | drusen hole | cup
    assert result["findings_precision"] == pytest.approx(3 / 5)
    assert result["findings_recall"] == pytest.approx(3 / 4)
    assert result["findings_f1"] == pytest.approx(6 / 9)
    assert result["findings_chance"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))  # true ones moved by one
    assert dict(zip(result["finding"], result["finding_count"].tolist(), strict=True)) == {
        "cup": [0, 0, 1],
        "drusen": [2, 1, 0],
        "hole": [1, 1, 0],
    }
    assert result["true_findings"].tolist() == ["drusen", "drusen; hole"]


def test_no_finding_anywhere_leaves_out_what_is_undefined():
    assert finding_metrics("x", [set()], [set()]) == {}
    assert finding_counts([], [set()], [set()]).shape == (0, 3)


def test_page_and_sheet(result, tmp_path):
    (tmp_path / "evals").mkdir()
    np.savez(tmp_path / "evals" / "reports.npz", **result.arrays())
    np.savez(tmp_path / "evals" / "zero_shot.npz", labels=np.zeros(3))
    paths = draw_run(tmp_path)
    assert [path.name for path in paths] == ["reports.html", "reports.png"]
    text = paths[0].read_text()
    assert text.count("data:image/jpeg;base64,") == 2 and "drusen &lt;b&gt;" in text
    assert not re.search(r'(src|href)="?http', text)  # it asks for nothing
    assert "+ hole" in text and "✓ drusen" in text
    with Image.open(paths[1]) as drawn:
        assert min(drawn.size) > 200
    np.savez(tmp_path / "x.npz", kind=np.array("reports"), image=result["image"])
    with pytest.raises(UserError, match=r"x\.npz: .*kind reports has kind, image; expected image, written, true"):
        read_result(tmp_path / "x.npz")


def test_no_rows_and_no_text_are_named():
    evaluate = WrittenReports(data=lambda: iter([]), decode=decode, findings={})
    with pytest.raises(UserError, match="no rows"):
        evaluate(lambda *_: {}, {}, {})
    evaluate = WrittenReports(data=lambda: iter([{"image": np.zeros((1, 2, 2, 3))}]), decode=decode, findings={})
    with pytest.raises(UserError, match="expected also 'text'"):
        evaluate(lambda *_: {}, {}, {})
