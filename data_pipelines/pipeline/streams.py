"""Batches from sources: endless training streams, mixes of sources, and single passes for evaluation.

The example at position p of the global stream is a pure function of (seed, p). Global batch g has the positions
[g*B, (g+1)*B), and process k of n takes its contiguous slice of each batch. So the state of an iterator is {"step": g},
and a run resumes bit-exactly with any number of threads, workers or processes. Batches of whole visits are planned in order
(packing.py); their state also contains the next positions. Grain provides the threads, the worker processes and the shared
memory; no other module uses it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines.pipeline import bad_records as bad
from data_pipelines.pipeline.collate import Batch, stack
from data_pipelines.pipeline.order import derive, order, wheel
from data_pipelines.pipeline.packing import Pack, Plan, pack, size_of
from data_pipelines.pipeline.workers import LoaderOptions, death, initialize, protected
from data_pipelines.records import DataError, Record, Source
from data_pipelines.transforms.steps import Step, apply
from data_pipelines.transforms.visits import Size

_ENDLESS = 2**31  # steps of an endless stream, since Grain needs a length
_REPLACEMENTS = 64  # consecutive unreadable rows before on_bad_image="skip" gives up
_DEFAULT = LoaderOptions()
_SORTED = 2**16  # up to this many rows, an epoch's order is a sorted array; Grain's index_shuffle is slow for few rows


@dataclass(frozen=True)
class Part:
    """One source of a mix, the steps that make examples of its records, and its share of the stream."""

    source: Source
    steps: tuple[Step, ...]
    weight: float = 1.0


def train(source: Source, transforms: Sequence[Step], *, batch: int, seed: int = 0, **reading: Any) -> Data:
    """An endless stream of batches from `source`, shuffled differently in each epoch.

    Args:
        transforms: steps applied to each record.
        batch: rows of a global batch, over all processes.
        **reading: the fields of LoaderOptions. With `on_bad_image="skip"`, an unreadable row is replaced by one drawn
            from (seed, position, attempt), so that all other positions keep their rows.

    A batch has the keys of the examples, stacked, and `index` i64 [B], the row, and `valid` bool [B]. Raises DataError.
    """
    return mix([Part(source, tuple(transforms))], batch=batch, seed=seed, **reading)


def mix(
    parts: Sequence[Part | tuple[Source, Sequence[Step], float]],
    *,
    batch: int,
    seed: int = 0,
    room: Pack | None = None,
    **reading: Any,
) -> Data:
    """An endless stream of batches from several sources, each with its own steps, in proportion to their weights.

    Whole weights, and whole multiples of the smallest weight, are exact: among any sum(weights) consecutive positions,
    weight_i come from part i, evenly spread (1:3 is b a b b, b a b b). Other weights are rounded to 1/10000. See `train`.

    room: the number of images and texts in batches of whole visits, whose first step is VisitViews; None for other data.
    """
    parts = tuple(p if isinstance(p, Part) else Part(p[0], tuple(p[1]), p[2]) for p in parts)
    if not parts or any(p.weight <= 0 or not math.isfinite(p.weight) for p in parts):
        raise DataError(f"a mix takes sources with positive weights, got {[p.weight for p in parts]}")
    if seed < 0:
        raise DataError(f"seed is 0 or more, got {seed}")
    how = LoaderOptions(**reading)
    return Data(_Stream(parts, seed, how.on_bad_image == "skip"), batch, how, room)


def one_epoch(
    source: Source, transforms: Sequence[Step], *, batch: int, room: Pack | None = None, **reading: Any
) -> Data:
    """One pass over `source` for evaluation, without shuffling and without skipping images.

    All processes get the same number of batches. The last batch is padded with copies of the last row, whose `valid` is
    False. `reading` may contain workers, threads and prefetch. With `room`, batches consist of whole visits in order, and
    every batch must fit into it. Raises DataError at the first unreadable image.
    """
    if reading.keys() & {"on_bad_image", "bad_records"}:
        raise DataError("an evaluation never skips images: one_epoch does not take on_bad_image or bad_records")
    return Data(_Pass(source, tuple(transforms)), batch, LoaderOptions(**reading), room)


@dataclass(frozen=True)
class Data:
    """The data of a recipe: a function of (shard, shards) that returns the batches of one process. Opens no file."""

    examples: _Stream | _Pass
    batch: int  # of all processes together
    reading: LoaderOptions = _DEFAULT
    room: Pack | None = None  # for batches of whole visits

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"batch is 1 or more, got {self.batch}")

    def __call__(self, shard: int = 0, shards: int = 1) -> Batches:
        """The batches of process `shard` of `shards`; each has batch / shards rows. Raises DataError."""
        if not 0 <= shard < shards:
            raise DataError(f"process {shard} of {shards} does not exist")
        if self.batch % shards:
            raise DataError(f"a batch of {self.batch} cannot be divided among {shards} processes")
        if self.room and self.room.divided(self.batch) % shards:
            parts = self.room.divided(self.batch)
            raise DataError(
                f"{parts} parts of a batch of {self.batch} visits cannot be divided among {shards} processes"
            )
        return Batches(_Slots(self.examples, self.batch, shard, shards, self.room), self.reading)

    def passes(self) -> tuple[Data, ...]:
        """One pass over each source of a training stream with its own steps, to evaluate on all training data."""
        if isinstance(self.examples, _Pass):
            return (self,)
        return tuple(one_epoch(p.source, p.steps, batch=self.batch, room=self.room) for p in self.examples.parts)


class Batches:
    """The batches of one process. The state is {"step": number of batches taken}; for whole visits, the state of their Plan.

    `skipped` counts the skipped rows. `bad_records` is the file that lists them; it may be set after construction.
    """

    def __init__(self, slots: _Slots, reading: LoaderOptions) -> None:
        self.skipped, self.bad_records = 0, reading.bad_records
        self._slots = slots
        self._reading = reading
        self._step = 0
        self._grain: Any = None
        self._bad: set[tuple[str, int]] = set()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """The next batch; raises DataError for an unreadable image or a dead worker, StopIteration at a pass's end."""
        made = self._next()
        if made["error"] is not None:
            self.close()
            kind, message = made["error"]
            raise (DataError if kind == "data" else RuntimeError)(message)
        self._note([bad.Bad(*row) for row in made["bad"]])
        self._step += 1
        return {key: np.asarray(value) for key, value in made["batch"].items()}

    def get_state(self) -> dict[str, Any]:
        """The state, which can be stored as JSON: {"step": int}, or for whole visits the state of packing.Plan."""
        return {"step": self._step} if self._slots.plan is None else self._slots.plan.state(self._step)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at batch state["step"], with any number of workers and processes."""
        self.close()
        self._step = int(state["step"])
        if self._slots.room:
            self._slots = replace(self._slots, start=json.dumps(state))

    def close(self) -> None:
        """Stop the worker processes and threads; the next batch starts them again."""
        if self._grain is not None:
            self._grain.close()
            self._grain = None

    def _next(self) -> dict[str, Any]:
        try:
            if self._grain is not None:
                return next(self._grain)
            self._grain = iter(_read(self._slots, self._step, self._reading))
            first = functools.partial(next, self._grain)  # starts all workers
            return protected(first) if self._reading.workers else first()
        except (RuntimeError, BrokenPipeError) as error:  # BrokenPipeError if a worker died before it got its task
            code = re.search(r"Worker process .* exit code (-?\d+)", str(error))
            if code is None and not isinstance(error, BrokenPipeError):
                raise
            self.close()
        raise death(int(code[1]) if code else None)

    def _note(self, rows: list[bad.Bad]) -> None:
        fresh = [row for row in rows if (row.file, row.row) not in self._bad]
        self._bad.update((row.file, row.row) for row in fresh)
        self.skipped = len(self._bad)
        if fresh and self.bad_records is not None:
            bad.append(self.bad_records, fresh)


class _Made(NamedTuple):
    """An example, or the reason why it is missing. Errors are values, so that bad data cannot end a worker process."""

    example: dict[str, Any] | None
    bad: tuple[bad.Bad, ...] = ()
    error: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Stream:
    """Maps positions of the endless global stream to examples."""

    parts: tuple[Part, ...]
    seed: int
    skip: bool

    def steps(self, batch: int) -> int:
        for part in self.parts:
            _length(part.source)
        return _ENDLESS

    @functools.cached_property
    def wheel(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return wheel([part.weight for part in self.parts])

    def row(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """The part at `position` and its row."""
        owner, rank, share = self.wheel
        turn, slot = divmod(position, len(owner))
        part = int(owner[slot])
        nth = turn * int(share[part]) + int(rank[slot])  # position within the stream of this part
        length = _length(self.parts[part].source)
        if attempt:
            return part, derive(self.seed, position, attempt) % length
        epoch, place = divmod(nth, length)
        return part, _shuffled(place, length, derive(self.seed, part, epoch))

    def size(self, position: int) -> Size:
        """The slots that the visit at a position needs."""
        part, row = self.row(position)
        return size_of(self.parts[part].steps, self.parts[part].source[row], self.seed, position)

    def make(self, position: int) -> _Made:
        skipped: list[bad.Bad] = []
        for attempt in range(_REPLACEMENTS):
            part, row = self.row(position, attempt)
            seed = derive(self.seed, attempt) if attempt else self.seed
            made = _example(self.parts[part].source, self.parts[part].steps, row, seed, position, self.skip)
            if not made.bad:
                return made._replace(bad=tuple(skipped))
            skipped.extend(made.bad)
        reason = f"{_REPLACEMENTS} consecutive unreadable images, last {skipped[-1].message()}"
        return _Made(None, error=("data", reason))


@dataclass(frozen=True)
class _Pass:
    """Maps rows of a source to examples; positions after the end repeat the last row."""

    source: Source
    transforms: tuple[Step, ...]

    def steps(self, batch: int) -> int:
        return -(-_length(self.source) // batch)

    def make(self, position: int) -> _Made:
        last = _length(self.source) - 1
        made = _example(self.source, self.transforms, min(position, last), 0, min(position, last), skip=False)
        if made.example is not None and position > last:
            made.example["valid"] = np.bool_(False)
        return made


@dataclass(frozen=True)
class _Slots:
    """The examples of one process in order, for Grain, which can start at any of them."""

    examples: _Stream | _Pass
    batch: int
    shard: int
    shards: int
    room: Pack | None = None
    start: str = '{"step": 0}'  # state of the first batch to plan, as JSON

    @property
    def local(self) -> int:
        return self.batch // self.shards

    @functools.cached_property
    def plan(self) -> Plan | None:
        if self.room is None or isinstance(self.examples, _Pass):
            return None
        return Plan(self.examples.size, self.batch, self.room, json.loads(self.start))

    def __len__(self) -> int:
        return self.examples.steps(self.batch) * self.local

    def __getitem__(self, slot: int) -> _Made:
        step, offset = divmod(int(slot), self.local)
        if self.plan is None:
            return self.examples.make(step * self.batch + self.shard * self.local + offset)
        position = int(self.plan.rows(step)[self.shard * self.local + offset])
        return self.examples.make(position) if position >= 0 else _Made(None)

    def collate(self, examples: Sequence[_Made]) -> Batch:
        """Make a batch from the examples of one process; an example of None is an empty row."""
        if self.room is None:
            return stack([made.example for made in examples if made.example is not None])
        parts = self.room.divided(self.batch) // self.shards
        return pack([made.example for made in examples], self.room, parts, self.shard * self.local)


def _length(source: Source) -> int:
    if (length := len(source)) < 1:
        raise DataError(f"{type(source).__name__} has no rows")
    return length


def _shuffled(place: int, length: int, seed: int) -> int:
    """The row at `place` of a permutation of `length` rows, without an array for large lengths."""
    if length <= _SORTED:
        return int(order(length, seed)[place])
    last = length - 1
    last += last & (last - 1) == 0  # Grain 0.2.18 does not permute correctly if the last index is a power of four
    while True:
        place = grain.experimental.index_shuffle(place, max_index=last, seed=seed, rounds=4)
        if place < length:
            return place


def _example(source: Source, steps: tuple[Step, ...], row: int, seed: int, position: int, skip: bool) -> _Made:
    where = f"{type(source).__name__} row {row + 1}"
    record: Record | None = None
    try:
        record = source[row]
        where = record.where or where
        example = dict(apply(steps, record, seed, position))
    except DataError as error:
        unreadable = bad.find(record, row + 1) if skip and record is not None else None
        if unreadable is not None:
            return _Made(None, (unreadable,))
        message = str(error)
        return _Made(None, error=("data", message if where in message else f"{where}: {message}"))
    except Exception:  # an error in a step, not in the data; as text, because some exceptions cannot be pickled
        return _Made(None, error=("step", f"{where}: a step failed\n{traceback.format_exc()}"))
    return _Made({**example, "index": np.int64(row), "valid": np.bool_(True)})


def _collate(slots: _Slots, examples: Sequence[_Made]) -> dict[str, Any]:
    error = next((made.error for made in examples if made.error), None)
    batch: Batch = {}
    if error is None:
        try:
            batch = slots.collate(examples)
        except DataError as wrong:
            error = ("data", str(wrong))
    return {"batch": batch, "bad": list(itertools.chain(*(made.bad for made in examples))), "error": error}


def _read(slots: _Slots, step: int, how: LoaderOptions) -> grain.IterDataset:
    """The batches of one process from `step` on. `how` does not affect their content."""
    sequence: Any = slots
    collate = functools.partial(_collate, slots)
    examples = grain.MapDataset.source(sequence)
    if not how.workers:
        threads = how.threads or os.cpu_count() or 1
        ahead = _ahead(threads, max(threads, slots.local))
        batches = examples[step * slots.local :].to_iter_dataset(ahead).batch(slots.local, batch_fn=collate)
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=how.prefetch)
    # Workers get whole batches in turn, so that their number cannot change the content of a batch.
    batches = examples.batch(slots.local, batch_fn=collate)[step:].to_iter_dataset(_ahead(how.threads, how.threads))
    _parse_flags()
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=how.workers, per_worker_buffer_size=how.prefetch),
        functools.partial(_start_worker, os.getpid()),
    )


def _ahead(threads: int, buffer: int) -> grain.ReadOptions:
    """Options to read with this many threads; a single one is the calling thread, without a handover."""
    return grain.ReadOptions(
        num_threads=threads if threads > 1 else 0, prefetch_buffer_size=buffer if threads > 1 else 0
    )


def _parse_flags() -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only absl.app would parse


def _start_worker(parent: int, worker: int, workers: int) -> None:
    del worker, workers  # Grain passes their numbers
    initialize(parent)
