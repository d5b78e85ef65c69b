"""Forecasting data: pairs of visits of an eye, whose earlier images are to predict whether it gets worse."""

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
from data_pipelines.tasks.labelled import Parts, Thumbnail, flips, repeated
from data_pipelines.transforms.steps import Select, Step, eval_step, present
from data_pipelines.transforms.views import Grouped, SingleView

KEYS = ("label", "days", "present", "modality")  # what training needs besides the images


@dataclass(frozen=True)
class Followups:
    """A row for each pair of visits of one eye: the images up to the first (at most `visits`, the latest), the days from
    each to the second, and whether it is worse by then.

    Records of `source` have a patient, a day, an eye where it is known, and a state: `grade` where there is one, a
    change of `label` counting too, else a `label` that is higher where the eye is worse. Targets: label i32 [], days
    f32 [visits], horizon f32 [] (from the last image), present bool [visits]. Views: `visits` of them, the latest first;
    absent ones repeat it. Patients with one visit give no row. Raises DataError naming a record without a state.
    """

    source: Source
    visits: int = 1
    classes: tuple[str, ...] = ("stable", "progression")

    def _pairs(self) -> list[tuple[tuple[int, ...], int]]:
        if "_found" not in self.__dict__:
            object.__setattr__(self, "_found", self._read())
        return self.__dict__["_found"]

    def _read(self) -> list[tuple[tuple[int, ...], int]]:
        eyes: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row in range(len(self.source)):
            record = self.source[row]
            if not {"grade", "label"} & record.targets.keys():
                raise DataError(
                    f"{record.where or f'row {row + 1}'}: has no label; a forecast needs each visit's state"
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
            raise DataError("no patient has two visits of one eye on different days: there is nothing to forecast")
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
    """VisionFM's list: a row has an image, a label of 0 and 1, and (as its `value`) the days between the two."""

    source: Source
    classes: tuple[str, ...] = ("stable", "progression")

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
    """A first step: every view of a record through `first` and `steps`, stacked: image u8 [V h w 3], and the targets.

    A thumbnail and what else is of one view are those of the first view, the latest visit.
    """

    first: Step
    steps: tuple[Step, ...]

    def __call__(self, example: Record, rng: np.random.Generator) -> dict[str, Any]:
        made = []
        for view in example.views:
            one: Any = replace(example, views=(view,))
            for step in (self.first, *self.steps):
                one = step(one, rng)
            made.append(one)
        images = {key: np.stack([one[key] for one in made]) for key in present(made[0])}
        targets = {name: np.asarray(value) for name, value in example.targets.items()}
        return made[0] | targets | images


def single(size_hint: int | None) -> SingleView:
    """What `Visits` reads of each view."""
    return SingleView(size_hint=size_hint, text=None, targets=())


def worse(now: Record, then: Record) -> bool:
    """Whether an eye has come to a higher grade or another class; without grades, to a higher class."""
    a, b = now.targets, then.targets
    if "grade" in a and "grade" in b:
        return bool(b["grade"] > a["grade"] or ("label" in a and b["label"] != a["label"]))
    return bool(b["label"] > a["label"])


def horizons(days: Sequence[float], count: int = 3) -> list[float]:
    """Edges that cut days into `count` bands of about as many rows."""
    return [float(edge) for edge in np.quantile(np.asarray(days, np.float64), np.arange(1, count) / count)]


def questions(data: Data, patients: Patients, seed: int, visits: int = 1) -> Parts:
    """The parts, by patient, each as pairs of visits (Followups), or as the rows of a list (Listed: value=COLUMN)."""
    share = 0.5 if patients.n < 20 else 0.25
    found = labelled.parts(data, patients, seed, share=share)
    listed = any("value=" in word for word in data.data) and "value" in found.train[0].targets
    parts = (found.train, found.val, found.test)
    return Parts(*(Listed(one) if listed else Followups(one, visits) for one in parts))


@dataclass(frozen=True)
class VisitReader:
    """The examples of Followups or Listed for an encoder of single images; see labelled.Reader."""

    parts: Parts
    preprocessing: Mapping[str, Any]
    workers: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a pass that are not given to the encoder."""
        return ("label", "days", "present", "horizon", "modality", "eye", "group", "picture", "index")

    def steps(self, flip: bool, keys: Sequence[str]) -> tuple[Any, ...]:
        """All steps, with random flips or without."""
        steps = (Thumbnail(), *(flips() if flip else ()), eval_step(self.preprocessing))
        first = Grouped(single(2 * int(self.preprocessing["image_size"])))
        return Visits(first, steps), Select(("image", *keys))

    def once(self, part: str, copies: int = 1, batch: int = 64) -> Batches:
        """One pass over a part; of several `copies`, each is flipped at random."""
        source = repeated(getattr(self.parts, part), copies)
        return one_epoch(source, self.steps(copies > 1, self.keys[:-1]), batch=batch, workers=self.workers)
