"""VisionFM's thirteen answers of its multi-modality decoder: five grades that are one question, and eight findings.

Source of the layout and its order: github.com/ABILab-CUHK/VisionFM, the label files of its multi-modality decoder."""

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


# The conditions of synthetic eyes: grade (None: not graded) and finding (None: none of the eight)
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
    """A source whose records get label f32 [13], grade i32 [] (-1: not graded) and answers f32 [8].

    Their own label is 13 numbers (grades as a probability vector, zeros where there is none; findings 0, 1 or NaN), or a
    class of synthetic eyes. Raises DataError naming the record where it is neither.
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
    """The parts of every source (without --data: of synthetic eyes of each modality), joined and with thirteen labels.

    No patient of a source is in two parts; sources are joined whatever they call their classes.
    """
    if data.data:
        each = [labelled_parts(replace(data, data=(word,)), data.eyes(seed, 96), seed) for word in data.data]
    else:
        single = (replace(data, modalities=(name,)) for name in data.modalities)
        each = [labelled_parts(one, one.eyes(seed, 96), seed) for one in single]
    names = ("train", "val", "test")
    return Parts(*(Thirteen(Concatenated(tuple(getattr(one, n) for one in each), each[0].classes)) for n in names))
