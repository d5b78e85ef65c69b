"""The training loop, which is the same for every method.

The recipe is compared with what the workdir holds, and nothing is written before that (fundax/train/stored.py). The state is
restored from the latest checkpoint if there is one; otherwise parameters are initialised and `init_from` is applied.
Evaluations run before the first step. Then every batch is placed and a step is run, with logging, evaluations and
checkpoints at their intervals and at the last step. With steps=0 only the evaluations run.

If a metric selects the best checkpoint, evals/*.npz are those of the best step, else of the latest."""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.optim import rate_of
from fundax.recipe import Recipe
from fundax.runtime import accumulate, remote
from fundax.runtime import argv as words
from fundax.runtime import mesh as meshes
from fundax.runtime import workdir as folders
from fundax.runtime.best import measured, ranking
from fundax.runtime.checkpoint import Checkpoints, best_step, has_checkpoints, read_metrics, resolve, saved_steps
from fundax.runtime.distributed import check_alike
from fundax.runtime.finite import Finite, not_finite
from fundax.runtime.lock import owned
from fundax.runtime.log import Log, say
from fundax.runtime.preemption import Interrupted, Preemption
from fundax.runtime.prefetch import Prefetcher
from fundax.runtime.process import configure_orbax
from fundax.runtime.speed import Profile, Speed
from fundax.train.state import TrainState, abstract_state, check_tune, fresh
from fundax.train.stored import changes, check_evaluation, describe, digest_of_data, in_words
from fundax.tuning import count_trained, join, split
from fundax.types import Batch, Extra, Metrics, Params, UserError

BAD_RECORDS = "bad_records.jsonl"  # list of skipped images in the workdir, if the user chose to skip unreadable ones


def fit(recipe: Recipe, workdir: str | Path, checkpoint: int | str = "", take_over: bool = False) -> TrainState:
    """Train a recipe to its last step, resuming from `workdir` if it holds checkpoints; returns the final state.

    A run of other settings is refused before anything is written (fundax/train/stored.py); a complete run is left as it is.

    Args:
        recipe: see Recipe.
        workdir: folder of the run, or its address on remote storage (runtime.remote).
        checkpoint: the checkpoint to evaluate if recipe.steps is 0, see runtime.checkpoint.resolve. Training always
            resumes from the latest.
        take_over: own the workdir at once although another machine's process does, see runtime.lock.owned.

    Raises:
        UserError: an error the user can fix, including a loss that is not finite; the last checkpoint is kept.
        SystemExit: after Ctrl-C (code 130) or SIGTERM (code 0), with the state saved.
    """
    with remote.mirrored(workdir) as folder:
        return _fit(recipe, folder, checkpoint, take_over)


def _fit(recipe: Recipe, workdir: Path, checkpoint: int | str, take_over: bool) -> TrainState:
    configure_orbax()
    mesh = meshes.make_mesh(recipe.mesh)
    check_batch(recipe, mesh)
    check_tune(recipe)
    check_alike(_settings(recipe))
    evaluating = recipe.steps == 0 and has_checkpoints(workdir)
    changed = check_evaluation(recipe, workdir) if evaluating else changes(recipe, workdir)
    check_best(recipe, recipe.evals)
    folders.make(workdir)
    with (
        nullcontext() if jax.process_index() else owned(workdir, take_over),
        jax.set_mesh(mesh),
        Checkpoints(workdir, recipe.keep, recipe.best) as kept,
        Preemption(kept.reached_preemption) as preemption,
    ):
        restored = bool(kept.steps())
        try:
            state, position, owed = preemption.during(_start, recipe, mesh, kept, checkpoint)
            first, last, where = int(state.step), recipe.steps, remote.shown(workdir)
            if first >= last > 0 and not owed:
                selected = _selected(recipe, workdir)
                say(f"{where} is complete, at step {first} of {last}; nothing was changed. {selected}")
                return state
            given = {"step": first, "steps": last, "batch": recipe.batch, "writers": recipe.writers}
            with Log(workdir, restored=restored, **given) as log:
                if not evaluating:
                    describe(recipe, workdir, first, changed)
                log.info(
                    _opening(recipe, mesh, state, restored) + (f"; changed: {in_words(changed)}" if changed else "")
                )
                evaluate = _evaluator(recipe, mesh, workdir, log, preemption)
                row = evaluate(first, state) if first == 0 or not last or owed else {}
                if owed:
                    kept.rank(first, row)
                if first < last:
                    return _train(recipe, workdir, mesh, kept, preemption, log, evaluate, state, position)
        except Interrupted:
            say(f"Stopped. {remote.shown(workdir)} is as it was: nothing new was to be saved. Rerun the same command.")
            raise SystemExit(preemption.exit_code) from None
    return state


