"""Synthetic patients: the conditions of both eyes, biomarkers, and the state of an eye on a given day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.language.conditions import AGES, RETINOPATHY, condition_at, grade_of
from data_pipelines.synthetic.anatomy import Eye, Tone, vessel_tree
from data_pipelines.synthetic.lesions import Site, fronds, lesions_of
from data_pipelines.synthetic.noise import stream

SIDES = ("left", "right")

_BOTH_EYES = {  # probability that the other eye has the condition as well
    "normal": 1.0,
    **dict.fromkeys(RETINOPATHY, 0.85),
    "diabetic macular oedema": 0.6,
    "dry age-related macular degeneration": 0.75,
    "neovascular age-related macular degeneration": 0.3,
    "glaucoma": 0.7,
    "pathologic myopia": 0.8,
    "cataract": 0.75,
}  # 0.06 for all others


@dataclass(frozen=True)
class Course:
    """Course of a condition in one eye over time."""

    condition: str  # at day 0
    load: float
    rate: float  # load gained per year


@dataclass(frozen=True)
class Patient:
    """The properties of a patient that do not change between visits."""

    seed: int
    index: int
    condition: str  # of the more severely affected eye, at day 0
    principal: str  # the more severely affected eye
    age: float
    systolic: float
    hba1c: float
    axial_length: float
    pigment: float
    left: Course
    right: Course

    def biomarkers(self, day: int) -> np.ndarray:
        """Values f32 [4] in the order of conditions.BIOMARKERS."""
        return np.array([self.age + day / 365.25, self.systolic, self.hba1c, self.axial_length], np.float32)


def _between(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


def patient(seed: int, index: int, conditions: tuple[str, ...]) -> Patient:
    """The patient with a seed and an index. The principal condition is drawn uniformly from `conditions`."""
    u = [float(v) for v in stream(seed, index, 0).random(20)]
    condition = conditions[int(u[0] * len(conditions))]
    low, high = AGES[condition]
    worst = _course(condition, u[1], u[2])
    other = _fellow(condition, worst, conditions, u[3:7])
    principal = SIDES[int(u[7] * 2)]
    left, right = (worst, other) if principal == "left" else (other, worst)
    myopic = condition == "pathologic myopia"
    return Patient(
        seed, index, condition, principal,
        age=round(_between(u[8], low, high), 1),
        systolic=round(_between((u[9] + u[10]) / 2, 96, 190)),
        hba1c=round(_hba1c(condition, worst, u[11]), 1),
        axial_length=round(_between(u[12], 27.2, 31.5) if myopic else _between((u[12] + u[13]) / 2, 21.6, 26.4), 2),
        pigment=_between(u[14], 0, 1), left=left, right=right,
    )  # fmt: skip


def _course(condition: str, u: float, v: float) -> Course:
    if condition in RETINOPATHY:
        return Course(condition, 1 + RETINOPATHY.index(condition) + 0.97 * u, _between(v, 0.1, 0.45))
    return Course(
        condition, 0.0 if condition == "normal" else 0.97 * u, 0.0 if condition == "normal" else _between(v, 0.05, 0.25)
    )


def _fellow(condition: str, worst: Course, allowed: tuple[str, ...], u: list[float]) -> Course:
    """The other eye: the same condition, an earlier stage of it, or normal."""
    if u[0] < _BOTH_EYES.get(condition, 0.06):
        if condition in RETINOPATHY and u[1] < 0.6:
            load = max(1.0, worst.load - 0.9 * u[2])
            earlier = condition_at(condition, load)
            return Course(earlier, load, worst.rate) if earlier in allowed else worst
        return _course(condition, max(0.0, u[2] * (worst.load % 1)), u[3])
    earlier = "dry age-related macular degeneration"
    if condition.startswith("neovascular") and earlier in allowed and u[1] < 0.6:
        return _course(earlier, u[2] * 0.8, u[3])
    return Course("normal", 0.0, 0.0)


def _hba1c(condition: str, worst: Course, u: float) -> float:
    if condition in RETINOPATHY:
        return 5.9 + 0.85 * worst.load + 1.2 * u
    if condition == "diabetic macular oedema":
        return 7.2 + 1.4 * worst.load + 1.2 * u
    return 4.7 + 1.1 * u


def visit_days(p: Patient, visits: int) -> list[int]:
    """The days of the visits: 0, then intervals of half a year to one and a half years."""
    gaps = stream(p.seed, p.index, 1).random(visits)
    days = [0]
    for gap in gaps[1:]:
        days.append(days[-1] + int(180 + 360 * float(gap)))
    return days


def eye_at(p: Patient, side: str, day: int) -> Eye:
    """The state of an eye on a day. Random numbers do not depend on the day, so only the disease progresses."""
    course = p.left if side == "left" else p.right
    load = course.load + course.rate * day / 365.25
    if course.condition in RETINOPATHY:
        load = min(load, 4.99)
    condition = condition_at(course.condition, load)
    if condition != course.condition and condition not in RETINOPATHY:
        load -= 1.0
    number = 10 + SIDES.index(side)
    rng = stream(p.seed, p.index, number)
    u = [float(v) for v in rng.random(16)]
    disc = (15.4 + 0.8 * (u[0] - 0.5), -1.4 + 0.9 * (u[1] - 0.5))
    tortuosity = max(0.0, min(1.0, (p.systolic - 105) / 75))
    trait = {**_traits(condition, load, u), "copper": tortuosity}
    tone = Tone(tortuosity + 0.3 * trait["dilation"], 0.9 - 0.42 * tortuosity, trait["dilation"])
    arteries, veins = vessel_tree(disc, tone, rng)
    hba1c_share = (
        max(0.0, min(1.0, (p.hba1c - 5.9 - 0.85 * course.load) / 1.2))
        if condition in RETINOPATHY
        else (p.hba1c - 7.2) / 2.6
    )
    site = Site(load, disc, veins, max(0.0, min(1.0, hba1c_share)), u[2])
    lesions = lesions_of(condition, site, stream(p.seed, p.index, number + 2))
    age = p.age + day / 365.25
    if condition in ("normal", "glaucoma", "cataract") and age > 60 and u[3] < 0.2:
        lesions = {**lesions, **lesions_of("old drusen", site, stream(p.seed, p.index, number + 4))}
    squash = 0.8 if condition == "pathologic myopia" else 1.0
    width = 2.55 + 0.35 * u[4]
    return Eye(
        side=side, condition=condition, load=load, grade=grade_of(condition, load), disc=disc,
        disc_radius=(width * squash, (width + 0.2 + 0.15 * u[5])),
        cup=round(0.66 + 0.24 * min(load, 1.2) + 0.04 * u[6], 3) if condition == "glaucoma" else round(0.2 + 0.28 * u[6], 3),
        pallor=trait["pallor"], swelling=trait["swelling"], age=age,
        tessellation=max(0.0, min(1.0, (p.axial_length - 22.0) / 9.5)), pigment=p.pigment,
        haze=_haze(condition, load, age, u[7]), axial_length=p.axial_length,
        texture=(512 * u[8], 512 * u[9]), arteries=arteries, veins=veins, lesions=lesions,
        fronds=fronds(load, disc, stream(p.seed, p.index, number + 6)) if load >= 4 else np.zeros((0, 6)),
        traits=trait,
    )  # fmt: skip


def _haze(condition: str, load: float, age: float, u: float) -> float:
    """Opacity of the lens: substantial with cataract, slight in old age."""
    if condition == "cataract":
        return min(0.95, 0.42 + 0.42 * load + 0.06 * u)
    return 0.12 * u * max(0.0, min(1.0, (age - 60) / 25))


def _traits(condition: str, load: float, u: list[float]) -> dict[str, float]:
    """The strengths of features that only some conditions have."""
    occlusion = condition == "retinal vein occlusion"
    central = occlusion and u[2] < 0.4
    glaucoma = condition == "glaucoma"
    closure = {
        "severe diabetic retinopathy": 0.35,
        "proliferative diabetic retinopathy": 0.7,
        "retinal vein occlusion": 0.5,
    }
    return {
        "dilation": 0.55 + 0.3 * u[10] if occlusion else 0.4 * (condition in RETINOPATHY and load >= 3),
        "swelling": 0.7 + 0.3 * u[11] if central else 0.0,
        "pallor": 0.35 + 0.35 * min(load, 1.0) if glaucoma else 0.0,
        "closure": closure.get(condition, 0.0),
        "crescent": 1.0 if condition == "pathologic myopia" else 0.35,
        "fibre": 0.55 - 0.3 * min(load, 1.0) if glaucoma else 1.0,
        "fluid": u[12],
    }
