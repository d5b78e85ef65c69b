"""The record, one visit of a patient, and the names of modalities and eyes."""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np


def text_hash(text: bytes, seed: int = 0) -> int:
    """A hash of 64 bits (BLAKE2b) of the seed and the text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


def patient_number(patient: str) -> np.int32:
    """A hash of a patient's name from 0 to 2**31 - 1, or -1 for an empty name."""
    return np.int32(text_hash(patient.encode()) >> 33) if patient else np.int32(-1)


# the names of modalities in captions: {modality} and {modality_zh} of a prompt
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


def modality_phrases(name: str) -> tuple[str, str]:
    """{modality} and {modality_zh} of a modality; one that was declared is called by its name."""
    return PHRASES.get(name) or (f"{name.replace('_', ' ')} image", f"{name}图像")


EYE_PHRASES = {"left": ("left eye", "左眼"), "right": ("right eye", "右眼"), "": ("eye", "眼")}

# VisionFM's eight modalities in its order, then those of the other systems. The `modality` of a batch is an index into
# this tuple: append, never reorder.
MODALITIES = ("CFP", "FFA", "OCT", "SLIT_LAMP", "EXTERNAL", "B_ULTRASOUND", "UBM", "MRI", "UWF", "ICGA", "FAF")

EYES = ("left", "right", "")  # "" if unknown

MODALITY_ALIASES = {
    "CFP": ("FUNDUS", "COLOR FUNDUS", "COLOUR FUNDUS", "COLOR FUNDUS PHOTOGRAPHY", "COLOUR FUNDUS PHOTOGRAPHY", "CF"),
    "FFA": ("FA", "FLUORESCEIN ANGIOGRAPHY", "FUNDUS FLUORESCEIN ANGIOGRAPHY"),
    "OCT": ("OPTICAL COHERENCE TOMOGRAPHY",),
    "SLIT_LAMP": ("SLITLAMP", "SILT LAMP"),  # the second is the name of VisionFM's folder, including its typo
    "B_ULTRASOUND": ("ULTRASOUND", "B SCAN", "BULTRASOUND", "B MODE ULTRASOUND"),
    "EXTERNAL": ("EXTERNAL EYE", "EXTERNALEYE"),
    "UWF": ("ULTRA WIDEFIELD", "ULTRAWIDEFIELD", "ULTRA WIDE FIELD"),
    "ICGA": ("ICG",),
    "FAF": ("AUTOFLUORESCENCE", "FUNDUS AUTOFLUORESCENCE"),
}


# Further columns about a patient or an image, for subgroups of an evaluation.
ATTRIBUTES = ("age", "sex", "device", "site", "camera", "ethnicity")

EYE_ALIASES = {"left": ("l", "os", "o.s.", "左", "左眼"), "right": ("r", "od", "o.d.", "右", "右眼"), "": ()}


class DataError(ValueError):
    """Bad input. The message is one line naming the file, row or key and what was expected; the exit status is 2."""


def no_such_image(path: Path) -> DataError:
    """The error of an image file that is not there, with the file that may have been meant.

    Names that look alike differ in their Unicode form (macOS), in capitals (01_h.JPG), or only in the ending.
    """
    hint = ""
    if path.parent.is_dir():
        names, stems = _listing(path.parent)
        near = names.get(_alike(path.name), stems.get(_alike(path.stem) if path.suffix else _alike(path.name), ""))
        same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", path.name)
        hint = f"; there is {near}" + (", whose letters are composed otherwise (NFC and NFD)" * same) if near else ""
    elif missing := next((folder for folder in reversed(path.parents) if not folder.exists()), None):
        hint = f"; the folder {missing} does not exist"
    return DataError(f"{path}: no such image file{hint}")


@functools.lru_cache(maxsize=4)  # a table may name many files that are not there
def _listing(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the files of a folder, by name and by stem in the form of `_alike`."""
    names = {_alike(other.name): other.name for other in folder.iterdir()}
    return names, {_alike(Path(name).stem): name for name in names.values()}


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@dataclass(frozen=True)
class View:
    """One image: u8 [H W 3], encoded bytes, or a file that is read when the image is needed.

    `report` and `targets` belong to this view alone; those of the eye and of the visit are in the Record.
    """

    image: np.ndarray | bytes | os.PathLike[str]
    modality: str = "CFP"
    eye: str = ""
    report: str = ""
    targets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One visit of a patient. `targets` holds arrays or scalars such as label, mask, points and value.

    `report` is that of the visit, `eye_reports` has those of "left" and "right", and views may have reports and targets of
    their own. A record of one view has its report and targets here, not in the view.

    `attributes` are texts that an evaluation may group by: those of ATTRIBUTES, and others that were asked for.

    `where` is the record's name in messages, such as "labels.csv row 7 (line 8)". Rows are counted from 1 without the
    header; the line is the one to open in an editor.
    """

    patient: str
    views: tuple[View, ...]
    report: str = ""
    findings: tuple[str, ...] = ()
    targets: Mapping[str, Any] = field(default_factory=dict)
    day: int = 0
    where: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    eye_reports: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Anything with a length and items that are Records. A source can be pickled, and its pickle is small."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def modality_name(name: str, declared: Sequence[str] = ()) -> str:
    """Convert any spelling or alias of a modality to its name in MODALITIES or in `declared`.

    Case, hyphens and underscores are ignored. Raises DataError for an unknown name, with the way to declare it.
    """
    plain = _spelling(name)
    for known in MODALITIES:
        if plain == known.replace("_", " ") or plain in MODALITY_ALIASES.get(known, ()):
            return known
    for other in declared:
        if plain == _spelling(other):
            return other
    raise DataError(
        f"modality {name!r} is not one of {', '.join((*MODALITIES, *declared))}; "
        f"declare a new one as an option of the source, declare={name or 'NAME'}, or by --modality-file (launch.py data stats)"
    )


def _spelling(name: str) -> str:
    return " ".join(name.upper().replace("_", " ").replace("-", " ").split())


def eye_name(name: str) -> str:
    """The name in EYES for L/R, OS/OD, 左/右 in any case. Raises DataError."""
    plain = name.strip().lower()
    for known, aliases in EYE_ALIASES.items():
        if plain == known or plain in aliases or (known and plain == f"{known} eye"):
            return known
    raise DataError(f"eye {name!r} is not left or right (nor L, R, OS, OD, 左, 右, or empty)")
