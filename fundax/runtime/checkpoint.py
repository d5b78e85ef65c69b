"""Checkpoints: asynchronous, atomic, the latest few and the best one, with the data position beside the state.

One folder per step under `<workdir>/checkpoints`, written by Orbax: items `params`, `extra`, `opt` (arrays) and `run`
(JSON: data position, metrics, a fingerprint of every array item). The rest a reader needs (config, preprocessing,
tokenizer) lies beside it in the workdir. A crash in mid-save leaves the earlier steps as they were."""

from __future__ import annotations

import functools
import inspect
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fundax.params import _subtree, _with_subtree, check_same
from fundax.types import Extra, Params, UserError

_ARRAYS = ("params", "extra", "opt")


_OLD = ".old"  # a step goes there by one rename before its files go: a crash leaves no half of a step behind


_ORBAX = Path(ocp.__file__).parent


_policies = ocp.checkpoint_managers


logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file it looks for


# By default every replica writes a slice of every array, which compiles a program per array: in the first save of a
# small model that took longer than all the rest. From 16 MiB a slice on it is worth it.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**24), override=True
)


Best = str | tuple[str, str]  # a logged metric to maximise, or (metric, "min") or (metric, "max")


def ranking(best: Best) -> tuple[str, float]:
    """The name of the metric that ranks checkpoints, and the sign that makes higher values better.

    Raises UserError for anything but a name, (name, "min") or (name, "max").
    """
    name, direction = (best, "max") if isinstance(best, str) else best
    if direction not in ("min", "max"):
        raise UserError(f'Recipe.best is {best!r}; expected a metric, (metric, "min") or (metric, "max")')
    return name, 1.0 if direction == "max" else -1.0


class Checkpoints:
    """The checkpoints of one run. Use as a context: leaving it waits for the save under way.

    Left by an error among several processes it does not wait: a save is finished by all of them, and some may be gone.
    """

    def __init__(self, workdir: str | Path, keep: int = 2, best: Best | None = None) -> None:
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._best = None if best is None else ranking(best)
        keepers: list[Any] = [_policies.LatestN(max(keep, 1))]
        if best:
            # Orbax's own best_fn alone deletes the latest step; a union keeps both.
            keepers.append(_policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policies.AnyPreservationPolicy(keepers),
            best_fn=_score if best else None,
            cleanup_tmp_directories=True,
            todelete_subdir=_OLD,
            enable_async_checkpointing=True,
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ARRAYS}
        self._orbax = ocp.CheckpointManager(
            self.folder, options=options, item_handlers={**handlers, "run": ocp.JsonCheckpointHandler()}
        )

    def __enter__(self) -> Checkpoints:
        self._empty_old()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if jax.process_count() == 1 or kind is None or issubclass(kind, SystemExit):
            self._orbax.close()
            self._empty_old()

    def _empty_old(self) -> None:
        if jax.process_index() == 0:
            for step in (self.folder / _OLD).glob("*"):  # not the folder itself: a thread may be moving a step there
                shutil.rmtree(step, ignore_errors=True)

    def steps(self) -> list[int]:
        """The complete steps on disk, ascending."""
        return sorted(self._orbax.all_steps())

    def latest(self) -> int | None:
        """The last complete step."""
        return self._orbax.latest_step()

    def save(self, step: int, items: Mapping[str, Any], data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Start writing {"params", "extra", "opt"} as this step; a step already there is left alone.

        `data` is the data iterator's state. `metrics` are those of an evaluation at this very step, or empty.
        """
        if step in self._orbax.all_steps():
            return
        self._empty_old()
        run = {"data": dict(data), "metrics": dict(metrics), "fingerprint": _fingerprints(items)}
        args = {k: ocp.args.StandardSave(v) for k, v in items.items() if jax.tree.leaves(v)}
        ranked = None
        if self._best and not np.isnan(value := metrics.get(self._best[0], np.nan)):
            ranked = {"value": float(value), "score": self._best[1] * float(value)}
        self._orbax.save(step, args=ocp.args.Composite(run=ocp.args.JsonSave(run), **args), metrics=ranked, force=True)

    def reached_preemption(self, step: int) -> bool:
        """Whether some process was told to go (SIGTERM) and all are to save at this step; False where JAX runs alone."""
        return self._orbax.reached_preemption(step)

    def wait(self) -> None:
        """Until the save under way is on disk."""
        self._orbax.wait_until_finished()

    def restore(self, step: int, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(items, run) of a step, on the shardings of `abstract` (trees of jax.ShapeDtypeStruct).

        Raises UserError for a checkpoint of another model, and for files that are truncated, missing or altered.
        """
        filled = {k: v for k, v in abstract.items() if jax.tree.leaves(v)}
        try:
            saved = self._orbax.item_metadata(step)
        except Exception as cause:
            raise self._damaged(step, cause) from cause
        for name, tree in filled.items():
            if saved.get(name) is None:
                raise self._damaged(step, f"item {name} is missing or unreadable")
            check_same(f"{self.folder / str(step)}", name, saved[name].tree, tree)
        try:
            args = {k: ocp.args.StandardRestore(v) for k, v in filled.items()}
            found = self._orbax.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore(), **args))
        except Exception as cause:
            _expect_leftovers()
            raise self._damaged(step, cause) from cause
        items = {k: found[k] if k in filled else v for k, v in abstract.items()}
        if _fingerprints(items) != found["run"]["fingerprint"]:
            raise self._damaged(step, "the arrays are not those that were saved")
        return items, found["run"]

    def _damaged(self, step: int, cause: object) -> UserError:
        intact = [s for s in self.steps() if s != step and _intact(self.folder / str(s))]
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        advice = (
            f"step {intact[-1]} is intact: remove {self.folder / str(step)} to go on from there"
            if intact
            else f"no other step is intact: remove {self.folder} to start again"
        )
        return UserError(f"checkpoint of step {step} in {self.folder} is damaged ({lines[0][:200]}); {advice}")


