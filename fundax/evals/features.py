"""Feature extraction from a frozen model, with an optional cache on disk, and batches of extracted features.

Features are kept in memory. The rows of a batch are a function of (seed, step), as in data_pipelines.pipeline."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fundax.params import flatten
from fundax.runtime.arrays import read_arrays
from fundax.types import Batch, Extra, Forward, Objective, Params, UserError

_log = logging.getLogger("fundax")


def extract(
    forward: Forward,
    params: Params,
    extra: Extra,
    data: Callable[[], Iterable[Batch]],
    names: Sequence[str],
    *,
    extra_keys: Sequence[str] = ("label",),
    input_keys: Sequence[str] = (),
    cache: str | Path = "",
    fingerprint: str = "",
    store: dict[bytes, dict[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """Extract features of all non-padding examples.

    Args:
        forward, params, extra: the model.
        data: batches, one pass.
        names: outputs of the forward pass to extract.
        extra_keys: keys of the batches to return as well.
        input_keys: keys of the batches to pass to the model; () means all except `extra_keys`.
        cache: folder for a cache of the features, by a digest of params, extra, the names and `fingerprint`.
        fingerprint: identifies the data (a digest of files, or the settings of a synthetic source). "" disables the cache.

    Returns:
        f32 [N ...] for every feature in `names`, and [N ...] for every key in `extra_keys`.

    Raises UserError if the model does not return a feature, a feature is not finite, a batch lacks a key, or there are
    no rows.
    """
    path = None
    if cache and fingerprint:
        identity = "\n".join((digest(params, extra), *names, *extra_keys, fingerprint))
        path = Path(cache) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
        if (kept := _read(path, (*names, *extra_keys))) is not None:
            return kept
    rows = _pass(_kept(forward, store, names), params, extra, data, names, extra_keys, input_keys)
    if path is not None:
        _write(path, rows)
    return rows


KEPT = 2**17  # rows of a store


def _kept(forward: Forward, store: dict[bytes, dict[str, np.ndarray]] | None, names: Sequence[str]) -> Forward:
    """The forward pass, which is run for batches with a row that the store does not have."""
    if store is None:
        return forward

    def run(params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]:
        arrays = [np.ascontiguousarray(batch[key]) for key in sorted(batch) if key != "valid"]
        count = len(arrays[0])
        keys = [hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays)).digest() for row in range(count)]
        if not all(key in store for key in keys):
            out = forward(params, extra, batch)
            if any(name not in out for name in names) or len(store) + count > KEPT:
                return out
            store.update((key, {name: np.asarray(out[name][row]) for name in names}) for row, key in enumerate(keys))
        return {name: np.stack([store[key][name] for key in keys]) for name in names}

    return run


@functools.lru_cache(maxsize=2)
def _store(identity: str) -> dict[bytes, dict[str, np.ndarray]]:
    """The features that this process has computed with one encoder: the folds of cross-validation share them."""
    del identity
    return {}


def class_features(
    encode: Callable[[Batch], Mapping[str, np.ndarray]],
    prompts: Sequence[np.ndarray],
    text_batch: int = 64,
    *,
    key: str = "text_features",
) -> np.ndarray:
    """Unit features f32 [K E] of classes: the normalised mean of the unit features of the prompts of each class.

    Args:
        encode: the forward pass.
        prompts: token ids i32 [P L] of each class; P may differ.
        text_batch: number of prompts per forward pass; all batches have the same shape.
        key: key of the text features in the output of `encode`.

    Raises UserError for features that are not finite.

    Source: Radford et al. 2021 (CLIP), section 3.1.4, prompt ensembles in feature space.
    """
    prompts = [np.atleast_2d(ids) for ids in prompts]
    ids = np.concatenate(prompts)  # [KP L]
    padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % text_batch, axis=0)])
    parts = [encode({"text": padded[at : at + text_batch]})[key] for at in range(0, len(padded), text_batch)]
    features = np.concatenate(parts)[: len(ids)].astype(np.float32)  # [KP E]
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(f"{key} of prompt {np.flatnonzero(~finite)[0]} are not finite; the weights may be broken")
    ends = np.cumsum([len(part) for part in prompts])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(features, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def digest(*trees: Any) -> str:
    """SHA-256 of the paths, shapes, dtypes and bytes of every array."""
    state = hashlib.sha256()
    for tree in trees:
        for name, leaf in sorted(flatten(tree).items()):
            array = np.ascontiguousarray(leaf)
            state.update(f"{name} {array.dtype} {array.shape}\n".encode())
            state.update(array.tobytes())
    return state.hexdigest()


def _pass(
    forward: Forward,
    params: Params,
    extra: Extra,
    data: Callable[[], Iterable[Batch]],
    names: Sequence[str],
    extra_keys: Sequence[str],
    input_keys: Sequence[str],
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, *extra_keys)}
    for batch in data():
        if missing := [key for key in extra_keys if key not in batch]:
            raise UserError(f"batches have {', '.join(sorted(batch))}; expected also {missing[0]!r}")
        chosen = [key for key in batch if (key in input_keys if input_keys else key not in extra_keys)]
        out = forward(params, extra, {key: batch[key] for key in chosen})
        if missing := [name for name in names if name not in out]:
            raise UserError(f"the model gives {', '.join(sorted(out))}; expected the feature {missing[0]!r}")
        valid = np.asarray(batch["valid"] if "valid" in batch else np.ones(len(out[names[0]]), bool))
        for name in names:
            parts[name].append(np.asarray(out[name], np.float32)[valid])
        for key in extra_keys:
            parts[key].append(np.asarray(batch[key])[valid])
    rows = {name: np.concatenate(part) for name, part in parts.items() if part}
    if not rows or not len(rows[names[0]]):
        raise UserError("the data set has no rows")
    for name in names:
        if not np.isfinite(rows[name]).all():
            raise UserError(f"{name} is not finite in some rows; the weights may be broken")
    return rows


def _read(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        return read_arrays(path, wanted)
    except UserError as error:
        _log.warning("%s: features are computed again", error)
        return None


def _write(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Write under a temporary name first, so that a file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, **rows)  # pyright: ignore[reportArgumentType]
    os.replace(file.name, path)


Rows = Mapping[str, np.ndarray]  # feature f32 [N ...], and other keys of the batches, [N ...]
Read = Callable[[], Rows]


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder, whose forward pass returns `feature`. It is initialised at the first use.

    The objective is initialised from `seed` and then changed by `init_from` and `init_extra`, as in a Recipe. `cache` is
    the folder for cached features, see `extract`.
    """

    objective: Objective
    init_from: tuple[Callable[[Params], Params], ...] = ()
    seed: int = 0
    cache: str = ""
    init_extra: tuple[Callable[[Any], Any], ...] = ()

    @functools.cached_property
    def _state(self) -> tuple[Params, Extra]:
        example = {key: jnp.zeros(s.shape, s.dtype) for key, s in self.objective.batch_spec(1).items()}
        params, extra = jax.jit(lambda rng: self.objective.init(rng, example))(jax.random.key(self.seed))
        for change in self.init_from:
            params = change(jax.device_get(params))
        for change in self.init_extra:
            extra = change(jax.device_get(extra))
        return params, extra

    @functools.cached_property
    def _identity(self) -> str:
        """Digest of what computes the features: the backbone's settings and weights."""
        params, extra = self._state
        weights = digest({"image": params.get("image", params)}, {"image": extra.get("image", {})})
        return f"{getattr(self.objective, 'tower', self.objective)!r} {weights}"

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        run = jax.jit(self.objective.forward)
        return lambda params, extra, batch: jax.device_get(run(params, extra, dict(batch)))

    def rows(self, data: Callable[[], Iterable[Batch]], extra_keys: Sequence[str], fingerprint: str = "") -> Read:
        """Make a function that returns `feature` and the batch keys `extra_keys`, extracted at its first call."""

        @functools.cache
        def read() -> Rows:
            kept = {"cache": self.cache, "fingerprint": fingerprint, "extra_keys": tuple(extra_keys)}
            kept["store"] = _store(self._identity)
            return extract(self._forward, *self._state, data, ("feature",), input_keys=("image", "modality"), **kept)

        return read

    def part(self, reader: Any, name: str, copies: int = 1, fingerprint: str = "", **passes: Any) -> Read:
        """`rows` of the part `name` of reader.parts, repeated `copies` times. See data_pipelines.tasks.labelled.Reader."""
        data = reader.once(getattr(reader.parts, name), copies, **passes)
        return self.rows(data, reader.keys, fingerprint and f"{name} {fingerprint}")


