"""The thirteen labels of VisionFM's multi-modality decoder: five mutually exclusive DR grades and eight findings.

The order follows the label files of that decoder, github.com/ABILab-CUHK/VisionFM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.open import Data
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.splits import Concatenated
from data_pipelines.tasks.labelled import Parts
from data_pipelines.tasks.labelled import parts as labelled_parts

GRADES = ("healthy", "DR-1", "DR-2", "DR-3", "DR-4")


FINDINGS = (
    "diabetic retinopathy",
    "glaucoma",
    "AMD",
    "cataract",
    "hypertensive retinopathy",
    "retinal vein occlusion",
    "myopia",
    "retinal detachment",
)


NAMES = (*GRADES, *FINDINGS)


# Grade (None: not graded) and finding (None: none of the eight) of each condition of synthetic eyes
_CONDITIONS: dict[str, tuple[int | None, str | None]] = {
    "normal": (0, None),
    "mild diabetic retinopathy": (1, "diabetic retinopathy"),
    "moderate diabetic retinopathy": (2, "diabetic retinopathy"),
    "severe diabetic retinopathy": (3, "diabetic retinopathy"),
    "proliferative diabetic retinopathy": (4, "diabetic retinopathy"),
    "diabetic macular oedema": (None, "diabetic retinopathy"),
    "dry age-related macular degeneration": (None, "AMD"),
    "neovascular age-related macular degeneration": (None, "AMD"),
    "glaucoma": (None, "glaucoma"),
    "retinal vein occlusion": (None, "retinal vein occlusion"),
    "retinal detachment": (None, "retinal detachment"),
    "pathologic myopia": (None, "myopia"),
    "cataract": (None, "cataract"),
    "macular hole": (None, None),
}


@dataclass(frozen=True)
class Thirteen:
    """Convert the labels of a source to label f32 [13], grade i32 [] (-1: not graded) and answers f32 [8].

    A record's own label is either 13 numbers (grades as a probability vector, zeros if not graded; findings 0, 1 or NaN),
    or a class of synthetic eyes. Raises DataError naming a record whose label is neither.
    """

    source: Source
    classes: tuple[str, ...] = NAMES

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = self._label(record)
        graded = np.nan_to_num(label[: len(GRADES)])
        grade = np.int32(graded.argmax() if graded.sum() > 0 else -1)
        targets = {"label": label, "grade": grade, "answers": label[len(GRADES) :]}
        return replace(record, targets=targets)

    def _label(self, record: Record) -> np.ndarray:
        own = np.asarray(record.targets.get("label", -1))
        if own.shape == (len(NAMES),):
            return own.astype(np.float32)
        names: Sequence[str] = getattr(self.source, "classes", ())
        name = names[int(own)] if own.ndim == 0 and 0 <= int(own) < len(names) else ""
        if name not in _CONDITIONS:
            wanted = f"{len(NAMES)} labels ({', '.join(NAMES)})"
            raise DataError(f"{record.where or record.patient}: expected {wanted}, found {name or own}")
        grade, finding = _CONDITIONS[name]
        label = np.zeros(len(NAMES), np.float32)
        if grade is not None:
            label[grade] = 1
        if finding is not None:
            label[NAMES.index(finding)] = 1
        return label


def parts(data: Data, seed: int = 0) -> Parts:
    """The parts of all sources, concatenated, with thirteen labels; without --data, synthetic eyes of each modality.

    The parts of a source share no patient. The class names of the sources may differ.
    """
    if data.data:
        each = [labelled_parts(replace(data, data=(word,)), data.eyes(seed, 96), seed) for word in data.data]
    else:
        single = (replace(data, modalities=(name,)) for name in data.modalities)
        each = [labelled_parts(one, one.eyes(seed, 96), seed) for one in single]
    names = ("train", "val", "test")
    return Parts(*(Thirteen(Concatenated(tuple(getattr(one, n) for one in each), each[0].classes)) for n in names))
