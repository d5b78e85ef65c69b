"""Forecasting data: images of earlier visits, labelled by whether the eye is worse at a later visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines.open import Data
from data_pipelines.pipeline import Data as Batches
from data_pipelines.pipeline import one_epoch
from data_pipelines.records import DataError, Record, Source
from data_pipelines.synthetic.sources import Patients
from data_pipelines.tasks import labelled
from data_pipelines.tasks.labelled import Parts, Thumbnail, WithAttributes, attribute_names, flips, repeated
from data_pipelines.transforms.steps import Select, Step, eval_step, present
from data_pipelines.transforms.views import Grouped, SingleView

ANSWERS = ("stable", "progression")
KEYS = ("label", "days", "present", "modality")  # what training needs in addition to the images


@dataclass(frozen=True)
class Followups:
    """One row for each pair of an earlier and a later visit of one eye.

    A row has the images of the last `visits` visits up to the earlier visit, the days from each image to the later visit,
    and whether the eye is worse at the later visit (see `worse`). Patients with a single visit have no row.

    The views are `visits` images, the latest first; missing images are copies of the latest. The targets are label
    i32 [], days f32 [visits], horizon f32 [] (days from the latest image) and present bool [visits].

    Args:
        source: records with a patient, a day, an eye if known, and a `grade` or a `label`.
        visits: number of images per row.
        classes: names of the two answers.

    Raises DataError naming a record that has neither a grade nor a label.
    """

    source: Source
    visits: int = 1
    classes: tuple[str, ...] = ANSWERS

    def _pairs(self) -> list[tuple[tuple[int, ...], int]]:
        if "_rows" not in self.__dict__:
            object.__setattr__(self, "_rows", self._read())
        return self.__dict__["_rows"]

    def _read(self) -> list[tuple[tuple[int, ...], int]]:
        eyes: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row in range(len(self.source)):
            record = self.source[row]
            if not {"grade", "label"} & record.targets.keys():
                raise DataError(
                    f"{record.where or f'row {row + 1}'}: has no label; a forecast needs a label at each visit"
                )
            eyes.setdefault((record.patient, record.views[0].eye), []).append((record.day, row))
        pairs = []
        for visits in eyes.values():
            rows = [row for _, row in sorted(visits)]
            days = [day for day, _ in sorted(visits)]
            for at in range(len(rows)):
                before = tuple(reversed(rows[max(0, at + 1 - self.visits) : at + 1]))
                pairs += [(before, rows[later]) for later in range(at + 1, len(rows)) if days[later] > days[at]]
        if not pairs:
            raise DataError("no patient has two visits of the same eye on different days, so nothing can be forecast")
        return pairs

    def __len__(self) -> int:
        return len(self._pairs())

    def __getitem__(self, index: int) -> Record:
        before, later = self._pairs()[index]
        seen, then = [self.source[row] for row in before], self.source[later]
        days = [float(then.day - record.day) for record in seen]
        missing = self.visits - len(seen)
        targets = {
            "label": np.int32(worse(seen[0], then)),
            "days": np.array(days + days[:1] * missing, np.float32),
            "horizon": np.float32(days[0]),
            "present": np.array([True] * len(seen) + [False] * missing),
        }
        views = tuple(record.views[0] for record in [*seen, *seen[:1] * missing])
        return replace(seen[0], views=views, targets=targets)


@dataclass(frozen=True)
class Listed:
    """Rows of VisionFM's format: an image, a label (0 or 1), and `value`, the days until the label was determined."""

    source: Source
    classes: tuple[str, ...] = ANSWERS

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label, days = int(record.targets["label"]), np.asarray(record.targets["value"], np.float32).reshape(-1)
        if label not in (0, 1) or len(days) != 1 or not days[0] >= 0:
            raise DataError(f"{record.where}: label {label}, days {days}; expected 0 or 1, and one number from 0 up")
        targets = {"label": np.int32(label), "days": days, "horizon": days[0], "present": np.array([True])}
        return replace(record, targets=targets)


@dataclass(frozen=True)
class Visits:
    """A first step that applies `first` and `steps` to each view and stacks the images to u8 [V h w 3].

    The targets are kept. Other keys, such as the thumbnail, come from the first view, which is the latest visit.
    """

    first: Step
    steps: tuple[Step, ...]

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        made = []
        for view in example.views:
            item: Any = replace(example, views=(view,))
            for step in (self.first, *self.steps):
                item = step(item, rng)
            made.append(item)
        images = {key: np.stack([item[key] for item in made]) for key in present(made[0])}
        targets = {name: np.asarray(value) for name, value in example.targets.items()}
        return made[0] | targets | images


def single(size_hint: int | None) -> SingleView:
    """The step that reads one view for `Visits`."""
    return SingleView(size_hint=size_hint, text=None, targets=())


def worse(now: Record, then: Record) -> bool:
    """Whether an eye is worse at visit `then`: a higher grade or another class or, without grades, a higher class."""
    a, b = now.targets, then.targets
    if "grade" in a and "grade" in b:
        return bool(b["grade"] > a["grade"] or ("label" in a and b["label"] != a["label"]))
    return bool(b["label"] > a["label"])


def horizons(days: Sequence[float], count: int = 3) -> list[float]:
    """Edges that divide days into `count` intervals with about the same number of rows."""
    return [float(edge) for edge in np.quantile(np.asarray(days, np.float64), np.arange(1, count) / count)]


def questions(data: Data, patients: Patients, seed: int, visits: int = 1) -> Parts:
    """The parts, split by patient, as pairs of visits (Followups), or as rows with value=COLUMN (Listed).

    Raises DataError as labelled.parts does, and also if the labels are names whose order was not given.
    """
    share = 0.5 if patients.n < 20 else 0.25
    states = () if data.classes == ANSWERS else data.classes  # the classes of a trained run are its answers
    parts = labelled.parts(data, patients, seed, share=share, classes=states)
    if data.data and "value" in parts.train[0].targets:
        return replace(parts, train=Listed(parts.train), scored=Listed(parts.scored))
    if "grade" not in parts.train[0].targets:
        parts.check_order("states of visits")
    return replace(parts, train=Followups(parts.train, visits), scored=Followups(parts.scored, visits))


@dataclass(frozen=True)
class VisitReader:
    """Read the examples of Followups or Listed for an encoder of single images; see labelled.Reader."""

    parts: Parts
    preprocessing: Mapping[str, Any]
    workers: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a pass that are not given to the encoder."""
        fixed = ("label", "days", "present", "horizon", "modality", "eye", "group", "picture")
        return (*fixed, *attribute_names(self.parts.scored), "index")

    def steps(self, flip: bool, keys: Sequence[str]) -> tuple[Any, ...]:
        """All preprocessing steps, with random flips if `flip`."""
        steps = (Thumbnail(), *(flips() if flip else ()), eval_step(self.preprocessing))
        first = Grouped(single(2 * int(self.preprocessing["image_size"])))
        first = WithAttributes(first, attribute_names(self.parts.scored))
        return Visits(first, steps), Select(("image", *keys))

    def once(self, source: Source, copies: int = 1, batch: int = 64) -> Batches:
        """One pass over `copies` copies of a source; with more than one copy, images are flipped at random."""
        source = repeated(source, copies)
        return one_epoch(source, self.steps(copies > 1, self.keys[:-1]), batch=batch, workers=self.workers)