def _train(
    recipe: Recipe,
    workdir: str | Path,
    mesh: Mesh,
    kept: Checkpoints,
    preemption: Preemption,
    log: Log,
    evaluate: Callable[[int, TrainState], dict[str, float]],
    state: TrainState,
    position: Mapping[str, Any] | None,
) -> TrainState:
    """The steps after those of `state` up to the last one. Raises SystemExit after a signal, with the state saved."""
    first, last, intervals = int(state.step), recipe.steps, recipe.intervals
    run_step, spec = train_step(recipe), recipe.objective.batch_spec(recipe.batch // jax.process_count())
    skipped, metrics, done = Path(workdir) / BAD_RECORDS, {}, first
    healthy = Finite(kept)
    with Prefetcher(recipe.train, spec, mesh, position, first, last, skipped, preemption.listen_alone) as data:
        log.waited = data.waited
        trace = Profile(workdir, recipe.profile, first, last)
        try:
            for step in range(first + 1, last + 1):
                batch = data.take(metrics.get("loss"))
                trace.before(step)
                if step == first + 1:
                    log.speed = preemption.together(compiled, recipe, mesh, run_step, state, batch).row
                    state, metrics = preemption.during(_first_step, run_step, state, batch)
                    log.start_clock(step)
                else:
                    state, metrics = run_step(state, batch)
                done = step
                healthy.note(step, metrics)
                if trace.after(step, metrics):
                    log.info(f"profiled {recipe.profile} steps: tensorboard --logdir {remote.shown(workdir)}/profile")
                if _due(step, intervals.log, last):
                    healthy.check()
                    log.train(step, metrics | data.counts())
                if preemption.agreed(step, intervals.log) and step < last:
                    raise Interrupted
                scores, saves = _due(step, intervals.eval, last), _due(step, intervals.save, last)
                if scores or saves:
                    healthy.check(done, _items(state))
                row = evaluate(step, state) if scores else {}
                if saves or (row and recipe.best):
                    kept.save(step, _items(state), data.state, row)
        except Interrupted:
            if done == first:  # the state that it began from is saved, or can be made again
                raise
            healthy.check(done, _items(state))
            kept.save(done, _items(state), data.state, {})
            kept.wait()
            log.info(
                f"Stopped at step {done}/{last}. Checkpoint saved to {remote.shown(workdir)}. Rerun the same command to resume."
            )
            raise SystemExit(preemption.exit_code) from None
    kept.wait()
    log.info(f"Finished at step {last}. {_selected(recipe, workdir)}")
    return state


def compiled(recipe: Recipe, mesh: Mesh, run_step: Any, state: TrainState, batch: Batch) -> Speed:
    """The speed of a step. Where several processes call it, they compile first: Gloo gives up on a collective after 30 s."""
    if jax.process_count() > 1:
        run_step.lower(state, batch).compile()  # the first step finds it in jit's cache
    partly = recipe.tune.rows is not None
    return Speed(run_step, (state, batch), recipe.objective, list(mesh.devices.flat), partly)


def _first_step(run_step: Any, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """The step that is compiled; it is waited for, so that compiling does not count as throughput."""
    return jax.block_until_ready(run_step(state, batch))


def is_complete(recipe: Recipe, workdir: str | Path) -> bool:
    """Whether the run in `workdir` is at the recipe's last step or beyond, and evaluated."""
    if not recipe.steps or not has_checkpoints(workdir):
        return False
    step = saved_steps(workdir)[-1]
    return step >= recipe.steps and not _owed(recipe, step, read_metrics(workdir, step))


def _owed(recipe: Recipe, step: int, metrics: Mapping[str, float] | None) -> bool:
    """Whether a step was due for evaluation, and saved without because of a signal. metrics: None where not known."""
    due = bool(recipe.evals) and step <= recipe.steps and _due(step, recipe.intervals.eval, recipe.steps)
    return due and metrics is not None and not metrics


def train_step(recipe: Recipe) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One jitted update, which donates the state. Random numbers depend only on the seed and the step."""
    value_and_grad = accumulate.value_and_grad(recipe.objective, recipe.accumulate)
    tune = recipe.tune

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        trained, fixed = split(tune, state.params)
        whole = functools.partial(join, fixed=fixed)
        (loss, (extra, metrics)), grads = value_and_grad(trained, state.extra, batch, rng, state.step, whole)
        grads = meshes.constrain(grads, recipe.rules)
        updates, opt = recipe.optimizer.update(grads, state.opt, trained)
        moved: Any = optax.apply_updates(trained, updates)
        params = whole(moved)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **metrics}
        if (rate := rate_of(opt)) is not None:
            metrics["learning_rate"] = rate
        return meshes.constrain(TrainState(state.step + 1, params, extra, opt), recipe.rules), metrics

    return jax.jit(update, donate_argnums=0)


def _start(
    recipe: Recipe, mesh: Mesh, kept: Checkpoints, checkpoint: int | str
) -> tuple[TrainState, dict[str, Any] | None, bool]:
    """The state to go on from: that of a checkpoint if there is one; see _restore."""
    if not kept.steps():
        return (*fresh(recipe, mesh), False)
    return _restore(recipe, mesh, kept, resolve(kept.workdir, checkpoint))


def _restore(recipe: Recipe, mesh: Mesh, kept: Checkpoints, step: int) -> tuple[TrainState, dict[str, Any], bool]:
    """The state of a checkpoint, the position of its data, and whether its evaluation is owed (_owed)."""
    step = step if recipe.steps == 0 else kept.steps()[-1]
    abstract = abstract_state(recipe, mesh)
    wanted = _items(abstract) if recipe.steps else {**_items(abstract), "opt": ()}  # an evaluation needs no moments
    items, run = kept.restore(step, wanted)
    if recipe.steps and (broken := not_finite(items)):
        raise UserError(
            f"checkpoint of step {step} in {kept.folder}: {broken} not finite; remove {kept.folder / str(step)} to resume "
            f"from an earlier step ({', '.join(map(str, kept.steps()[:-1])) or 'there is none'})"
        )
    state = TrainState(meshes.device_put(np.int32(step), abstract.step.sharding), **items)
    return state, run["data"], _owed(recipe, step, run.get("metrics"))


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "extra": state.extra, "opt": state.opt}


def _due(step: int, intervals: int, last: int) -> bool:
    return step == last or (intervals > 0 and step % intervals == 0)


def _evaluator(
    recipe: Recipe, mesh: Mesh, workdir: str | Path, log: Log, preemption: Preemption
) -> Callable[[int, TrainState], dict[str, float]]:
    run = jax.jit(recipe.objective.forward, out_shardings=NamedSharding(mesh, P()))
    selected = _BestSoFar(recipe, workdir)
    compiled_for: set[str] = set()

    def forward(params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]:
        preemption.listen()
        placed = meshes.shard_full_batch(batch, mesh)
        if jax.process_count() > 1 and (shapes := str(jax.tree.map(jnp.shape, placed))) not in compiled_for:
            preemption.together(lambda: run.lower(params, extra, placed).compile())  # a signal is heard meanwhile
            compiled_for.add(shapes)
        return jax.device_get(run(params, extra, placed))

    def results(state: TrainState) -> dict[str, dict[str, np.ndarray]]:
        given = {name: one(forward, state.params, state.extra) for name, one in recipe.evals.items()}
        return {name: {key: np.asarray(value) for key, value in found.items()} for name, found in given.items()}

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        row: dict[str, float] = {}
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for name, found in preemption.during(results, state).items():  # what a signal leaves unfinished writes nothing
            numbers = {key: float(v) for key, v in found.items() if not v.ndim and v.dtype.kind in "biuf"}
            row |= {f"{name}/{key}": value for key, value in numbers.items()}
            arrays[name] = {key: value for key, value in found.items() if key not in numbers}
        if recipe.steps:
            check_best(recipe, row)
        if selected.by(step, row):
            for name, found in arrays.items():
                folders.write_arrays(workdir, name, found | _about(recipe, name, step) if found else {})
        log.evaluation(step, row)
        return row

    return evaluate


def _about(recipe: Recipe, name: str, step: int) -> dict[str, np.ndarray]:
    """A JSON record of the data and step of the results in evals/<name>.npz, so that different ones are not combined."""
    part = name if name in ("val", "test", "all") else recipe.data.get("part", "")
    about = {
        "data": [source["name"] for source in recipe.data.get("sources", [])],
        "digest": digest_of_data(recipe.data),
    }
    about |= {"part": part, "step": step, "preprocessing": folders.digest_of_json(dict(recipe.preprocessing))}
    return {"about": np.array(json.dumps(about, ensure_ascii=False))}


class _BestSoFar:
    """Whether a step is the best of the run so far, so that its arrays are kept; without a ranked step, every step is."""

    def __init__(self, recipe: Recipe, workdir: str | Path) -> None:
        self._best = recipe.best if recipe.steps else None
        found = best_step(workdir) if self._best else None
        self._score = found[1] if found else None

    def by(self, step: int, row: Mapping[str, float]) -> bool:
        value = measured(self._best, row) if self._best else None
        if self._best is None or value is None or np.isnan(value) or step == 0:  # step 0 is not saved
            return self._score is None
        score = ranking(self._best)[1] * value
        if self._score is not None and score < self._score:
            return False
        self._score = score
        return True


def _selected(recipe: Recipe, workdir: str | Path) -> str:
    """A line with the selected checkpoint and its path."""
    folder, latest = f"{remote.shown(workdir)}/checkpoints", saved_steps(workdir)[-1]
    if recipe.best is None:
        return f"Latest checkpoint: {folder}/{latest}."
    (name, sign), best = ranking(recipe.best), best_step(workdir)
    if best is None:
        return f"No step was selected, as {name} was not a number in any evaluation. Latest: {folder}/{latest}."
    which = f"step {best[0]}, {name} {sign * best[1]:.4f}"
    return f"Best checkpoint: {which}, in {folder}/{best[0]}; evals and figures are of it. Latest: step {latest}."


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that all processes of a run must share; paths may differ between machines."""
    arguments = {k: v for k, v in recipe.source.get("args", {}).items() if k not in words.PATHS}
    return arguments | {name: getattr(recipe, name) for name in ("steps", "batch", "accumulate", "seed")}


def check_batch(recipe: Recipe, mesh: Mesh) -> None:
    """Raise UserError if the batch does not divide over the mesh, the micro-batches and the processes."""
    parts = meshes.batch_parts(mesh) * recipe.accumulate
    if recipe.batch % parts or recipe.batch % jax.process_count():
        what = f"{meshes.batch_parts(mesh)} devices x {recipe.accumulate} micro-batches"
        raise UserError(f"a batch of {recipe.batch} does not divide over {what}")


def check_best(recipe: Recipe, found: Mapping[str, Any]) -> None:
    """Raise UserError if Recipe.best is not in `found`: names of metrics or, before training, of evaluations."""
    if recipe.best is None or not recipe.steps:
        return
    name = ranking(recipe.best)[0]
    before = found is recipe.evals
    wanted = name.partition("/")[0] if before else name
    if not any(fnmatch.fnmatchcase(one, wanted) for one in found):
        given = ", ".join(one for one in found if one.count("/") < 2) or "nothing"
        what = "the evaluations are" if before else "the evaluations give"
        raise UserError(f"best metric {name!r}: no evaluation gives it; {what} {given}. --best METRIC selects another")


def _opening(recipe: Recipe, mesh: Mesh, state: TrainState, restored: bool) -> str:
    count, trained = sum(x.size for x in jax.tree.leaves(state.params)), count_trained(recipe.tune, state.params)
    part = f", of which {trained:,} train (--tune {recipe.tune.word})" if trained < count else ""
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}"
    where = f"resuming after step {int(state.step)}" if restored else "from step 0"
    where = f"{where} of {recipe.steps}" if recipe.steps else f"evaluating step {int(state.step)}"
    return f"{type(recipe.objective).__name__}, {count:,} parameters{part}, {devices}; {where}"
