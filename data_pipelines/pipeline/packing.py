"""Sequence packing for visits: the views of all visits in a batch share a fixed number of image slots, which reduces padding.

A batch has B rows, one per visit, N image slots and T text slots. Rows and slots are divided into parts of equal size. The
images of a row are in the slots of the same part, so each process reads whole parts. `Plan` decides which positions of the
stream go into a batch. A visit that does not fit waits for the next batch, and so does the second visit of a patient.
`pack` puts the examples of a batch into its slots.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.pipeline.collate import Batch, stack
from data_pipelines.records import DataError, Record
from data_pipelines.transforms.steps import Step, stream
from data_pipelines.transforms.visits import Size, VisitViews

_log = logging.getLogger(__name__)
WAITING = 16  # maximum number of waiting visits; then no more visits are read for this batch
KEPT = 512  # number of planned batches that are kept in memory
FEW = 4  # rows of a part: fewer have no room for a visit of many views


@dataclass(frozen=True)
class Pack:
    """The number of slots in a batch of visits.

    Args:
        images, texts: number of image and text slots per row: a batch of B visits has B * images image slots.
        apart: put two visits of the same patient into different batches.
        parts: number of parts of a batch; the largest divisor is used that leaves at least FEW rows in a part. It must be a
            multiple of the number of processes, which does not change the batches.
    """

    images: int = 4
    texts: int = 1
    apart: bool = True
    parts: int = 8

    def __post_init__(self) -> None:
        if self.images < 1 or self.texts < 0 or self.parts < 1:
            raise DataError("a batch of visits has 1 or more images and parts, and 0 or more texts for each row")

    def divided(self, batch: int) -> int:
        """The number of parts of a batch of `batch` rows."""
        fits = (n for n in range(2, self.parts + 1) if not self.parts % n and not batch % n and batch // n >= FEW)
        return max(fits, default=1)


class Plan:
    """The positions of the stream in each batch, i64 [B], -1 for an empty row.

    Batches are planned in order from an initial state: {"step": number of the batch, "position": next position of the
    stream, "waiting": earlier positions that are still to be placed}. They depend only on this state and on the sizes of
    the visits, so all threads and processes plan the same batches.
    """

    def __init__(self, size: Callable[[int], Size], batch: int, room: Pack, state: Mapping[str, Any]) -> None:
        self._size, self._batch, self._room = size, batch, room
        self._states = {int(state["step"]): _State(int(state.get("position", 0)), tuple(state.get("waiting", ())))}
        self._rows: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._logged = False

    def rows(self, step: int) -> np.ndarray:
        """The positions of the batch of a step, i64 [B]. Raises DataError for a visit that is larger than a part."""
        self._reach(step + 1)
        return self._rows[step]

    def state(self, step: int) -> dict[str, Any]:
        """The state before the batch of a step, for JSON."""
        self._reach(step)
        state = self._states[step]
        return {"step": step, "position": state.position, "waiting": list(state.waiting)}

    def _reach(self, step: int) -> None:
        with self._lock:
            last = max(self._states)
            while last < step:
                self._rows[last], self._states[last + 1] = self._next(self._states[last])
                last += 1
                for old in (self._rows, self._states):
                    old.pop(last - KEPT, None)

    def _next(self, state: _State) -> tuple[np.ndarray, _State]:
        """The rows of one batch, and the state after it."""
        parts = self._room.divided(self._batch)
        rows = self._batch // parts
        filled = [_Part(rows, rows * self._room.images, rows * self._room.texts) for _ in range(parts)]
        patients: set[int] = set()
        waiting, position = [], state.position
        queue = list(state.waiting)
        while any(part.rows for part in filled) and (queue or len(waiting) < WAITING):
            here = queue.pop(0) if queue else position
            position += here == position
            size = self._size(here)
            if size.images > filled[0].most[0] or size.texts > filled[0].most[1]:
                raise DataError(_too_large(size, filled[0].most, rows))
            part = next((part for part in filled if part.takes(size)), None)
            repeated = self._room.apart and size.patient >= 0 and size.patient in patients
            if part is None or repeated:
                waiting.append(here)
                if not repeated:
                    self._log_full()
                continue
            part.add(here, size)
            patients.add(size.patient)
        chosen = [part.positions + [-1] * part.rows for part in filled]
        return np.array(chosen, np.int64).reshape(-1), _State(position, (*waiting, *queue))

    def _log_full(self) -> None:
        if not self._logged:
            self._logged = True
            images, texts = self._batch * self._room.images, self._batch * self._room.texts
            _log.info(
                "a visit that does not fit into a batch of %d images and %d texts waits for the next batch",
                images,
                texts,
            )


@dataclass(frozen=True)
class _State:
    position: int
    waiting: tuple[int, ...] = ()


class _Part:
    """The number of rows, images and texts that still fit into a part of a batch."""

    def __init__(self, rows: int, images: int, texts: int) -> None:
        self.rows, self.images, self.texts = rows, images, texts
        self.most = (images, texts)
        self.positions: list[int] = []

    def takes(self, size: Size) -> bool:
        return bool(self.rows) and size.images <= self.images and size.texts <= self.texts

    def add(self, position: int, size: Size) -> None:
        self.positions.append(position)
        self.rows, self.images, self.texts = self.rows - 1, self.images - size.images, self.texts - size.texts


def _too_large(size: Size, most: tuple[int, int], rows: int) -> str:
    return (
        f"a visit has {size.images} images and {size.texts} texts, and {rows} rows of a batch have {most[0]} and {most[1]} "
        "slots; take a larger batch, more slots for each visit, or fewer views"
    )


def size_of(steps: Sequence[Step], record: Record, seed: int, position: int) -> Size:
    """The slots that a record needs, with the random numbers that its first step uses at this position."""
    first = steps[0]
    if not isinstance(first, VisitViews):
        raise DataError(f"batches of whole visits begin with VisitViews, not {type(first).__name__}")
    return first.size(record, stream(seed, position, type(first).__name__, 0))


def pack(examples: Sequence[Mapping[str, Any] | None], room: Pack, parts: int, first: int = 0) -> Batch:
    """Pack the examples of one process, None for an empty row, into the slots of `parts` parts.

    `first` is the number of its first row in the global batch.

    Returns:
        images u8 [N S S 3]; row i32 [N], the row in the global batch, -1 for an empty slot; slot i32 [N], the number of the
        view within its visit; view_modality and view_eye i32 [N]; texts i32 [T L]; text_at i32 [B], eye_text_at i32 [B 2]
        and view_text_at i32 [N], rows of the global `texts` or -1; patient and visit i32 [B], -1 in an empty row; and valid
        bool [B]. Other keys of the examples are stacked, with zeros in empty rows.

    If an example that replaces an unreadable one has more views or texts than slots are free, the rest is left out.
    """
    there = [example for example in examples if example is not None]
    if not there:
        raise DataError("a batch of visits has no visit")
    rows = len(examples) // parts
    packed = [
        _packed(examples[part * rows : (part + 1) * rows], there[0], room, first + part * rows) for part in range(parts)
    ]
    return {key: np.concatenate([one[key] for one in packed]) for key in packed[0]}


OF_VIEWS, OF_TEXTS = ("view_modality", "view_eye"), ("text_at", "eye_text_at", "view_text_at")


def _packed(examples: Sequence[Mapping[str, Any] | None], like: Mapping[str, Any], room: Pack, first: int) -> Batch:
    """Pack one part; `first` is the number of its first row in the global batch."""
    rows, slots, places = len(examples), len(examples) * room.images, len(examples) * room.texts
    images = np.zeros((slots, *like["views"].shape[1:]), np.uint8)
    texts = np.zeros((places, *like["texts"].shape[1:]), np.int32)
    row, slot = np.full(slots, -1, np.int32), np.zeros(slots, np.int32)
    of_views = {key: np.zeros(slots, np.int32) for key in OF_VIEWS}
    of_views["view_text_at"] = np.full(slots, -1, np.int32)
    at = {"text_at": np.full(rows, -1, np.int32), "eye_text_at": np.full((rows, 2), -1, np.int32)}
    image, place = 0, 0
    for r, example in enumerate(examples):
        if example is None:
            continue
        few, some = min(len(example["views"]), slots - image), min(len(example["texts"]), places - place)
        here = slice(image, image + few)
        images[here], row[here], slot[here] = example["views"][:few], first + r, np.arange(few)
        texts[place : place + some] = example["texts"][:some]
        for key in OF_VIEWS:
            of_views[key][here] = example[key][:few]
        of_views["view_text_at"][here] = _moved(example["view_text_at"][:few], some, first * room.texts + place)
        for key, values in at.items():
            values[r] = _moved(example[key], some, first * room.texts + place)
        image, place = image + few, place + some
    return {"images": images, "row": row, "slot": slot, "texts": texts, **of_views, **at, **_others(examples, like)}


def _moved(at: np.ndarray, there: int, by: int) -> np.ndarray:
    """Convert rows of an example's texts to rows of the global texts; -1 for no text and for a text that was left out."""
    return np.where((at >= 0) & (at < there), at + by, -1)


def _others(examples: Sequence[Mapping[str, Any] | None], like: Mapping[str, Any]) -> Batch:
    """The keys [B ...] that are not packed."""
    names = [key for key in like if key not in ("views", "texts", *OF_VIEWS, *OF_TEXTS)]
    blank = {key: np.zeros_like(like[key]) for key in names}
    blank |= {key: np.int32(-1) for key in ("patient", "visit") if key in blank} | {"valid": np.bool_(False)}
    return stack([{key: example[key] for key in names} if example is not None else blank for example in examples])
