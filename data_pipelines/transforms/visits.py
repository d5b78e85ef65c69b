"""First steps for a whole visit: its views, with the texts of the views, the eyes and the visit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipelines.records import EYES, DataError, Record, View, patient_number
from data_pipelines.transforms.steps import Step, apply
from data_pipelines.transforms.views import load_view, name_of, swap_sides, targets_of, worded

LEVELS = ("visit", "eye", "view")
SIDES = ("left", "right")


class Size(NamedTuple):
    """The numbers of images and texts of a visit in a batch, and its patient number (-1 if unknown)."""

    images: int
    texts: int
    patient: int


@dataclass(frozen=True)
class VisitViews:
    """First step: the selected views of a visit, to which the image steps are applied separately.

    The keys are views u8 [v S S 3], view_modality i32 [v] (index into `names`), view_eye i32 [v] (index into EYES), text
    str, eye_text (left, right), view_text ([v]), patient and visit i32 [], and the targets. Missing texts are "".

    Args:
        names: the modalities to use; other views are ignored.
        steps: image steps, after which all views must have the same size.
        levels: levels of the texts to use: "visit", "eye" and "view".
        inherit: an eye without a text uses the text of the visit, and a view the text of its eye or of the visit.
        text: "report" or "findings" of the visit; eyes and views have only reports.
        prompt: template with {text}, {modality}, {eye}, {modality_zh} and {eye_zh}, for the texts of views.
        choose: "all" views, a random "one", or a random "pair" of two modalities of the same eye, if there is one.
        most: maximum number of views; if there are more, a random selection is used.
        keep: probability of keeping a view of each of `names`, see `shares_kept`; () keeps all.
        targets: targets of the record to include.
        labels: include label, label_left and label_right i32 [] of the visit and of its eyes, -1 if unknown.

    Raises DataError for a visit without any view of `names`.
    """

    names: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    levels: tuple[str, ...] = LEVELS
    inherit: bool = False
    text: str = "report"
    prompt: str = "{text}"
    choose: Literal["all", "one", "pair"] = "all"
    most: int = 8
    keep: tuple[float, ...] = ()
    targets: tuple[str, ...] = ()
    labels: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.levels) - set(LEVELS):
            raise DataError(f"levels {', '.join(sorted(unknown))}: expected some of {', '.join(LEVELS)}")
        if self.choose not in ("all", "one", "pair"):
            raise DataError(f"choose must be all, one or pair, not {self.choose!r}")
        if self.keep and len(self.keep) != len(self.names):
            raise DataError(f"keep has {len(self.keep)} numbers for the modalities {', '.join(self.names)}")

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        record = example
        views = self.chosen(record, rng)
        seed = int(rng.integers(2**31)) if self.steps else 0
        images = []
        for k, view in enumerate(views):
            image, _ = load_view(record, view, None)
            single = {"image": image, "modality": np.int32(self.names.index(view.modality))}
            images.append(apply(self.steps, single, seed, k)["image"])
        visit, eyes, of_views = self.texts(record, views)
        labels = labels_of(record) if self.labels else {}
        return {
            "views": np.stack(images),
            "view_modality": np.array([self.names.index(view.modality) for view in views], np.int32),
            "view_eye": np.array([EYES.index(view.eye) for view in views], np.int32),
            "text": visit,
            "eye_text": eyes,
            "view_text": of_views,
            "patient": patient_number(record.patient),
            "visit": patient_number(f"{record.patient or record.where} day {record.day}"),
            **labels,
        } | targets_of(record, self.targets, (0, 0), (0, 0))

    def size(self, record: Record, rng: np.random.Generator) -> Size:
        """The size of the visit in a batch, for the same random numbers as a call. Images are not read."""
        views = self.chosen(record, rng)
        visit, eyes, of_views = self.texts(record, views)
        texts = len({text for text in (visit, *eyes, *of_views) if text})
        return Size(len(views), texts, int(patient_number(record.patient)))

    def chosen(self, record: Record, rng: np.random.Generator) -> tuple[View, ...]:
        """The selected views, in the order of the record."""
        views = [view for view in record.views if view.modality in self.names]
        if not views:
            raise DataError(f"{name_of(record)}: has no view of {', '.join(self.names)}")
        if self.keep:
            draws = rng.random(len(views))
            kept = [v for v, x in zip(views, draws, strict=True) if x < self.keep[self.names.index(v.modality)]]
            views = kept or [views[int(np.argmin(draws))]]  # keep at least one view
        if self.choose == "one":
            return (views[int(rng.integers(len(views)))],)
        if self.choose == "pair" and (pairs := _pairs(views)):
            return pairs[int(rng.integers(len(pairs)))]
        if len(views) > self.most:
            kept = sorted(rng.permutation(len(views))[: self.most])
            views = [views[k] for k in kept]
        return tuple(views)

    def texts(self, record: Record, views: Sequence[View]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """The texts of the visit, of the left and the right eye, and of each view; "" if missing."""
        visit = record.report if self.text == "report" else ", ".join(record.findings)
        above = visit if self.inherit else ""
        seen = {view.eye for view in views}
        by_eye = {side: record.eye_reports.get(side) or above for side in SIDES}
        eyes = tuple(by_eye[side] if side in seen else "" for side in SIDES)
        each = [(view, view.report or (by_eye.get(view.eye, above) if self.inherit else "")) for view in views]
        of_views = tuple(worded(view, text, self.prompt) if text else "" for view, text in each)
        return (
            visit if "visit" in self.levels else "",
            eyes if "eye" in self.levels else ("", ""),
            of_views if "view" in self.levels else ("",) * len(views),
        )


def labels_of(record: Record) -> dict[str, np.int32]:
    """label, label_left and label_right of a visit, -1 if unknown. An eye has the label of its first labelled view."""
    labels = {"label": record.targets.get("label", -1)}
    for side in SIDES:
        of_views = [view.targets["label"] for view in record.views if view.eye == side and "label" in view.targets]
        labels[f"label_{side}"] = record.targets.get(f"label_{side}", of_views[0] if of_views else -1)
    return {name: np.int32(value) for name, value in labels.items()}


def _pairs(views: Sequence[View]) -> list[tuple[View, ...]]:
    """All pairs of views of the same known eye in different modalities."""
    return [
        (first, second)
        for k, first in enumerate(views)
        for second in views[k + 1 :]
        if first.eye and first.eye == second.eye and first.modality != second.modality
    ]


def shares_kept(counts: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
    """The probability of keeping a view of each modality, so that the fractions of the kept views are `shares`.

    `counts` are the numbers of views of each modality. The probabilities are as large as possible, so the largest is 1.
    Raises DataError for negative shares, for shares that are all 0, and for a modality with a share but without views.
    """
    if min(shares) < 0 or max(shares) <= 0 or len(shares) != len(counts):
        raise DataError(f"shares {tuple(shares)}: expected a number from 0 for each of {len(counts)} modalities")
    if any(share and not count for share, count in zip(shares, counts, strict=True)):
        raise DataError(f"shares {tuple(shares)}: modalities occur {tuple(counts)} times")
    wanted = [share / count if count else 0.0 for share, count in zip(shares, counts, strict=True)]
    return tuple(ratio / max(wanted) for ratio in wanted)


@dataclass(frozen=True)
class FlipVisit:
    """Mirror all views of a visit and keep all statements about left and right correct, like Flip for single images."""

    probability: float = 0.5

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.probability:
            return example
        swapped = {
            "views": example["views"][:, :, ::-1],
            "view_eye": np.array([1, 0, 2], np.int32)[example["view_eye"]],
            "text": swap_sides(example["text"]),
            "eye_text": tuple(swap_sides(text) for text in reversed(example["eye_text"])),
            "view_text": tuple(swap_sides(text) for text in example["view_text"]),
        }
        return example | swapped


@dataclass(frozen=True)
class TokenizeVisit:
    """Replace the texts of a visit by the token ids `texts` i32 [t L] of the different texts, and by row indices.

    The indices are text_at i32 [], eye_text_at i32 [2] and view_text_at i32 [v], -1 without a text.
    """

    tokenizer: Callable[[Sequence[str]], np.ndarray]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        levels = {"text": (example["text"],), "eye_text": example["eye_text"], "view_text": example["view_text"]}
        different = list(dict.fromkeys(text for texts in levels.values() for text in texts if text))
        at = {text: k for k, text in enumerate(different)} | {"": -1}
        rows = {f"{name}_at": np.array([at[text] for text in texts], np.int32) for name, texts in levels.items()}
        ids = np.asarray(self.tokenizer(different or [""]), np.int32)[: len(different)]
        rest = {key: value for key, value in example.items() if key not in levels}
        return rest | {"texts": ids} | rows | {"text_at": rows["text_at"][0]}


@dataclass(frozen=True)
class PadVisit:
    """Pad the views of a visit to `most`: views u8 [V S S 3], view_present bool [V], view_modality and view_eye i32 [V].

    Use it for methods that need a fixed number of views per visit. packing.py makes batches without padding.
    """

    most: int = 8

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        count = len(example["views"])
        if count > self.most:
            raise DataError(f"a visit has {count} views; expected at most {self.most}")
        more = self.most - count
        padded: dict[str, Any] = {"view_present": np.arange(self.most) < count}
        for key, blank in (("views", 0), ("view_modality", 0), ("view_eye", 2), ("view_text_at", -1)):
            if key in example:
                ends = [(0, more)] + [(0, 0)] * (example[key].ndim - 1)
                padded[key] = np.pad(example[key], ends, constant_values=blank)
        if "view_text" in example:
            padded["view_text"] = np.array([*example["view_text"], *[""] * more], dtype=str)
        return example | padded
