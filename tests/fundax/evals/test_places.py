"""Labels of evaluations: those below 0 are left out and counted, others that are wrong are named by file and row."""

from types import SimpleNamespace

import numpy as np
import pytest

from fundax.evals.few_shot import FewShot
from fundax.evals.places import check_labels, where
from fundax.evals.segmentation import Segmentation
from fundax.evals.supervised import Classified
from fundax.evals.zero_shot import zero_shot
from fundax.metrics.statistics import bootstrap
from fundax.types import UserError

CLASSES = ("normal", "glaucoma")


class Pass:
    """A pass over a source of records, as data_pipelines.pipeline.one_epoch gives it."""

    def __init__(self, *batches):
        source = [SimpleNamespace(where=f"labels.csv row {k + 1} (line {k + 2})") for k in range(9)]
        self.batches, self.examples = batches, SimpleNamespace(source=source)

    def __call__(self):
        return iter(self.batches)


def batch(labels, index=None):
    count = len(labels)
    image = np.eye(3, dtype=np.float32)[np.arange(count) % 3]
    return {"image": image, "label": np.array(labels), "index": np.arange(count) if index is None else np.array(index)}


def forward(params, extra, given):
    if "text" in given:
        return {"text_features": np.eye(3, dtype=np.float32)[given["text"][:, 0]], "logit_scale": np.float32(1)}
    return {"image_features": given["image"], "logit_scale": np.float32(1), "logits": given["image"][:, :2]}


def asked(data):
    return zero_shot(data, CLASSES, np.array([[[0]], [[1]]], np.int32), pictures=0)


def classified(data):
    return Classified(data=data, classes=CLASSES)


@pytest.mark.parametrize("evaluation", [asked, classified])
def test_rows_without_a_label_are_left_out_and_counted(evaluation):
    with_gaps = evaluation(Pass(batch([0, -1, 1, -1]), batch([-1, -1, -1], [4, 5, 6])))(forward, {}, {})
    alone = evaluation(Pass(batch([0, -1, 1])))(forward, {}, {})
    assert with_gaps["unlabelled"] == 5 and with_gaps.rows.index.tolist() == [0, 2]
    assert with_gaps.labels.tolist() == [0, 1] and with_gaps["macro_auc"] == alone["macro_auc"]
    with pytest.raises(UserError, match=r"labelled|known label"):
        evaluation(Pass(batch([-1, -1])))(forward, {}, {})


@pytest.mark.parametrize("evaluation", [asked, classified])
def test_a_wrong_label_is_named_by_file_and_row(evaluation):
    """The rows of a part are shuffled: index 7 of the source is row 8 of the file, whatever its place in the batch."""
    with pytest.raises(UserError, match=r"labels.csv row 8 \(line 9\): label 2; expected 0 to 1 \(normal, glaucoma\)"):
        evaluation(Pass(batch([0, 1, 2], [3, 1, 7])))(forward, {}, {})


@pytest.mark.parametrize("value", [-1.0, 2.0, 0.5])
def test_a_finding_that_is_not_0_or_1_is_named_by_file_row_and_column(value):
    with pytest.raises(
        UserError, match=rf"labels.csv row 6 \(line 7\): glaucoma is {value:g}; expected 0, 1 or nothing"
    ):
        classified(Pass(batch([[0.0, 1.0], [np.nan, value]], [2, 5])))(forward, {}, {})


def test_rows_of_data_without_records_are_numbered():
    assert where(lambda: iter(()), 3) == "row 3"
    with pytest.raises(UserError, match=r"row 4: label 5"):
        check_labels(np.array([0, 5]), np.ones(2, bool), {}, 3, CLASSES, None)


def test_few_shot_leaves_out_what_has_no_label():
    def data(labels):
        features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
        return lambda: iter([{"image": features, "label": np.array(labels)}])

    def features(params, extra, given):
        return {"image_features": given["image"], "image_raw": given["image"]}

    made = {"methods": ("linear",), "shots": (1,), "seeds": 1, "linear_feature": "image_raw", "patient": ""}
    found = FewShot(pool=data([0, 1, -1, 0]), test=data([1, -1, 0]), classes=CLASSES, **made)(features, {}, {})
    assert found.labels.tolist() == [1, 0] and found.probabilities.shape == (1, 2, 2)


def test_columns_of_the_table_reach_the_rows_of_a_segmentation():
    frame = np.tile(np.array([[0, 0], [8, 0], [0, 8]], np.float32), (2, 1, 1))
    given = {
        "image": np.zeros((2, 8, 8, 3), np.uint8), "truth": np.ones((2, 8, 8), np.int32), "frame": frame,
        "sex": np.array(["female", "male"]), "age": np.array([60.0, np.nan], np.float32), "group": np.array([4, 5]),
    }  # fmt: skip
    answer = lambda params, extra, batch: {"probability": np.ones((2, 8, 8, 1), np.float32)}  # noqa: E731
    one = Segmentation(data=lambda: iter([given]), classes=("disc",), interval=bootstrap, resamples=5)
    rows = one(answer, {}, {}).rows
    assert rows.sex.tolist() == ["female", "male"] and rows.patient.tolist() == [4, 5] and rows.age[0] == 60
