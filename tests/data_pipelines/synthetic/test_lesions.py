"""Lesions: more with load, the earlier ones kept, each where it belongs."""

import numpy as np
import pytest

from data_pipelines.language.conditions import CONDITIONS, LESIONS
from data_pipelines.synthetic.anatomy import Tone, vessel_tree
from data_pipelines.synthetic.lesions import Site, fronds, lesions_of
from data_pipelines.synthetic.noise import stream

DISC = (15.4, -1.4)
VEINS = vessel_tree(DISC, Tone(0.3, 0.7), stream(0))[1]


def at(condition: str, load: float, seed: int = 1, **more: float) -> dict[str, np.ndarray]:
    return lesions_of(condition, Site(load, DISC, VEINS, **more), stream(seed))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_marks_have_six_columns_and_unit_turns(condition: str) -> None:
    found = at(condition, 4.5 if condition.endswith("diabetic retinopathy") else 0.7)
    assert set(found) <= set(LESIONS)
    assert bool(found) == (condition not in ("normal", "cataract"))
    for marks in found.values():
        assert marks.shape[1] == 6 and (marks[:, 2:4] > 0).all()
        np.testing.assert_allclose(np.hypot(marks[:, 4], marks[:, 5]), 1, atol=1e-5)


def test_retinopathy_adds_signs_grade_by_grade() -> None:
    mild, moderate, severe, proliferative = (at("mild diabetic retinopathy", load) for load in (1.5, 2.5, 3.5, 4.5))
    assert set(mild) == {"microaneurysm"}
    assert {"haemorrhage", "hard exudate", "cotton-wool spot"} <= set(moderate)
    assert "flame haemorrhage" in severe and "flame haemorrhage" not in moderate
    assert "preretinal haemorrhage" in proliferative and "preretinal haemorrhage" not in severe
    counts = [sum(len(m) for m in kinds.values()) for kinds in (mild, moderate, severe, proliferative)]
    assert counts == sorted(counts) and counts[3] > 3 * counts[0]


def test_a_later_visit_keeps_the_earlier_lesions() -> None:
    early, late = at("moderate diabetic retinopathy", 2.2), at("moderate diabetic retinopathy", 2.9)
    for name, marks in early.items():
        np.testing.assert_array_equal(late[name][: len(marks)], marks)


def test_sugar_raises_the_load_within_a_grade() -> None:
    low, high = (at("moderate diabetic retinopathy", 2.5, rate=rate) for rate in (0.0, 1.0))
    assert len(high["microaneurysm"]) > 1.8 * len(low["microaneurysm"])


def test_a_branch_occlusion_bleeds_on_one_side_only() -> None:
    branch, central = (at("retinal vein occlusion", 0.5, variant=v)["flame haemorrhage"] for v in (0.9, 0.1))
    assert min((branch[:, 1] > 2).mean(), (branch[:, 1] < -2).mean()) < 0.05
    assert min((central[:, 1] > 2).mean(), (central[:, 1] < -2).mean()) > 0.2


def test_fronds_grow_from_the_disc() -> None:
    early, late = fronds(4.1, DISC, stream(2)), fronds(4.9, DISC, stream(2))
    assert early.shape[1] == 6 and len(late) > len(early)
    np.testing.assert_allclose(early[:11, :2], np.repeat([DISC], 11, 0))
