"""Sources of synthetic patients: images of both eyes in several modalities, a report, and the ground truth.

    Patients(n=1000, seed=0, modalities=("CFP", "OCT"), size=96)   one visit of a patient per row
    Visits(n=1000, seed=0, missing=0.4)                            one visit per row, with randomly missing views
    Eyes(n=1000, seed=0)                                           one image per row, with a caption about that eye

Item i depends only on (seed, start + i), and its bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from data_pipelines.language.conditions import (
    BIOMARKERS,
    CONDITIONS,
    FINDINGS,
    LAYERS,
    LESIONS,
    MASK_CLASSES,
    PROMPTS,
    condition_at,
    grade_of,
)
from data_pipelines.records import DataError, Record, Source, View
from data_pipelines.synthetic.anatomy import Eye
from data_pipelines.synthetic.noise import stream
from data_pipelines.synthetic.patients import SIDES, Patient, eye_at, patient, visit_days
from data_pipelines.synthetic.render import DRAWERS, Picture, render
from data_pipelines.synthetic.reports import caption, findings_of, report


@dataclass(frozen=True)
class Drawn:
    """Synthetic eyes with a mask of chosen structures. The targets are mask, fov, points and value (disc diameter).

    Args:
        source: synthetic eyes made with masks=True.
        classes: "vessel", "disc", "cup", "artery", "vein", "field", or lesions of conditions.LESIONS. Later ones cover
            earlier ones.
        overlapping: give each class its own channel instead.
    """

    source: Source
    classes: tuple[str, ...] = ()
    overlapping: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        drawn = record.targets["masks"]
        layers = [_structure(drawn, name) for name in self.classes]
        diameter = np.array([2 * np.sqrt(drawn["disc"].sum() / np.pi)], np.float32)
        targets = {"points": record.targets["points"], "fov": drawn["field"].astype(np.uint8), "value": diameter}
        if self.overlapping:
            targets["mask"] = np.stack(layers, -1).astype(np.uint8)
        elif layers:
            targets["mask"] = np.zeros(layers[0].shape, np.int32)
            for k, layer in enumerate(layers):
                targets["mask"][layer] = k + 1
        return Record(record.patient, record.views, targets=targets, where=record.where)


def _structure(drawn: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name == "vessel":
        return drawn["artery"] | drawn["vein"]
    if name in drawn:
        return drawn[name]
    if name in LESIONS:  # this eye does not have the lesion
        return np.zeros_like(drawn["disc"])
    known = ("vessel", "artery", "vein", "disc", "cup", "field", *LESIONS)
    raise DataError(f"synthetic eyes have no structure {name!r}; expected some of {', '.join(known)}")


__all__ = [
    "BIOMARKERS",
    "CONDITIONS",
    "FINDINGS",
    "LAYERS",
    "LESIONS",
    "MASK_CLASSES",
    "PROMPTS",
    "Eyes",
    "Patients",
    "Visits",
]


LANGUAGES = ("en", "zh", "both")
# First patient of each part. Parts are a million patients apart, so that they do not overlap. Pretraining uses train and
# val; tasks that start from a pretrained model use task_train and task_val. KeepFIT's expert set is task_train.
STARTS = {"train": 0, "val": 1_000_000, "task_train": 2_000_000, "task_val": 3_000_000, "test": 4_000_000}
Split = Literal["train", "val", "task_train", "task_val", "test"]
_HORIZON = 730  # days after which `progress` compares the grade


@dataclass(frozen=True)
class _Synthetic:
    """The arguments of both sources.

    Args:
        n: number of patients.
        seed: random seed.
        start: number of the first patient.
        modalities: some of CFP, UWF, FFA and OCT.
        size: width and height of the images in pixels.
        language: language of the reports: "en", "zh", or "both" to draw one per row.
        conditions: names of CONDITIONS to draw from uniformly; None means all.
        masks: also make pixel masks.
    """

    n: int
    seed: int = 0
    start: int = 0
    modalities: tuple[str, ...] = ("CFP",)
    size: int = 96
    language: str = "en"
    conditions: tuple[str, ...] | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", _names(self.modalities, "modalities", DRAWERS))
        if self.conditions is not None:
            object.__setattr__(self, "conditions", _names(self.conditions, "conditions", CONDITIONS))
        if self.language not in LANGUAGES:
            raise DataError(f"synthetic language {self.language!r}: expected one of {', '.join(LANGUAGES)}")
        for name, least in (("n", 0), ("seed", 0), ("start", 0), ("size", 16)):
            if getattr(self, name) < least:
                raise DataError(f"synthetic {name}={getattr(self, name)}: expected at least {least}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels: `conditions`, or CONDITIONS if it is None."""
        return CONDITIONS if self.conditions is None else self.conditions

    def prompts(self, language: str = "en") -> tuple[str, ...]:
        """The names of the classes in a language, "en" or "zh"."""
        return tuple(PROMPTS[language][CONDITIONS.index(c)] for c in self.classes)

    def split(self, part: Split, n: int | None = None) -> Self:
        """This source with the first `n` patients of another part of STARTS; None keeps the number of patients."""
        return replace(self, start=STARTS[part], n=self.n if n is None else n)

    def _label(self, eye: Eye | None) -> np.int32:
        """The index of the class; -1 if the eye is not imaged or its condition is not a class."""
        known = eye is not None and eye.condition in self.classes
        return np.int32(self.classes.index(eye.condition) if known and eye else -1)

    def _language(self, rng: np.random.Generator) -> str:
        return self.language if self.language != "both" else ("en", "zh")[int(rng.random() * 2)]

    def _row(self, index: int, rows: int) -> int:
        if not -rows <= index < rows:
            raise IndexError(f"row {index} of a source of {rows}")
        return index % rows


