"""Every view of a visit as a record of its own."""

import numpy as np

from data_pipelines.records import Record, View
from data_pipelines.sources.each_view import EachView
from data_pipelines.transforms.views import SingleView


def view(eye, **fields):
    return View(np.zeros((2, 2, 3), np.uint8), "CFP", eye, **fields)


RECORDS = [
    Record("a", (view("left"), view("right", report="about the view", targets={"label": 3})), "visit", targets={"label": 1},
           eye_reports={"left": "about the eye"}, where="t.csv row 1"),
    Record("b", (view(""),), "single", where="t.csv row 3"),
]  # fmt: skip


def test_views_reports_targets_and_patients():
    found = [EachView(RECORDS)[k] for k in range(len(EachView(RECORDS)))]
    assert [r.report for r in found] == ["about the eye", "about the view", "single"]
    assert [r.targets.get("label") for r in found] == [1, 3, None]
    assert [r.where for r in found] == ["t.csv row 1, view 1", "t.csv row 1, view 2", "t.csv row 3"]
    patients = [SingleView(text=None)(r, np.random.default_rng(0))["patient"] for r in found]
    assert patients[0] == patients[1] != patients[2]