def encoded(
    objective: Objective, start: Any, reader: Any, seed: int = 0, cache: str = "", fingerprint: str = ""
) -> Callable[..., Read]:
    """Make a function from the name of a part to its features by a frozen encoder, see Frozen.part.

    `start` gives the weights: an object with init_from and init_extra, for example from interop.backbone.
    """
    frozen = Frozen(objective, start.init_from, seed, cache, start.init_extra)
    return functools.partial(frozen.part, reader, fingerprint=fingerprint)


@dataclass(frozen=True)
class Whole:
    """Training data of a recipe: all rows of `read()` in every batch, for a problem that is solved as a whole.

    Batches are filled up to `batch` rows with a row whose label is unknown (-1, or NaN).
    """

    read: Read
    batch: int
    label: str = "label"

    @functools.cached_property
    def rows(self) -> Rows:
        """The batch of all rows. Raises UserError if there are more rows than it holds."""
        rows = self.read()
        count = len(rows["feature"])
        if count > self.batch:
            raise UserError(f"{count} rows do not fit a batch of {self.batch}")
        chosen = np.minimum(np.arange(self.batch), count - 1)
        filled = {key: values[chosen] for key, values in rows.items()}
        label = filled[self.label].copy()
        label[count:] = np.nan if label.dtype.kind == "f" else -1
        return filled | {self.label: label}

    def __call__(self, shard: int = 0, shards: int = 1) -> WholeBatches:
        """The iterator of process `shard`."""
        return WholeBatches(self, shard, shards)