def _names(value: object, field: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]
    wrong = [str(k) for k in names if k not in allowed]
    if wrong or not names or len(set(names)) < len(names):
        raise DataError(f"synthetic {field} {wrong or names}: expected different names out of {', '.join(allowed)}")
    return names


@dataclass(frozen=True)
class Patients(_Synthetic):
    """One visit of a patient per row: views of both eyes in each modality, and one report.

    Each patient has `visits` consecutive rows. With `one_eye`, only the more severely affected eye is imaged.

    The targets are

    - label, label_left, label_right i32: the class; -1 if the eye is not imaged or its condition is not a class;
    - grade i32; value f32 [4], the BIOMARKERS; findings, findings_left, findings_right f32 [F], the FINDINGS;
    - points f32 [V 2 2]: fovea and disc of each view as (x, y), NaN outside the image;
    - progress i32: whether the grade increases within two years;
    - with `masks`: mask i32 [V h w] of MASK_CLASSES, or LAYERS in an OCT view, and masks, a tuple of dicts of bool [h w].
    """

    visits: int = 1
    one_eye: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visits < 1:
            raise DataError(f"synthetic visits={self.visits}: expected at least 1")

    def __len__(self) -> int:
        return self.n * self.visits

    def __getitem__(self, index: int) -> Record:
        row = self._row(index, len(self))
        number, visit = self.start + row // self.visits, row % self.visits
        p = patient(self.seed, number, self.classes)
        day = visit_days(p, visit + 1)[visit]
        imaged = self._imaged(p, visit)
        eyes = {side: eye_at(p, side, day) for side in SIDES if any(side == other for _, other in imaged)}
        principal = eyes.get(p.principal) or next(iter(eyes.values()))
        pictures = [_picture(p, eyes[side], modality, visit, self.size, self.masks) for modality, side in imaged]
        views = tuple(View(q.image, *place) for q, place in zip(pictures, imaged, strict=True))
        rng = stream(self.seed, number, 2, visit)
        text = report(eyes, self.modalities, self._language(rng), rng)
        targets = {
            **_truth(p, principal, day, self._label(principal)),
            "label_left": self._label(eyes.get("left")),
            "label_right": self._label(eyes.get("right")),
            "findings": _hot(tuple(eyes.values())),
            "findings_left": _hot((eyes["left"],) if "left" in eyes else ()),
            "findings_right": _hot((eyes["right"],) if "right" in eyes else ()),
            "points": np.stack([q.points for q in pictures]),
        }
        if self.masks:
            targets["mask"] = np.stack([q.masks["index"] for q in pictures]).astype(np.int32)
            targets["masks"] = tuple({k: m for k, m in q.masks.items() if k != "index"} for q in pictures)
        names = tuple(k for k in FINDINGS if any(k in findings_of(e) for e in eyes.values()))
        return Record(_name(p), views, text, names, targets, day)

    def _imaged(self, p: Patient, visit: int) -> list[tuple[str, str]]:
        """(modality, eye) of each view."""
        sides = (p.principal,) if self.one_eye else SIDES
        return [(modality, side) for modality in self.modalities for side in sides]


DEVICES = ("camera A", "camera B", "camera C")


