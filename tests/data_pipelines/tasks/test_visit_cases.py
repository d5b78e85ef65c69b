"""The picture of a visit: a place for each modality and eye, grey without a view; attributes come along."""

import numpy as np

from data_pipelines.synthetic.sources import Visits
from data_pipelines.tasks.visit_cases import BLANK, SIDE, ShownVisit, picture


def test_a_picture_has_a_place_for_each_modality_and_eye():
    views = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    shown = picture(views, np.array([0, 1, 1, 1]), np.array([1, 2, 0, 0]), 2)
    assert shown.shape == (SIDE, 4 * SIDE + 3 * 4, 3)
    tiles = [int(shown[SIDE // 2, k * (SIDE + 4) + SIDE // 2, 0]) for k in range(4)]
    assert tiles == [BLANK, 10, 30, 20]  # the OCT of an unknown eye takes the free place


def test_a_shown_visit_has_the_attributes_of_its_patient():
    record = Visits(1, seed=1, size=16)[0]
    found = ShownVisit(("CFP", "OCT", "FFA"), labels=True, about=("age", "sex"))(record, np.random.default_rng(0))
    assert found["picture"].shape == (SIDE, 6 * SIDE + 5 * 4, 3) and found["label"] == record.targets["label"]
    assert found["age"] == np.float32(record.attributes["age"]) and found["sex"] == record.attributes["sex"]
