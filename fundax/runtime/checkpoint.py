"""Checkpoints: saved asynchronously and atomically by Orbax; keeps the latest few and the best one.

Each step is a folder under `<workdir>/checkpoints` with the items `params`, `extra` and `opt` (arrays) and `run` (JSON:
data position and its digest, metrics, and a fingerprint of every array item). Config, preprocessing and tokenizer are in
the workdir. A crash while saving leaves the earlier steps intact."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fundax.params import _subtree, _with_subtree, check_same
from fundax.runtime.best import Best, measured, ranking
from fundax.runtime.process import configure_orbax, ignore_abandoned_reads
from fundax.runtime.remote import checkpoints_of, is_complete, mirrors_checkpoints, push
from fundax.runtime.workdir import digest_of_json, first_line, refusal
from fundax.tuning import merged
from fundax.types import Extra, Params, UserError

_ARRAYS = ("params", "extra", "opt")
GONE_S = 20.0  # how long to wait, after an error, for a save that other processes may no longer take part in
_OLD = ".old"  # old steps are renamed into this folder before they are deleted, so that a crash leaves no half step
_policies = ocp.checkpoint_managers


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask JAX's preemption service itself.

    The service lets all processes stop at the number after the last one that any of them asked with. Orbax asks with the
    step of each save, also from its own thread: a signal that came next was due at a number that had passed, and was lost.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, as a context manager: exiting waits for the save in progress.

    After an error with several processes it waits for GONE_S at most: a save needs all of them, and some may be gone.
    """

    def __init__(self, workdir: str | Path, keep: int = 2, best: Best | None = None) -> None:
        configure_orbax()
        self.folder: Any = checkpoints_of(workdir)
        self.workdir = workdir
        # a bucket renames by copying, so there steps are deleted where they are
        old = _OLD if isinstance(self.folder, Path) else None
        self._rank = None if best is None else (best, ranking(best)[1])
        keepers: list[Any] = [_policies.LatestN(max(keep, 1))]
        if best:
            # Orbax's own best_fn alone deletes the latest step; a union keeps both.
            keepers.append(_policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policies.AnyPreservationPolicy(keepers),
            best_fn=_score if best else None,
            cleanup_tmp_directories=True,
            todelete_subdir=old,
            enable_async_checkpointing=True,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ARRAYS}
        self._orbax = _Manager(
            self.folder, options=options, item_handlers={**handlers, "run": ocp.JsonCheckpointHandler()}
        )

    def __enter__(self) -> Checkpoints:
        self._empty_old()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if jax.process_count() > 1 and kind is not None and not issubclass(kind, SystemExit):
            self._settle()
            return
        with self._writing():
            self._orbax.close()
        self._empty_old()

    def _settle(self) -> None:
        """Wait for the save in progress, for GONE_S at most."""

        def wait() -> None:
            with contextlib.suppress(Exception):  # the error that led here is the one to report
                self._orbax.wait_until_finished()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(GONE_S)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise UserError, naming what is saved, where the disk or the file system refuses."""
        try:
            yield
        except Exception as error:
            if not (reason := refusal(error)):
                raise
            saved = self.committed()
            good = f"step {saved[-1]} is saved and good" if saved else "nothing is saved"
            raise UserError(f"{self.folder}: a checkpoint cannot be written ({reason}); {good}") from error

    def _empty_old(self) -> None:
        if jax.process_index() == 0 and isinstance(self.folder, Path):
            # Not the folder itself: an Orbax thread may be moving another step into it.
            for step in (self.folder / _OLD).glob("*"):
                shutil.rmtree(step, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps on disk and the one that is being saved, in ascending order."""
        return sorted(self._orbax.all_steps())

    def committed(self) -> list[int]:
        """The steps that are whole on disk, in ascending order, after the save in progress has ended or failed."""
        self._settle()
        return saved_steps(self.workdir) if has_checkpoints(self.workdir) else []

    def save(self, step: int, items: Mapping[str, Any], data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Start saving {"params", "extra", "opt"} as this step; an existing step is not overwritten.

        data: state of the data iterator. metrics: results of an evaluation at this step, or empty.
        """
        if step in self._orbax.all_steps():
            return
        self._empty_old()
        push(self.workdir)  # on remote storage: what the step belongs to is there before the step
        # Items without arrays, such as `extra` of most objectives, are not saved; `restore` puts them back.
        run = {"data": dict(data), "data_digest": digest_of_json(dict(data)), "metrics": dict(metrics)}
        run |= {"fingerprint": _fingerprints(items)}
        args = {k: ocp.args.StandardSave(v) for k, v in items.items() if jax.tree.leaves(v)}
        args = ocp.args.Composite(run=ocp.args.JsonSave(run), **args)
        with self._writing():
            self._orbax.save(step, args=args, metrics=self._ranked(metrics), force=True)
        if mirrors_checkpoints(self.workdir):
            self.wait()
            push(self.workdir)

    def rank(self, step: int, metrics: Mapping[str, float]) -> None:
        """Rank a step that was saved before it was evaluated, because a signal came first."""
        ranked, folder = self._ranked(metrics), self.folder / str(step) / "metrics"
        if ranked and not folder.exists():
            if jax.process_index() == 0:
                temporary = folder.with_name("metrics.tmp")
                temporary.mkdir(exist_ok=True)
                (temporary / "metrics").write_text(json.dumps(ranked))
                temporary.rename(folder)
            self._orbax.reload()

    def _ranked(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """The metric that ranks a step, if there is one and it is a number."""
        if self._rank is None or (value := measured(self._rank[0], metrics)) is None or np.isnan(value):
            return None
        return {"value": value, "score": self._rank[1] * value}

    def reached_preemption(self, count: int) -> bool:
        """Whether any process received SIGTERM, so that all stop at this call; False for a single process.

        count: number of the call, the same in all processes and one higher each time.
        """
        return ocp.CheckpointManager.reached_preemption(self._orbax, count)

    def wait(self) -> None:
        """Wait until the save in progress is on disk."""
        with self._writing():
            self._orbax.wait_until_finished()

    def restore(self, step: int, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(items, run) of a step, with the shardings of `abstract`, trees of jax.ShapeDtypeStruct.

        The mesh may differ from that of the save. Raises UserError for a checkpoint of a different model, and for files
        that are truncated, missing or altered.
        """
        ignore_abandoned_reads()
        filled = {k: v for k, v in abstract.items() if jax.tree.leaves(v)}
        try:
            saved = self._orbax.item_metadata(step)
        except Exception as cause:
            raise self._damaged(step, cause) from cause
        for name, tree in filled.items():
            if saved.get(name) is None:
                raise self._damaged(step, f"item {name} is missing or unreadable")
            # before reading, so that the message names the parameters that differ
            check_same(f"{self.folder / str(step)}", name, saved[name].tree, tree)
        try:
            args = {k: ocp.args.StandardRestore(v) for k, v in filled.items()}
            restored = self._orbax.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore(), **args))
        except Exception as cause:  # Orbax and TensorStore raise many types for damaged files
            raise self._damaged(step, cause) from cause
        items = {k: restored[k] if k in filled else v for k, v in abstract.items()}
        saved_bits = restored["run"]["fingerprint"]
        if any(saved_bits[name] != number for name, number in _fingerprints(items).items()):
            raise self._damaged(step, "the arrays differ from those that were saved")
        position = restored["run"]["data"]
        if restored["run"].get("data_digest", digest_of_json(position)) != digest_of_json(position):
            raise self._damaged(step, "the position in the data differs from the one that was saved")
        return items, restored["run"]

    def _damaged(self, step: int, cause: object) -> UserError:
        intact = [s for s in self.steps() if s != step and _intact(self.folder / str(s))]
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        advice = (
            f"step {intact[-1]} is intact: remove {self.folder / str(step)} to resume from there"
            if intact
            else f"no other step is intact: remove {self.folder} to start over"
        )
        return UserError(f"checkpoint of step {step} in {self.folder} is damaged ({lines[0][:200]}); {advice}")


