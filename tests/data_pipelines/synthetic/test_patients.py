"""Patients: plausible people, fellow eyes, the course over years."""

import numpy as np

from data_pipelines.language.conditions import AGES, CONDITIONS, RETINOPATHY, condition_at, grade_of
from data_pipelines.synthetic.patients import eye_at, patient, visit_days

PEOPLE = [patient(5, k, CONDITIONS) for k in range(400)]


def test_biomarkers_are_plausible() -> None:
    for p in PEOPLE:
        low, high = AGES[p.condition]
        assert low <= p.age <= high and 96 <= p.systolic <= 190 and 4.6 <= p.hba1c <= 11.5
        assert (p.axial_length > 27) == (p.condition == "pathologic myopia")
        diabetic = "diabetic" in p.condition
        assert (p.hba1c >= 6.5) == diabetic
    np.testing.assert_allclose(PEOPLE[0].biomarkers(731)[0], PEOPLE[0].age + 2, atol=0.01)


def test_fellow_eyes() -> None:
    def fellow(p):  # -> Course
        return p.right if p.principal == "left" else p.left

    both = {c: np.mean([fellow(p).condition != "normal" for p in PEOPLE if p.condition == c]) for c in CONDITIONS}
    assert both["retinal detachment"] < 0.3 < 0.6 < both["severe diabetic retinopathy"]
    for p in PEOPLE:
        worst = p.left if p.principal == "left" else p.right
        assert (worst.condition == p.condition and fellow(p).load <= worst.load) or p.condition not in RETINOPATHY
    assert 0.4 < np.mean([p.principal == "left" for p in PEOPLE]) < 0.6


def test_grades_and_conversions() -> None:
    assert [grade_of(c, 0.0) for c in ("normal", *RETINOPATHY)] == [0, 1, 2, 3, 4]
    assert [grade_of("glaucoma", load) for load in (0.1, 0.5, 0.9, 1.4)] == [1, 2, 3, 3]
    assert condition_at(RETINOPATHY[0], 2.3) == RETINOPATHY[1] and condition_at(RETINOPATHY[2], 9) == RETINOPATHY[3]
    dry = "dry age-related macular degeneration"
    assert condition_at(dry, 0.9) == dry and condition_at(dry, 1.1).startswith("neovascular")


def test_years_only_add() -> None:
    assert visit_days(PEOPLE[3], 4)[:2] == visit_days(PEOPLE[3], 2)
    for p in PEOPLE[:30]:
        now, later = eye_at(p, "left", 0), eye_at(p, "left", 1500)
        np.testing.assert_array_equal(now.arteries[:, 4] > 0, later.arteries[:, 4] > 0)
        assert later.disc == now.disc and later.texture == now.texture and later.age > now.age
        assert later.grade >= now.grade or later.condition != now.condition
