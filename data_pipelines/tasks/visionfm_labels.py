"""The thirteen labels of VisionFM's multi-modality decoder: five mutually exclusive DR grades and eight findings.

The order follows the label files of that decoder, github.com/ABILab-CUHK/VisionFM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.open import Data, synthetic_parts
from data_pipelines.records import DataError, Record, Source
from data_pipelines.sources.matching import Matched
from data_pipelines.sources.parts import PARTS
from data_pipelines.sources.splits import Concatenated
from data_pipelines.tasks.labelled import Parts, strata
from data_pipelines.words import Named

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
    """Convert the labels of a source to label f32 [13], grade i32 [] (-1 if not graded) and answers f32 [8].

    The label of a record in `source` is either 13 numbers (grades as a probability vector, zeros if not graded; findings
    0, 1 or NaN) or a class of synthetic eyes. Raises DataError, naming the record, for other labels.
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
        stored = np.asarray(record.targets.get("label", -1))
        if stored.shape == (len(NAMES),):
            return stored.astype(np.float32)
        names: Sequence[str] = getattr(self.source, "classes", ())
        name = names[int(stored)] if stored.ndim == 0 and 0 <= int(stored) < len(names) else ""
        if name not in _CONDITIONS:
            wanted = f"{len(NAMES)} labels ({', '.join(NAMES)})"
            raise DataError(f"{record.where or record.patient}: expected {wanted}, found {name or stored}")
        grade, finding = _CONDITIONS[name]
        label = np.zeros(len(NAMES), np.float32)
        if grade is not None:
            label[grade] = 1
        if finding is not None:
            label[NAMES.index(finding)] = 1
        return label


def parts(data: Data, seed: int = 0) -> Parts:
    """The concatenated parts of all sources with thirteen labels. Without --data, they are synthetic eyes.

    The parts of a source have no common patients. Label columns are matched to NAMES by name.
    """
    few = max(round(data.patients * 0.25), 2)
    eyes = [replace(data, modalities=(name,)).eyes(seed, 96) for name in data.modalities]
    drawn = [synthetic_parts(source, keep=True, val=few, test=few, task=True) for source in eyes]
    synthetic = {name: Concatenated(tuple(part[name] for part in drawn), eyes[0].classes) for name in PARTS}
    splits = data.parts(synthetic, seed, strata)
    train = tuple(_thirteen(named, True) for named in splits["train"])
    scored = tuple(_thirteen(named, False) for named in data.held_out(splits))
    return Parts(Concatenated(train, NAMES), Concatenated(scored, NAMES), data.part or "val")


def _thirteen(named: Named, strict: bool) -> Thirteen:
    """The source with its label columns in the order of NAMES. A source without class names already has this order."""
    names = tuple(getattr(named.source, "classes", ()))
    columns = np.ndim(named.source[0].targets.get("label", 0)) and names not in (NAMES, ())
    return Thirteen(Matched(named.source, NAMES, named.name, strict=strict) if columns else named.source)
