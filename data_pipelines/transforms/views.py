"""First steps: turn a Record into an example with decoded images and a text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.geometry import Resize
from data_pipelines.images.decode import load_sized
from data_pipelines.images.masks import read_mask
from data_pipelines.records import (
    EYE_PHRASES,
    EYES,
    MODALITIES,
    DataError,
    Record,
    View,
    modality_phrases,
    patient_number,
    text_hash,
)

SWAPS = {"left": "right", "od": "os", "左": "右"}
SWAPS |= {second: first for first, second in SWAPS.items()}

# OD and OS count only in capitals ("os" is a word); 左右 ("about") is not a side
SIDES = re.compile(r"左右|[左右]|\b(?i:left|right)\b|\bO\.?D\b|\bO\.?S\b")

IMAGES = ("image", "left", "right")


def present(example: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of an example that hold images."""
    keys = tuple(key for key in IMAGES if key in example)
    for key in keys:
        if example[key].dtype != np.uint8:
            raise DataError(f"{key}: the steps take uint8 images, not {example[key].dtype}")
    return keys


def swap_sides(text: str) -> str:
    """Exchange left and right in the text of a mirrored image, in English, in Chinese and as OD/OS, keeping the case."""

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        if word == "左右":
            return word
        other = SWAPS[word.replace(".", "").lower()]
        if "." in word:
            other = ".".join(other)
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return SIDES.sub(swap, text)


def mirrored_order(names: Sequence[str]) -> tuple[int, ...]:
    """The order of landmarks in a mirrored image, where left_angle and right_angle are exchanged.

    Raises DataError if the landmark of the opposite side is missing.
    """
    order = []
    for name in names:
        other = "_".join(swap_sides(word) for word in name.split("_"))
        if other not in names:
            raise DataError(
                f"landmark {name!r} becomes {other!r} in a mirrored image; expected {other!r} among {', '.join(names)}"
            )
        order.append(tuple(names).index(other))
    return tuple(order)


@dataclass(frozen=True)
class SingleView:
    """First step: one view of a visit, with its text and targets.

    The keys are image u8 [H W 3], modality i32 [] (index into MODALITIES), eye i32 [] (index into EYES), patient i32 []
    (records.patient_number), text str, and the targets: label i32 [] or f32 [K], mask i32 [H W], points f32 [n 2] (x, y),
    value f32 [K], others as arrays. Mask and points are scaled with the image if it is decoded at a smaller scale. A record
    without text has no key `text`.

    Args:
        size_hint: a JPEG may be decoded at a smaller scale with both sides at least this long; allow for a later crop.
            None decodes at full scale.
        text: "report", "findings" (joined by commas) or None.
        prompt: template with {text}, {modality}, {eye}, {modality_zh} and {eye_zh}.
        modality: use only views of this modality; "" uses all.
        choose: use the "first" or a "random" one of these views.
        targets: targets that every record must have; None uses `label` if present.
        names: what `modality` is an index into: MODALITIES, and those that were declared (open.Sources.known).

    Raises DataError naming the record if the image, a target or the modality is missing.
    """

    size_hint: int | None = None
    text: str | None = "report"
    prompt: str = "{text}"
    modality: str = ""
    choose: str = "first"
    targets: tuple[str, ...] | None = None
    names: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        _check_words(self.text, self.prompt)
        if self.choose not in ("first", "random"):
            raise DataError(f"choose must be first or random, not {self.choose!r}")

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        record = example
        view = self._view(record, rng)
        image, size = load_view(record, view, self.size_hint)
        out: dict[str, Any] = {
            "image": image,
            "modality": np.int32(modality_index(view.modality, record.where, self.names)),
            "eye": np.int32(EYES.index(view.eye)),
            "patient": patient_number(record.patient),
        }
        text = words(record, view, self.text, self.prompt)
        if text:
            out["text"] = text
        return out | targets_of(record, self.targets, size, image.shape[:2])

    def _view(self, record: Record, rng: np.random.Generator) -> View:
        views = [v for v in record.views if not self.modality or v.modality == self.modality]
        if not views:
            wanted = f"view of modality {self.modality}" if self.modality else "view"
            raise DataError(f"{name_of(record)}: has no {wanted}")
        return views[int(rng.integers(len(views)))] if self.choose == "random" else views[0]


