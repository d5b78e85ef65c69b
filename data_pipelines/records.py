"""A visit of a patient: views of the eyes, the report, the findings, the targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np


def text_hash(text: bytes, seed: int = 0) -> int:
    """64 bits of BLAKE2b of the seed and the text."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


# how a caption names a modality: {modality} and {modality_zh} of a prompt
PHRASES = {
    "CFP": ("color fundus photograph", "彩色眼底照片"),
    "FFA": ("fundus fluorescein angiogram", "眼底荧光血管造影"),
    "OCT": ("optical coherence tomography scan", "光学相干断层扫描"),
    "SLIT_LAMP": ("slit lamp photograph", "裂隙灯照片"),
    "EXTERNAL": ("external eye photograph", "外眼照片"),
    "B_ULTRASOUND": ("B-mode ultrasound image", "B超图像"),
    "UBM": ("ultrasound biomicroscopy image", "超声生物显微镜图像"),
    "MRI": ("magnetic resonance image", "磁共振图像"),
    "UWF": ("ultra-widefield fundus image", "超广角眼底图像"),
    "ICGA": ("indocyanine green angiogram", "吲哚菁绿血管造影"),
    "FAF": ("fundus autofluorescence image", "眼底自发荧光图像"),
}


EYE_PHRASES = {"left": ("left eye", "左眼"), "right": ("right eye", "右眼"), "": ("eye", "眼")}


# The eight modalities of VisionFM, in its order, then the ones the other systems add. An index into this
# tuple is the `modality` of a batch: append, never reorder.
MODALITIES = ("CFP", "FFA", "OCT", "SLIT_LAMP", "EXTERNAL", "B_ULTRASOUND", "UBM", "MRI", "UWF", "ICGA", "FAF")


EYES = ("left", "right", "")  # "" where the source does not say


MODALITY_ALIASES = {
    "CFP": ("FUNDUS", "COLOR FUNDUS", "COLOUR FUNDUS", "COLOR FUNDUS PHOTOGRAPHY", "COLOUR FUNDUS PHOTOGRAPHY", "CF"),
    "FFA": ("FA", "FLUORESCEIN ANGIOGRAPHY", "FUNDUS FLUORESCEIN ANGIOGRAPHY"),
    "OCT": ("OPTICAL COHERENCE TOMOGRAPHY",),
    "SLIT_LAMP": ("SLITLAMP", "SILT LAMP"),  # the second is the name of VisionFM's folder
    "B_ULTRASOUND": ("ULTRASOUND", "B SCAN", "BULTRASOUND", "B MODE ULTRASOUND"),
    "EXTERNAL": ("EXTERNAL EYE", "EXTERNALEYE"),
    "UWF": ("ULTRA WIDEFIELD", "ULTRAWIDEFIELD", "ULTRA WIDE FIELD"),
    "ICGA": ("ICG",),
    "FAF": ("AUTOFLUORESCENCE", "FUNDUS AUTOFLUORESCENCE"),
}


EYE_ALIASES = {"left": ("l", "os", "o.s.", "左", "左眼"), "right": ("r", "od", "o.d.", "右", "右眼"), "": ()}


class DataError(ValueError):
    """Bad input: one line that names the file, row or key and what was expected. The command line exits with 2."""


@dataclass(frozen=True)
class View:
    """One image: u8 [H W 3], encoded bytes, or a path decoded late."""

    image: np.ndarray | bytes | Path
    modality: str = "CFP"
    eye: str = ""


@dataclass(frozen=True)
class Record:
    """One visit. `targets` holds arrays or scalars: label, mask, points, value, ...

    `where` is what a message about this record names: "labels.csv row 7 (line 8)". Rows count data rows from 1,
    as a user does who does not count the header; the line is that of the file, where an editor jumps to.
    """

    patient: str
    views: tuple[View, ...]
    report: str = ""
    findings: tuple[str, ...] = ()
    targets: Mapping[str, Any] = field(default_factory=dict)
    day: int = 0
    where: str = ""


class Source(Protocol):
    """Anything with a length and items; rows are Record. Sources pickle, and are cheap to pickle."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


class HasLabels(Protocol):
    """A source that knows its class names."""

    classes: Sequence[str]


def modality_name(name: str) -> str:
    """The name in MODALITIES that is meant, whatever its case, hyphens or alias. Raises DataError."""
    plain = " ".join(name.upper().replace("_", " ").replace("-", " ").split())
    for known in MODALITIES:
        if plain == known.replace("_", " ") or plain in MODALITY_ALIASES.get(known, ()):
            return known
    raise DataError(f"modality {name!r} is not one of {', '.join(MODALITIES)}")


def eye_name(name: str) -> str:
    """One of EYES, from L/R, OS/OD, 左/右 in any case. Raises DataError."""
    plain = name.strip().lower()
    for known, aliases in EYE_ALIASES.items():
        if plain == known or plain in aliases or (known and plain == f"{known} eye"):
            return known
    raise DataError(f"eye {name!r} is not left or right (nor L, R, OS, OD, 左, 右, or empty)")
