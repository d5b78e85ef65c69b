"""Labels, findings and values are matched by name, never by position."""

import logging

import numpy as np
import pytest

from data_pipelines.open import Data, joined
from data_pipelines.records import DataError, Record, View
from data_pipelines.sources.matching import Matched, are_numbers, names_of
from data_pipelines.words import Named


class Labelled(list):
    """Records with the labels given, and the names of their classes."""

    def __init__(self, labels, classes, target="label"):
        super().__init__(
            Record(f"p{k}", (View(np.zeros((2, 2, 3), np.uint8)),), targets={target: np.asarray(label)})
            for k, label in enumerate(labels)
        )
        self.classes = tuple(classes)


def labels(source, target="label"):
    return [source[k].targets[target].tolist() for k in range(len(source))]


def test_classes_in_another_order_keep_their_names():
    found = Matched(Labelled([0, 1, 2], ("DR", "glaucoma", "normal")), ("normal", "glaucoma", "DR"), "ext")
    assert labels(found) == [2, 1, 0] and found[0].findings == ("DR",)
    assert labels(Matched(Labelled([0, 1], ("Normal_eye", "dr")), ("DR", "normal  eye"), "ext")) == [1, 0]


def test_rows_of_a_class_that_is_not_known_are_left_out_and_counted(caplog):
    source = Labelled([0, 1, 1, 2], ("DR", "glaucoma", "normal"))
    with caplog.at_level(logging.WARNING):
        found = Matched(source, ("AMD", "DR", "normal"), "ext", strict=False)
        assert labels(found) == [1, 2] and [found[k].patient for k in range(2)] == ["p0", "p3"]
    messages = " ".join(caplog.messages)
    assert "ext: has no classes AMD" in messages and "left out: glaucoma (2 rows)" in messages
    with pytest.raises(
        DataError, match=r"ext: has the classes glaucoma \(2 rows\), which are not among AMD, DR, normal"
    ):
        len(Matched(source, ("AMD", "DR", "normal"), "ext"))


def test_numbers_are_not_compared_with_names_by_position():
    source = Labelled([0, 1, 2], ("0", "1", "2"))
    with pytest.raises(DataError, match="its classes are 0, 1, 2; none of them is one of none, mild, severe"):
        len(Matched(source, ("none", "mild", "severe"), "ext", strict=False))
    assert labels(Matched(source, ("2:severe", "0:none", "1:severe"), "ext")) == [1, 0, 0]
    assert names_of(("2:severe", "0:none", "1:severe")) == ("severe", "none")
    assert are_numbers(("0", "1")) and not are_numbers(("0", "mild")) and not are_numbers(())


def test_findings_of_several_columns_move_by_name(caplog):
    source = Labelled(np.array([[1, 0, 1], [0, 1, 0]], np.float32), ("edema", "drusen", "cataract"))
    with caplog.at_level(logging.WARNING):
        found = Matched(source, ("drusen", "myopia", "edema"), "ext", strict=False)
        np.testing.assert_array_equal(labels(found), [[0, np.nan, 1], [1, np.nan, 0]])
    assert "not used: cataract" in " ".join(caplog.messages) and found[0].findings == ("edema",)


def test_values_move_by_the_names_of_their_columns():
    one = Named("ext", Labelled([[60, 7], [50, 6]], (), "value"), None, "", {"value": "age+hba1c"})
    data = Data(classes=("hba1c", "age"))
    assert labels(data.matched([one], strict=False, target="value")[0].source, "value") == [[7, 60], [6, 50]]
    assert data.used["classes"] == ["hba1c", "age"]
    with pytest.raises(DataError, match="none of them is one of axial length"):
        len(Data(classes=("axial length",)).matched([one], strict=False, target="value")[0].source)


def test_sources_whose_classes_differ_are_joined_by_name():
    sources = [Named("a", Labelled([0, 1], ("DR", "normal"))), Named("b", Labelled([0, 1], ("normal", "DR")))]
    with pytest.raises(DataError, match=r"a \(DR, normal\) and b \(normal, DR\) have different classes.*--classes"):
        joined(sources)
    assert labels(joined(Data(classes=("normal", "DR")).matched(sources, strict=True))) == [1, 0, 0, 1]


def test_unlabelled_rows_stay_unlabelled():
    assert labels(Matched(Labelled([0, -1], ("a", "b")), ("b", "a"), "ext")) == [1, -1]
