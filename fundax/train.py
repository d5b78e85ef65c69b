"""The training loop, which is the same for every method.

The mesh is built and the state gets shardings by rule. The state is restored from the latest checkpoint of the workdir if
there is one; otherwise parameters are initialised and `init_from` is applied. Evaluations run before the first step. Then
every batch is placed and a step is run, with logging, evaluations and checkpoints at their intervals and at the last
step. With steps=0 only the evaluations run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.optim import rate_of
from fundax.params import check_same
from fundax.recipe import Recipe, describe
from fundax.runtime import accumulate
from fundax.runtime import mesh as meshes
from fundax.runtime import workdir as folders
from fundax.runtime.checkpoint import Checkpoints, resolve
from fundax.runtime.distributed import compile_together
from fundax.runtime.log import Log
from fundax.runtime.preemption import Preemption
from fundax.runtime.prefetch import Prefetcher
from fundax.runtime.process import configure_orbax
from fundax.types import Batch, Extra, Metrics, Params, UserError

BAD_RECORDS = "bad_records.jsonl"  # list of skipped images in the workdir, if the user chose to skip unreadable ones


class TrainState(NamedTuple):
    """Everything that a step updates; `extra` is carried but not differentiated."""

    step: jax.Array
    params: Params
    extra: Extra
    opt: Any


def fit(recipe: Recipe, workdir: str | Path, checkpoint: int | str = "latest") -> TrainState:
    """Train a recipe to its last step, resuming from `workdir` if it holds checkpoints; returns the final state.

    Args:
        recipe: see Recipe.
        workdir: folder of the run.
        checkpoint: "latest", "best" or a step: the checkpoint to evaluate if recipe.steps is 0. Training always resumes
            from the latest.

    Raises:
        UserError: an error the user can fix, including a loss that is not finite; the last checkpoint is kept.
        SystemExit: after Ctrl-C (code 130) or SIGTERM (code 0), with the state saved.
    """
    configure_orbax()
    mesh = meshes.make_mesh(recipe.mesh)
    check_batch(recipe, mesh)
    describe(recipe, workdir)
    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir, recipe.keep, recipe.best) as kept,
        Preemption(kept.reached_preemption) as preemption,
    ):
        restored = bool(kept.steps())
        state, position = (
            _restore(recipe, mesh, kept, resolve(workdir, checkpoint)) if restored else fresh(recipe, mesh)
        )
        first, last, intervals = int(state.step), recipe.steps, recipe.intervals
        log = Log(workdir, step=first, steps=last, batch=recipe.batch, restored=restored, writers=recipe.writers)
        with log:
            log.info(_opening(recipe, mesh, state, restored))
            run_step, evaluate = train_step(recipe), _evaluator(recipe, mesh, workdir, log)
            row = evaluate(first, state) if first == 0 or first >= last else {}
            if first >= last:
                return state

            spec = recipe.objective.batch_spec(recipe.batch // jax.process_count())
            skipped = Path(workdir) / BAD_RECORDS
            with Prefetcher(recipe.train, spec, mesh, position, first, last, skipped) as data:
                healthy, metrics, log.waited = _Finite(kept), {}, data.waited
                for step in range(first + 1, last + 1):
                    batch = data.take(metrics.get("loss"))
                    if step == first + 1:
                        compile_together(run_step, state, batch)
                    state, metrics = run_step(state, batch)
                    healthy.note(step, metrics)
                    if step == first + 1:
                        jax.block_until_ready(metrics)  # exclude compile time from the throughput
                        log.start_clock(step)
                    if _due(step, intervals.log, last):
                        healthy.check()
                        log.train(step, metrics | data.counts())
                    stop = preemption.agreed(step, intervals.log)
                    row = {}
                    if _due(step, intervals.eval, last):
                        row = evaluate(step, state)
                    if _due(step, intervals.save, last) or (row and recipe.best) or stop:
                        healthy.check()
                        kept.save(step, _items(state), data.state, row)
                    if stop and step < last:
                        kept.wait()
                        log.info(
                            f"Stopped at step {step}/{last}. Checkpoint saved to {workdir}. Rerun the same command to resume."
                        )
                        raise SystemExit(preemption.exit_code)
    return state


def train_step(recipe: Recipe) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One jitted update, which donates the state. Random numbers depend only on the seed and the step."""
    value_and_grad = accumulate.value_and_grad(recipe.objective, recipe.accumulate)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        (loss, (extra, metrics)), grads = value_and_grad(state.params, state.extra, batch, rng, state.step)
        grads = meshes.constrain(grads, recipe.rules)
        updates, opt = recipe.optimizer.update(grads, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **metrics}
        if (rate := rate_of(opt)) is not None:
            metrics["learning_rate"] = rate
        return meshes.constrain(TrainState(state.step + 1, params, extra, opt), recipe.rules), metrics

    return jax.jit(update, donate_argnums=0)