def load_params(workdir: str | Path, checkpoint: int | str = "latest") -> tuple[Params, Extra]:
    """(params, extra) of a run as numpy arrays, on any machine; `which` is "latest", "best" or a step.

    Raises UserError when the run, the step or its files are not there or not whole.
    """
    folder = Path(workdir).absolute() / "checkpoints" / str(resolve(workdir, checkpoint))
    try:
        run = _read_run(folder)
        names = [name for name in ("params", "extra") if name in run["fingerprint"]]
        items = {name: _read_item(folder / name) for name in names}
    except Exception as cause:
        _expect_leftovers()
        raise UserError(f"checkpoint {folder} is damaged ({_first_line(cause)}); load another step") from cause
    wrong = [name for name, tree in items.items() if run["fingerprint"][name] != _fingerprint(tree)]
    if wrong:
        raise UserError(f"checkpoint {folder}: {wrong[0]} is not what was saved; load another step")
    return items["params"], items.get("extra", {})


def resolve(workdir: str | Path, checkpoint: int | str = "latest") -> int:
    """The step that "latest", "best" or a number stands for; "best" is by the metric the run was ranked by."""
    folder, steps = Path(workdir) / "checkpoints", saved_steps(workdir)
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        values = {step: _ranked(folder / str(step)) for step in steps}
        ranked = {step: value for step, value in values.items() if value is not None}
        if not ranked:
            raise UserError(f"{workdir}: no checkpoint was ranked; set Recipe.best, or ask for one of {steps}")
        return max(ranked, key=lambda step: (ranked[step], step))
    if str(checkpoint).isdigit() and int(checkpoint) in steps:
        return int(checkpoint)
    raise UserError(f"{workdir} has no checkpoint {checkpoint!r}; expected latest, best or one of {steps}")


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps that a run holds checkpoints of, ascending. Raises UserError where there is none."""
    folder = Path(workdir) / "checkpoints"
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    if not steps:
        raise UserError(f"{workdir} holds no checkpoints; expected {folder}/<step>")
    return steps


def partial(where: str, checkpoint: int | str = "latest") -> Callable[[Params], Params]:
    """A step of `init_from`: take a subtree of another run, "runs/x:image", or all of it, "runs/x".

    The rest keeps its fresh values. The subtree must exist on both sides with equal shapes, else UserError.
    """
    workdir, _, inside = where.partition(":")
    keys = tuple(key for key in inside.split("/") if key)

    def take(params: Params) -> Params:
        loaded, _ = load_params(workdir, checkpoint)
        theirs, ours = _subtree(loaded, keys, workdir), _subtree(params, keys, "this model")
        check_same(where, inside or "params", theirs, ours)
        return _with_subtree(params, keys, theirs)

    return take


# A wrap-around sum of every array's bits: the same number on any mesh, on a device or in numpy. Orbax notices a
# truncated file; this notices altered bytes.


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
    """What steps are ranked by, higher is better. Runs saved before 0.2 have a value alone, which was maximised."""
    return float(metrics.get("score", metrics["value"]))


def _read_item(folder: Path) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _read_run(folder: Path) -> dict[str, Any]:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(folder / "run", args=ocp.args.JsonRestore())


def _ranked(folder: Path) -> float | None:
    if not (folder / "metrics").is_dir():
        return None
    with ocp.Checkpointer(ocp.JsonCheckpointHandler(filename="metrics")) as reader:
        return _score(reader.restore(folder / "metrics", args=ocp.args.JsonRestore()))


def _intact(folder: Path) -> bool:
    try:
        run = _read_run(folder)
        names = [name for name in _ARRAYS if (folder / name).is_dir()]
        return all(_fingerprint(_read_item(folder / name)) == run["fingerprint"][name] for name in names)
    except Exception:
        _expect_leftovers()
        return False


def _first_line(cause: Exception) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]


@functools.cache
def _expect_leftovers() -> None:
    """After a failed read, keep quiet about Orbax's other reads: it closes their event loop without waiting for them.

    When they end or are collected, Python reports "Event loop is closed" or an error out of their coroutine, at any
    later time and to nobody's use. Every other report goes where it went before.
    """
    before = sys.unraisablehook

    def hook(report: sys.UnraisableHookArgs) -> None:
        closed = isinstance(report.exc_value, RuntimeError) and str(report.exc_value) == "Event loop is closed"
        code = report.object.cr_code if inspect.iscoroutine(report.object) else None
        if not closed and not (code and Path(code.co_filename).is_relative_to(_ORBAX)):
            before(report)

    sys.unraisablehook = hook