@dataclass(frozen=True)
class Visits(Patients):
    """Patients with randomly missing views, with reports and labels of the visit, of each eye and of each view.

    Each view is missing with probability `missing`, independently of the others, but at least one view is present. The
    report of a visit describes the imaged eyes, and its label is the label of the worse imaged eye. The report of a view
    is a caption; its targets are label i32 and points f32 [2 2]. The attributes are age, sex and device.
    """

    modalities: tuple[str, ...] = ("CFP", "OCT", "FFA")
    missing: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.missing < 1:
            raise DataError(f"synthetic missing={self.missing}: expected a share from 0 to below 1")

    def __getitem__(self, index: int) -> Record:
        record, row = super().__getitem__(index), self._row(index, len(self))
        number, visit = self.start + row // self.visits, row % self.visits
        p = patient(self.seed, number, self.classes)
        day, rng = record.day, stream(self.seed, number, 6, visit)
        language = self._language(rng)
        views = tuple(
            replace(
                view,
                report=caption(eye_at(p, view.eye, day), view.modality, language, rng),
                targets={"label": record.targets[f"label_{view.eye}"], "points": points},
            )
            for view, points in zip(record.views, record.targets["points"], strict=True)
        )
        eyes = [side for side in SIDES if any(view.eye == side for view in views)]
        about = {side: report({side: eye_at(p, side, day)}, self.modalities, language, rng) for side in eyes}
        kinds = stream(self.seed, number, 7).random(2)
        attributes = {
            "age": f"{p.age + day / 365.25:.0f}",
            "sex": ("female", "male")[int(kinds[0] * 2)],
            "device": DEVICES[int(kinds[1] * len(DEVICES))],
        }
        return replace(record, views=views, eye_reports=about, attributes=attributes)

    def _imaged(self, p: Patient, visit: int) -> list[tuple[str, str]]:
        whole = super()._imaged(p, visit)
        drawn = stream(p.seed, p.index, 5, visit).random(len(whole))
        kept = [place for place, u in zip(whole, drawn, strict=True) if u >= self.missing]
        return kept or [whole[int(drawn.argmax())]]


@dataclass(frozen=True)
class Eyes(_Synthetic):
    """One image per row with a caption: the more severely affected eye in a random modality.

    The targets are those of Patients for a single view: label, grade i32; value f32 [4]; findings f32 [F]; points
    f32 [2 2]; progress; with `masks` also mask i32 [h w] and masks, a dict of bool [h w].
    """

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Record:
        number = self.start + self._row(index, self.n)
        p = patient(self.seed, number, self.classes)
        rng = stream(self.seed, number, 3)
        modality = self.modalities[int(rng.random() * len(self.modalities))]
        eye = eye_at(p, p.principal, 0)
        picture = _picture(p, eye, modality, 0, self.size, self.masks)
        targets = {**_truth(p, eye, 0, self._label(eye)), "findings": _hot((eye,)), "points": picture.points}
        if self.masks:
            targets["mask"] = picture.masks["index"].astype(np.int32)
            targets["masks"] = {k: m for k, m in picture.masks.items() if k != "index"}
        text = caption(eye, modality, self._language(rng), rng)
        return Record(_name(p), (View(picture.image, modality, eye.side),), text, findings_of(eye), targets)


def _name(p: Patient) -> str:
    return f"synthetic-{p.seed}-{p.index:06d}"


def _picture(p: Patient, eye: Eye, modality: str, visit: int, size: int, masks: bool) -> Picture:
    key = (4, visit, SIDES.index(eye.side), tuple(DRAWERS).index(modality))
    return render(eye, modality, size, stream(p.seed, p.index, *key), masks)


def _truth(p: Patient, eye: Eye, day: int, label: np.int32) -> dict[str, Any]:
    course = p.left if eye.side == "left" else p.right
    later = course.load + course.rate * (day + _HORIZON) / 365.25
    return {
        "label": label,
        "grade": np.int32(eye.grade),
        "value": p.biomarkers(day),
        "progress": np.int32(_worse(course.condition, eye, later)),
    }


def _worse(condition: str, eye: Eye, later: float) -> bool:
    name = condition_at(condition, later)
    return name != eye.condition or grade_of(name, later) > eye.grade


def _hot(eyes: tuple[Eye, ...]) -> np.ndarray:
    """Findings f32 [F], 1 for each that any of the eyes has."""
    present = {k for eye in eyes for k in findings_of(eye)}
    return np.array([k in present for k in FINDINGS], np.float32)