def load_params(workdir: str | Path, checkpoint: int | str = "") -> tuple[Params, Extra]:
    """(params, extra) of a run as NumPy arrays, with low-rank adapters merged into their kernels; see `load_saved`."""
    params, extra = load_saved(workdir, checkpoint)
    return merged(params), merged(extra)


def load_saved(workdir: str | Path, checkpoint: int | str = "") -> tuple[Params, Extra]:
    """(params, extra) of a run as NumPy arrays, as they were saved; for `checkpoint` see `resolve`.

    No devices of the saving machine are needed. Raises UserError if the run, the step or its files are missing or
    damaged.
    """
    configure_orbax()
    ignore_abandoned_reads()
    folder = checkpoints_of(workdir) / str(resolve(workdir, checkpoint))
    try:
        _check_files(folder)
        run = _read_run(folder)
        names = [name for name in ("params", "extra") if name in run["fingerprint"]]
        items = {name: _read_item(folder / name) for name in names}
    except Exception as cause:
        raise UserError(f"checkpoint {folder} is damaged ({first_line(cause)}); load another step") from cause
    wrong = [name for name, tree in items.items() if run["fingerprint"][name] != _fingerprint(tree)]
    if wrong:
        raise UserError(f"checkpoint {folder}: {wrong[0]} differs from what was saved; load another step")
    return items["params"], items.get("extra", {})


def _check_files(folder: Any) -> None:
    """Raise UserError for a pipe or a device among the files of a step, which would block the reader."""
    for path in Path(folder).rglob("*") if Path(folder).is_dir() else ():
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{path.name} is not a regular file")