@dataclass(frozen=True)
class PairedEyes:
    """First step: both eyes of a visit, left and right u8 [H W 3], left_present and right_present bool [], and the text.

    An eye without a view is black, has the shape of the other eye and is marked as not present. If an eye has several
    views, the first one of `modality` is used. The arguments are those of SingleView; masks and points belong to single
    views and cannot be targets.
    """

    size_hint: int | None = None
    text: str | None = "report"
    prompt: str = "{text}"
    modality: str = ""
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_words(self.text, self.prompt)
        if set(self.targets or ()) & {"mask", "points"}:
            raise DataError("PairedEyes: mask and points belong to one view, use SingleView")

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        record = example
        views = [v for v in record.views if not self.modality or v.modality == self.modality]
        eyes = {eye: next((v for v in views if v.eye == eye), None) for eye in ("left", "right")}
        if not any(eyes.values()):
            raise DataError(f"{name_of(record)}: has no view of a known eye; expected left or right")
        images = {eye: load_view(record, view, self.size_hint)[0] for eye, view in eyes.items() if view}
        image = next(iter(images.values()))
        out: dict[str, Any] = {eye: images.get(eye, np.zeros_like(image)) for eye in eyes}
        out |= {f"{eye}_present": np.bool_(view is not None) for eye, view in eyes.items()}
        out["patient"] = patient_number(record.patient)
        text = words(record, View(image, (eyes["left"] or eyes["right"] or views[0]).modality), self.text, self.prompt)
        if text:
            out["text"] = text
        return out | targets_of(record, self.targets, (0, 0), (0, 0))


@dataclass(frozen=True)
class Grouped:
    """A first step that adds `group` i32 []: a hash of the patient's name, equal for all records of a patient."""

    first: SingleView | PairedEyes

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        return self.first(example, rng) | {"group": np.int32(text_hash(example.patient.encode()) >> 33)}


def modality_index(name: str, where: str = "", names: Sequence[str] = MODALITIES) -> int:
    """The index of a modality in `names`. Raises DataError for an unknown name."""
    if name not in names:
        raise DataError(f"{where + ': ' if where else ''}modality {name!r} is not one of {', '.join(names)}")
    return names.index(name)


def words(record: Record, view: View, text: str | None, prompt: str) -> str:
    """The caption of a view; "" if the record has no report or findings."""
    content = "" if text is None else record.report if text == "report" else ", ".join(record.findings)
    if not content and "{text}" in prompt:
        return ""
    return worded(view, content, prompt)


def worded(view: View, content: str, prompt: str) -> str:
    """Format a text as a prompt, with the modality and the eye of a view."""
    modality, modality_zh = modality_phrases(view.modality)
    eye, eye_zh = EYE_PHRASES[view.eye]
    return prompt.format(text=content, modality=modality, modality_zh=modality_zh, eye=eye, eye_zh=eye_zh)


def _check_words(text: str | None, prompt: str) -> None:
    if text not in ("report", "findings", None):
        raise DataError(f"text must be report, findings or None, not {text!r}")
    try:
        prompt.format(text="", modality="", modality_zh="", eye="", eye_zh="")
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"prompt {prompt!r}: the only fields are {{text}}, {{modality}}, {{modality_zh}}, {{eye}} and {{eye_zh}}"
        ) from error


def name_of(record: Record) -> str:
    """The name of a record in messages."""
    return record.where or f"patient {record.patient}"


def load_view(record: Record, view: View, at_least: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The image of a view u8 [H W 3] and its full size (images.decode.load_sized). Raises DataError naming the record."""
    try:
        return load_sized(view.image, at_least)
    except DataError as error:
        raise error if str(error).startswith(name_of(record)) else DataError(f"{name_of(record)}: {error}") from error


def targets_of(
    record: Record, names: tuple[str, ...] | None, size: tuple[int, int], now: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The targets by name, as arrays. Mask and points are scaled from the image's full `size` to `now`."""
    if names is None:
        names = ("label",) if "label" in record.targets else ()
    missing = [name for name in names if name not in record.targets]
    if missing:
        known = ", ".join(record.targets) or "no targets"
        raise DataError(f"{name_of(record)}: has no {', '.join(missing)}, only {known}")
    return {name: _target(record, name, record.targets[name], size, now) for name in names}


def _target(record: Record, name: str, value: Any, size: tuple[int, int], now: tuple[int, int]) -> np.ndarray:
    if name == "mask":
        return _mask(record, value, size, now)
    array = np.asarray(value)
    if name == "points":
        scale = np.asarray([now[1] / size[1], now[0] / size[0]], np.float32)
        return (array.astype(np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    return array.astype(np.int32 if array.dtype.kind in "biu" else np.float32)


def _mask(record: Record, value: Any, size: tuple[int, int], now: tuple[int, int]) -> np.ndarray:
    try:
        mask = read_mask(value, size)
    except DataError as error:
        raise DataError(f"{name_of(record)}: {error}") from error
    return Resize(*now).pixels(mask, nearest=True)
