"""The first steps: a Record becomes an example, its images decoded, its text worded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.geometry import Resize
from data_pipelines.images import load_mask, load_sized
from data_pipelines.records import EYE_PHRASES, EYES, MODALITIES, PHRASES, DataError, Record, View, text_hash

SWAPS = {"left": "right", "od": "os", "左": "右"}


SWAPS |= {second: first for first, second in SWAPS.items()}


# OD and OS count only in capitals ("os" is a word); 左右 ("about") is not a side
SIDES = re.compile(r"左右|[左右]|\b(?i:left|right)\b|\bO\.?D\b|\bO\.?S\b")


def swap_sides(text: str) -> str:
    """The text of a mirrored image: left and right exchanged, in English, Chinese and as OD/OS; case is kept."""

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
    """Which landmark of an image is at each place in its mirror image: left_angle and right_angle change places.

    Raises DataError for a name whose other side is not there.
    """
    order = []
    for name in names:
        other = "_".join(swap_sides(word) for word in name.split("_"))
        if other not in names:
            raise DataError(
                f"landmark {name!r} becomes {other!r} in a mirrored image, and that is none of {', '.join(names)}"
            )
        order.append(tuple(names).index(other))
    return tuple(order)


@dataclass(frozen=True)
class SingleView:
    """One view of a visit: image u8 [H W 3], text, modality, eye, and what the record's targets hold.

    `size_hint`: both sides of a JPEG stay at least this long when it is decoded at a smaller scale (leave room
    for a later crop); None decodes all.
    `modality`: only views of this modality; `choose`: "first" or "random" among them.
    `text`: "report" or "findings" (joined by commas), or None; `prompt` words it, with {text}, {modality}, {eye},
    {modality_zh}, {eye_zh}. A record without text gives no `text` key.
    `targets`: names that every record must have; None takes `label` where there is one.
    Example keys: image, modality i32 [] (index into MODALITIES), eye i32 [] (index into EYES), text str, label i32 []
    or f32 [K], mask i32 [H W], points f32 [n 2] (x, y), value f32 [K], any other target as an array.
    Mask and points are those of the image at full scale, and follow it to the scale it is decoded at.
    Raises DataError naming the record where the image, a target or the modality is missing.
    """

    size_hint: int | None = None
    text: str | None = "report"
    prompt: str = "{text}"
    modality: str = ""
    choose: str = "first"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_words(self.text, self.prompt)
        if self.choose not in ("first", "random"):
            raise DataError(f"choose must be first or random, not {self.choose!r}")

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        record = example
        view = self._view(record, rng)
        image, size = _load(record, view, self.size_hint)
        out: dict[str, Any] = {
            "image": image,
            "modality": np.int32(modality_index(view.modality, record.where)),
            "eye": np.int32(EYES.index(view.eye)),
        }
        text = words(record, view, self.text, self.prompt)
        if text:
            out["text"] = text
        return out | _targets(record, self.targets, size, image.shape[:2])

    def _view(self, record: Record, rng: np.random.Generator) -> View:
        views = [v for v in record.views if not self.modality or v.modality == self.modality]
        if not views:
            wanted = f"view of modality {self.modality}" if self.modality else "view"
            raise DataError(f"{_name(record)}: has no {wanted}")
        return views[int(rng.integers(len(views)))] if self.choose == "random" else views[0]


@dataclass(frozen=True)
class PairedEyes:
    """The two eyes of a visit: left, right u8 [H W 3] with left_present, right_present bool [], and the text.

    An eye without a view is black, of the other eye's shape, and not present. Of several views of one eye the
    first of `modality` (any, if "") is taken. The other fields are those of SingleView; masks and points belong
    to single views and cannot be asked for.
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
            raise DataError(f"{_name(record)}: has no view that says whether it is the left or the right eye")
        images = {eye: _load(record, view, self.size_hint)[0] for eye, view in eyes.items() if view}
        one = next(iter(images.values()))
        out: dict[str, Any] = {eye: images.get(eye, np.zeros_like(one)) for eye in eyes}
        out |= {f"{eye}_present": np.bool_(view is not None) for eye, view in eyes.items()}
        text = words(record, View(one, (eyes["left"] or eyes["right"] or views[0]).modality), self.text, self.prompt)
        if text:
            out["text"] = text
        return out | _targets(record, self.targets, (0, 0), (0, 0))


@dataclass(frozen=True)
class Grouped:
    """A first step that adds `group` i32 []: the same number for every record of a patient, by a hash of the name."""

    first: SingleView | PairedEyes

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        return self.first(example, rng) | {"group": np.int32(text_hash(example.patient.encode()) >> 33)}


def modality_index(name: str, where: str = "") -> int:
    """The `modality` of a batch; DataError for a name that is none."""
    if name not in MODALITIES:
        raise DataError(f"{where + ': ' if where else ''}modality {name!r} is not one of {', '.join(MODALITIES)}")
    return MODALITIES.index(name)


def words(record: Record, view: View, text: str | None, prompt: str) -> str:
    """The caption of a view; empty where the record has no such text."""
    said = "" if text is None else record.report if text == "report" else ", ".join(record.findings)
    if not said and "{text}" in prompt:
        return ""
    modality, modality_zh = PHRASES[view.modality]
    eye, eye_zh = EYE_PHRASES[view.eye]
    return prompt.format(text=said, modality=modality, modality_zh=modality_zh, eye=eye, eye_zh=eye_zh)


def _check_words(text: str | None, prompt: str) -> None:
    if text not in ("report", "findings", None):
        raise DataError(f"text must be report, findings or None, not {text!r}")
    try:
        prompt.format(text="", modality="", modality_zh="", eye="", eye_zh="")
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"prompt {prompt!r}: only {{text}}, {{modality}}, {{modality_zh}}, {{eye}}, {{eye_zh}} can be filled in"
        ) from error


def _name(record: Record) -> str:
    return record.where or f"patient {record.patient}"


def _load(record: Record, view: View, at_least: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        return load_sized(view.image, at_least)
    except DataError as error:
        raise DataError(f"{_name(record)}: {error}") from error


def _targets(
    record: Record, names: tuple[str, ...] | None, size: tuple[int, int], now: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The targets by name, as arrays; mask and points at the scale `now` that an image of `size` was decoded at."""
    if names is None:
        names = ("label",) if "label" in record.targets else ()
    missing = [name for name in names if name not in record.targets]
    if missing:
        known = ", ".join(record.targets) or "no targets"
        raise DataError(f"{_name(record)}: has no {', '.join(missing)}, only {known}")
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
        mask = load_mask(value)
    except DataError as error:
        raise DataError(f"{_name(record)}: {error}") from error
    if mask.shape != size:
        shape = f"{mask.shape[0]} x {mask.shape[1]}"
        raise DataError(f"{_name(record)}: the mask is {shape}, its image {size[0]} x {size[1]} pixels")
    return Resize(*now).pixels(mask, nearest=True)