class WholeBatches:
    """An iterator over the same rows at every step, without state."""

    bad_records = ""  # no image is read

    def __init__(self, whole: Whole, shard: int, shards: int) -> None:
        self._whole, self._shard, self._local = whole, shard, whole.batch // shards

    def __iter__(self) -> WholeBatches:
        return self

    def __next__(self) -> Batch:
        at = self._shard * self._local
        return {key: values[at : at + self._local] for key, values in self._whole.rows.items()}

    def get_state(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Do nothing: the batches have no state."""
        del state


def passes(exact: bool, read: Read, batch: int, seed: int = 0, balanced: str = "") -> Whole | Epochs:
    """Training data of a probe: Whole for a problem that is solved exactly, else Epochs."""
    return Whole(read, batch) if exact else Epochs(read, batch, seed, balanced)


@dataclass(frozen=True)
class Epochs:
    """Training data of a recipe: infinite batches of the rows of `read()`, reshuffled every epoch.

    `balanced` is a key of class indices [N]. If it is set, the classes alternate, each is shuffled separately, and rows
    with an index below 0 are ignored.
    """

    read: Read
    batch: int
    seed: int = 0
    balanced: str = ""

    def __call__(self, shard: int = 0, shards: int = 1) -> Batches:
        """The iterator of process `shard`. Raises UserError if the batch is not divisible by `shards`."""
        if self.batch % shards:
            raise UserError(f"a batch of {self.batch} does not divide by {shards} processes")
        return Batches(self, shard, shards)

    @functools.cached_property
    def turns(self) -> list[np.ndarray]:
        """The rows of each class, or all rows in a single array without `balanced`."""
        rows = self.read()
        if not self.balanced:
            return [np.arange(len(rows["feature"]))]
        label = rows[self.balanced]
        if label.ndim != 1:
            raise UserError("balanced sampling needs a single class per row, not several labels")
        return [np.flatnonzero(label == k) for k in np.unique(label) if k >= 0]

    def row(self, position: int) -> int:
        """The row at a position of the stream."""
        nth, turn = divmod(position, len(self.turns))
        rows = self.turns[turn]
        epoch, place = divmod(nth, len(rows))
        return int(rows[_order(len(rows), self.seed, turn, epoch)[place]])


class Batches:
    """The batches of one process; the state is {"step": number of batches taken}."""

    bad_records = ""  # no image is read

    def __init__(self, epochs: Epochs, shard: int, shards: int) -> None:
        self._epochs, self._step = epochs, 0
        self._local = epochs.batch // shards
        self._first = shard * self._local

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        at = self._step * self._epochs.batch + self._first
        chosen = np.array([self._epochs.row(at + k) for k in range(self._local)])
        self._step += 1
        return {key: values[chosen] for key, values in self._epochs.read().items()}

    def get_state(self) -> dict[str, Any]:
        """The state as {"step": int}, which can be stored as JSON."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at batch state["step"]."""
        self._step = int(state["step"])


def once(read: Read, batch: int = 256) -> Callable[[], Iterator[Batch]]:
    """Make batches of one ordered pass for evals. The last batch is padded with its last row, where `valid` is False."""

    def batches() -> Iterator[Batch]:
        rows = read()
        count = len(rows["feature"])
        for at in range(0, count, batch):
            chosen = np.minimum(np.arange(at, at + batch), count - 1)
            yield {key: values[chosen] for key, values in rows.items()} | {"valid": np.arange(at, at + batch) < count}

    return batches


@functools.lru_cache(maxsize=64)
def _order(length: int, *words: int) -> np.ndarray:
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    return np.argsort(np.random.Philox(key=seed).random_raw(length), kind="stable")