def resolve(workdir: str | Path, checkpoint: int | str = "") -> int:
    """Convert "best", "latest" or a number to a step; "" is the best step if the run selected one."""
    steps = saved_steps(workdir)
    if checkpoint in ("", "best"):
        if selected := best_step(workdir):
            return selected[0]
        if checkpoint == "best":
            raise UserError(f"{workdir}: no checkpoint was ranked; set Recipe.best, or ask for one of {steps}")
        return steps[-1]
    if checkpoint == "latest":
        return steps[-1]
    if str(checkpoint).isdigit() and int(checkpoint) in steps:
        return int(checkpoint)
    raise UserError(f"{workdir} has no checkpoint {checkpoint!r}; expected best, latest or one of {steps}")


def best_step(workdir: str | Path) -> tuple[int, float] | None:
    """(step, score) of the best of a run's ranked checkpoints, higher is better; None if none is ranked."""
    folder = checkpoints_of(workdir)
    steps = saved_steps(workdir) if has_checkpoints(workdir) else []
    scores = {step: _ranked(folder / str(step)) for step in steps}
    ranked = [(score, step) for step, score in scores.items() if score is not None]
    if not ranked:
        return None
    score, step = max(ranked)
    return step, score


def has_checkpoints(workdir: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return bool(_steps_in(checkpoints_of(workdir)))


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps of a run's checkpoints, in ascending order. Raises UserError if there is none."""
    folder = checkpoints_of(workdir)
    steps = _steps_in(folder)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoints; expected {folder}/<step>")
    return steps


def read_metrics(workdir: str | Path, step: int) -> dict[str, float] | None:
    """Results of the evaluation that a step was saved with, {} if there was none; None if that cannot be read."""
    try:
        return _read_run(checkpoints_of(workdir) / str(step))["metrics"]
    except Exception:  # opening the run says what is wrong with it
        return None


def _steps_in(folder: Any) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and is_complete(path))


def partial(where: str, checkpoint: int | str = "") -> Callable[[Params], Params]:
    """A step of `init_from` that loads a subtree of another run ("runs/x:image") or all its parameters ("runs/x").

    The other parameters keep their initial values. Raises UserError, when applied, if the subtree is missing on one side
    or has other shapes.
    """
    workdir, _, inside = where.partition(":")
    keys = tuple(key for key in inside.split("/") if key)

    def take(params: Params) -> Params:
        loaded, _ = load_params(workdir, checkpoint)
        theirs, ours = _subtree(loaded, keys, workdir), _subtree(params, keys, "this model")
        check_same(where, inside or "params", theirs, ours)
        return _with_subtree(params, keys, theirs)

    return take


# Fingerprints: the sum modulo 2^32 of the bits of all arrays of an item. Integer sums do not depend on the order, so the
# number is the same on any mesh, on the device and in NumPy. Orbax notices a truncated file, but not altered bytes.


def _fingerprints(items: Mapping[str, Any]) -> dict[str, int]:
    filled = {k: v for k, v in items.items() if jax.tree.leaves(v)}
    return {k: int(v) for k, v in jax.jit(_fingerprint_all)(filled).items()}


def _fingerprint_all(items: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sum(_sums(tree, jnp), start=jnp.uint32(0)) for name, tree in items.items()}


def _fingerprint(tree: Any) -> int:
    return sum(int(x) for x in _sums(tree, np)) % 2**32


def _sums(tree: Any, xp: Any) -> list[Any]:
    return [xp.sum(_bits(x, xp), dtype=xp.uint32) for x in jax.tree.leaves(tree)]


def _bits(x: Any, xp: Any) -> Any:
    whole = {1: xp.uint8, 2: xp.uint16}.get(x.dtype.itemsize, xp.uint32)
    if xp is np:
        return np.ascontiguousarray(x).view(whole)
    return jax.lax.bitcast_convert_type(x if x.dtype != jnp.bool_ else x.astype(jnp.uint8), whole)


def _score(metrics: Mapping[str, float]) -> float:
    """The score that ranks steps; higher is better. Runs saved before version 0.2 have only a value, to be maximised."""
    return float(metrics.get("score", metrics["value"]))


def _read_item(folder: Any) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _read_run(folder: Any) -> dict[str, Any]:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(folder / "run", args=ocp.args.JsonRestore())


def _ranked(folder: Any) -> float | None:
    path = folder / "metrics" / "metrics"  # not read by Orbax, which would start JAX's processes
    return _score(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _intact(folder: Any) -> bool:
    try:
        run = _read_run(folder)
        names = [name for name in _ARRAYS if (folder / name).is_dir()]
        return all(_fingerprint(_read_item(folder / name)) == run["fingerprint"][name] for name in names)
    except Exception:
        return False