def abstract_state(recipe: Recipe, mesh: Mesh) -> TrainState:
    """The state as shapes with shardings. Nothing is allocated, so this works for any size of model."""
    params, extra = jax.eval_shape(_initialize(recipe), jax.random.key(recipe.seed))
    opt = jax.eval_shape(recipe.optimizer.init, params)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, params, extra, opt)
    placed = meshes.shardings(state, mesh, recipe.rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)


def _initialize(recipe: Recipe) -> Callable[[jax.Array], tuple[Params, Extra]]:
    one = {k: jnp.zeros(s.shape, s.dtype) for k, s in recipe.objective.batch_spec(1).items()}
    return lambda rng: recipe.objective.init(rng, one)


def fresh(recipe: Recipe, mesh: Mesh) -> tuple[TrainState, None]:
    """The state of step 0 on its devices, with init_from applied; and None, the start of the data."""
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(recipe, mesh))
    init = jax.jit(_initialize(recipe), out_shardings=(placed.params, placed.extra))
    params, extra = init(jax.random.key(recipe.seed))
    params = _changed("params", recipe.init_from, params, placed.params)
    extra = _changed("extra", recipe.init_extra, extra, placed.extra)
    opt = jax.jit(recipe.optimizer.init, out_shardings=placed.opt)(params)
    return TrainState(meshes.device_put(np.int32(0), placed.step), params, extra, opt), None


def _changed(what: str, changes: Sequence[Callable[[Any], Any]], fresh: Any, placed: Any) -> Any:
    """The initial tree after init_from or init_extra, whose steps must not change shapes."""
    if not changes:
        return fresh
    given = meshes.gather(fresh)
    for change in changes:
        changed = change(given)
        check_same("init_from", what, changed, given)
        given = changed
    return meshes.device_put(given, placed)


def _restore(recipe: Recipe, mesh: Mesh, kept: Checkpoints, step: int) -> tuple[TrainState, dict[str, Any]]:
    step = step if recipe.steps == 0 else kept.steps()[-1]
    abstract = abstract_state(recipe, mesh)
    items, run = kept.restore(step, _items(abstract))
    return TrainState(meshes.device_put(np.int32(step), abstract.step.sharding), **items), run["data"]


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "extra": state.extra, "opt": state.opt}


def _due(step: int, intervals: int, last: int) -> bool:
    return step == last or (intervals > 0 and step % intervals == 0)


def _evaluator(
    recipe: Recipe, mesh: Mesh, workdir: str | Path, log: Log
) -> Callable[[int, TrainState], dict[str, float]]:
    run = jax.jit(recipe.objective.forward, out_shardings=NamedSharding(mesh, P()))

    def forward(params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]:
        return jax.device_get(run(params, extra, meshes.shard_full_batch(batch, mesh)))

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        row: dict[str, float] = {}
        for name, one in recipe.evals.items():
            result = {key: np.asarray(value) for key, value in one(forward, state.params, state.extra).items()}
            numbers = {
                key: float(value) for key, value in result.items() if not value.ndim and value.dtype.kind in "biuf"
            }
            row |= {f"{name}/{key}": value for key, value in numbers.items()}
            folders.write_arrays(workdir, name, {key: value for key, value in result.items() if key not in numbers})
        log.evaluation(step, row)
        return row

    return evaluate


def check_batch(recipe: Recipe, mesh: Mesh) -> None:
    """Raise UserError if the batch does not divide over the mesh, the micro-batches and the processes."""
    parts = meshes.batch_parts(mesh) * recipe.accumulate
    if recipe.batch % parts or recipe.batch % jax.process_count():
        what = f"{meshes.batch_parts(mesh)} devices x {recipe.accumulate} micro-batches"
        raise UserError(f"a batch of {recipe.batch} does not divide over {what}")


class _Finite:
    """Checks that losses and gradients are finite, without waiting for the device at every step."""

    def __init__(self, kept: Checkpoints) -> None:
        self._kept = kept
        self._seen: list[tuple[int, Any]] = []

    def note(self, step: int, metrics: Metrics) -> None:
        self._seen.append((step, (metrics["loss"], metrics["gradient_norm"])))

    def check(self) -> None:
        for step, values in self._seen:
            loss, norm = (float(value) for value in values)
            if not np.isfinite(loss) or not np.isfinite(norm):
                good = f"step {self._kept.latest()} is saved and good" if self._kept.steps() else "nothing is saved"
                raise UserError(
                    f"step {step}: loss {loss}, gradient norm {norm}: not finite, so training stopped; {good}. "
                    "Try a lower learning rate, a longer warm-up or fp32, or check the input for damaged images."
                )
        self._seen.clear()


def _opening(recipe: Recipe, mesh: Mesh, state: TrainState, restored: bool) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}"
    where = f"resuming after step {int(state.step)}" if restored else "from step 0"
    return f"{type(recipe.objective).__name__}, {count:,} parameters, {devices}; {where} of {recipe.steps}"
