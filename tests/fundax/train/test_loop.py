import json
import os
import re
import signal
import threading
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_objective import Linear, Rows, recipe

from fundax.recipe import Intervals
from fundax.runtime.checkpoint import Checkpoints, best_step, has_checkpoints, load_params
from fundax.runtime.mesh import make_mesh
from fundax.train.loop import _items, fit, is_complete, train_step
from fundax.train.state import TrainState, abstract_state
from fundax.types import UserError


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_run_learns_and_leaves_its_folder(tmp_path):
    state = fit(recipe(steps=200, rate=0.05, objective=Linear(drop=0.0), intervals=Intervals(50, 100, 100)), tmp_path)
    np.testing.assert_allclose(state.params["head"]["kernel"][:, 0], [1, 2, 3, 4], atol=0.05)
    assert int(state.step) == 200 and float(state.extra["seen"]) == 1600
    evaluated = {row["step"]: row["held_out/error"] for row in rows(tmp_path) if "held_out/error" in row}
    assert list(evaluated) == [0, 100, 200] and evaluated[200] < 0.1 < evaluated[0]
    trained = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in trained] == [50, 100, 150, 200]
    assert trained[0].keys() >= {"train/gradient_norm", "train/error", "train/images_per_second", "train/data_wait"}
    assert trained[0]["train/learning_rate"] == pytest.approx(0.05)
    assert np.load(tmp_path / "evals" / "held_out.npz")["out"].shape == (6,)
    equal(load_params(tmp_path)[0], state.params)


def test_one_step_is_the_update_written_by_hand(tmp_path):
    run = recipe(steps=1, objective=Linear(drop=0.0), rate=0.1)
    before = jax.device_get(Linear().init(jax.random.key(0), None)[0]["head"]["kernel"][:, 0])
    batch = next(Rows(8, 0, 1))
    gradient = 2 * batch["image"].T @ (batch["image"] @ before - batch["value"]) / 8
    after = fit(run, tmp_path).params["head"]["kernel"][:, 0]
    np.testing.assert_allclose(after, before - 0.1 * np.sign(gradient), atol=1e-6)  # Adam's first step


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(tmp_path):
    whole = fit(recipe(steps=6), tmp_path / "whole")
    fit(recipe(steps=4), tmp_path / "parts")
    parts = fit(recipe(steps=6), tmp_path / "parts")
    equal(whole, parts)
    seen = [(row["step"], sorted(row.keys() - {"time"})) for row in rows(tmp_path / "parts")]
    assert len(seen) == len({str(row) for row in seen})
    assert [row["step"] for row in rows(tmp_path / "parts") if "train/loss" in row] == [2, 4, 6]


def test_a_resume_beats_init_from(tmp_path):
    def zeros(params):
        return jax.tree.map(np.zeros_like, params)

    fresh = fit(recipe(steps=0, init_from=(zeros,)), tmp_path / "a")
    assert not np.any(fresh.params["head"]["kernel"])
    trained = fit(recipe(steps=2), tmp_path / "b")
    equal(fit(recipe(steps=2, init_from=(zeros,)), tmp_path / "b").params, trained.params)


def test_extra_state_of_a_pretrained_model_comes_along(tmp_path):
    start = recipe(steps=0, init_extra=(lambda extra: {"seen": extra["seen"] + 7},))
    assert float(fit(start, tmp_path).extra["seen"]) == 7


def test_init_from_must_keep_the_shapes(tmp_path):
    with pytest.raises(UserError, match=r"init_from: params .* lacks head/bias"):
        fit(recipe(init_from=(lambda p: {"head": {"kernel": p["head"]["kernel"]}},)), tmp_path)


def test_no_steps_only_evaluates(tmp_path):
    fit(recipe(steps=4, best="held_out/error", intervals=Intervals(2, 2, 2)), tmp_path)
    before = rows(tmp_path)
    state = fit(recipe(steps=0), tmp_path, checkpoint=2)
    assert int(state.step) == 2
    again = [row for row in rows(tmp_path) if row["step"] == 2 and "held_out/error" in row]
    assert len(again) == 1 and len(rows(tmp_path)) == len(before)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"step 5: loss nan.* not finite.*step 4 is saved and good"):
        fit(recipe(steps=6, poison=4), tmp_path)
    assert np.all(np.isfinite(load_params(tmp_path)[0]["head"]["kernel"]))
    with Checkpoints(tmp_path) as kept:
        assert kept.steps()[-1] == 4


@dataclass(frozen=True)
class Breaking(Linear):
    """The loss of step `at` is finite; its update is not."""

    at: int = 4
    where: str = "params"

    def loss(self, params, extra, batch, rng, step):
        loss, (extra, metrics) = super().loss(params, extra, batch, rng, step)
        broken = jnp.where((step == self.at - 1) & (self.where == "extra"), jnp.nan, 0.0)
        return loss, ({"seen": extra["seen"] + broken}, metrics)


@pytest.mark.parametrize("where", ["params", "extra", "opt"])
@pytest.mark.parametrize(("at", "good"), [(4, "step 3 is saved and good"), (6, "step 5 is saved and good")])
def test_a_state_that_is_not_finite_is_never_saved_as_good(tmp_path, where, at, good):
    def rate(count):
        return jnp.where((count == at - 1) & (where == "params"), jnp.inf, 0.1)

    def count(updates, state, params=None):
        return updates, jnp.where((state == at - 1) & (where == "opt"), jnp.nan, state + 1)

    counting = optax.GradientTransformation(lambda params: jnp.zeros(()), count)
    optimizer = optax.chain(optax.sgd(rate), counting)
    run = recipe(objective=Breaking(at=at, where=where), optimizer=optimizer, intervals=Intervals(1, 1, 0))
    with pytest.raises(UserError, match=rf"step {at}: {where}.* after the update: not finite.*{good}"):
        fit(run, tmp_path)
    assert np.all(np.isfinite(load_params(tmp_path)[0]["head"]["kernel"]))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


def test_a_checkpoint_that_an_earlier_version_saved_broken_names_a_good_one(tmp_path):
    fit(recipe(steps=4), tmp_path)
    with Checkpoints(tmp_path) as kept:
        items, _ = kept.restore(4, _items(abstract_state(recipe(), make_mesh((1, 1)))))
        kept.save(5, items | {"extra": {"seen": jnp.float32(np.nan)}}, {"step": 5}, {})
    with pytest.raises(
        UserError, match=r"step 5 in .*: extra not finite; remove .*/5 to resume from an earlier step \(4\)"
    ):
        fit(recipe(steps=6), tmp_path)


class Signalled(Rows):
    """Sends this process a signal before batch `at`, and then hangs if asked to, as with a lost file server."""

    def __init__(self, number, at, hangs):
        super().__init__(8, 0, 1)
        self.number, self.at, self.hangs = number, at, hangs

    def __next__(self):
        if self.step == self.at:
            threading.Timer(0.3 * self.hangs, os.kill, (os.getpid(), self.number)).start()
            threading.Event().wait(60 if self.hangs else 0.05)
        return super().__next__()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.parametrize("hangs", [False, True], ids=["in a step", "waiting for data"])
def test_a_signal_saves_and_leaves(tmp_path, capsys, monkeypatch, number, code, hangs):
    monkeypatch.setattr("fundax.runtime.prefetch.STUCK_S", 0.1)
    run = recipe(steps=8, intervals=Intervals(0, 0, 0), train=lambda shard, shards: Signalled(number, 5, hangs))
    with pytest.raises(SystemExit) as stopped:
        fit(run, tmp_path)
    printed = capsys.readouterr().err
    assert stopped.value.code == code and printed.lower().count("stopping after this step") == 1
    assert int(re.search(r"Stopped at step (\d)/8", printed)[1]) >= 2  # data is read ahead
    equal(fit(recipe(steps=8), tmp_path), fit(recipe(steps=8), tmp_path.with_name("whole")))


def test_a_signal_in_an_evaluation_saves_and_the_evaluation_is_made_up_for(tmp_path, capsys):
    calls = []

    def slow(forward, params, extra):
        calls.append(len(calls))
        if len(calls) == 2:  # that of step 3, the best
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
        return {"auc": [0.1, 0.0, 0.9, 0.5][min(len(calls) - 1, 3)], "out": np.zeros(3)}

    run = recipe(steps=6, evals={"e": slow}, best="e/auc", keep=1, intervals=Intervals(1, 0, 3))
    with pytest.raises(SystemExit):
        fit(run, tmp_path)
    assert "Stopped at step 3/6" in capsys.readouterr().err and not is_complete(run, tmp_path)
    fit(run, tmp_path)
    assert {row["step"]: row["e/auc"] for row in rows(tmp_path) if "e/auc" in row} == {0: 0.1, 3: 0.9, 6: 0.5}
    with Checkpoints(tmp_path, keep=1, best="e/auc") as kept:
        assert kept.steps() == [3, 6]
    assert best_step(tmp_path) == (3, 0.9)


def test_a_signal_before_the_first_step_ends_leaves_nothing(tmp_path, capsys):
    def compiles(params, extra, batch, rng, step):  # seconds of tracing stand for minutes of compiling
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)

    objective = Linear()
    object.__setattr__(objective, "loss", compiles)
    with pytest.raises(SystemExit) as stopped:
        fit(recipe(objective=objective), tmp_path)
    assert stopped.value.code == 130 and "Rerun the same command" in capsys.readouterr().err
    assert not has_checkpoints(tmp_path)
    assert int(fit(recipe(), tmp_path).step) == 6


def test_best_and_latest_are_both_kept(tmp_path):
    falling = iter([0.9, 0.5, 0.8, 0.2, 0.1, 0.3])  # step 0, then 1..5: the best trained step is 2
    run = recipe(
        steps=5, evals={"e": lambda f, p, x: {"auc": next(falling)}}, best="e/auc", keep=1, intervals=Intervals(1, 1, 1)
    )
    fit(run, tmp_path)
    with Checkpoints(tmp_path) as kept:
        assert kept.steps() == [2, 5]
    best, _ = load_params(tmp_path, "best")
    equal(best, load_params(tmp_path, 2)[0])


def test_arrays_are_of_the_step_that_is_selected(tmp_path, capsys):
    scores = iter([0.9, 0.5, 0.8, 0.2])  # step 0, then 1..3; step 0 is not saved
    arrays = iter([0, 1, 2, 3])
    run = recipe(
        steps=3,
        evals={"e": lambda f, p, x: {"auc": next(scores), "out": np.full(3, next(arrays))}},
        best="e/auc",
        intervals=Intervals(1, 1, 1),
    )
    fit(run, tmp_path)
    with np.load(tmp_path / "evals" / "e.npz") as stored:
        assert stored["out"].tolist() == [2, 2, 2] and json.loads(str(stored["about"]))["step"] == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert (
        f"Best checkpoint: step 2, e/auc 0.8000, in {tmp_path / 'checkpoints' / '2'}" in printed
        and "Latest: step 3" in printed
    )


def test_a_best_metric_that_no_evaluation_gives_is_an_error_before_training(tmp_path):
    with pytest.raises(UserError, match=r"'held/auc': no evaluation gives it; the evaluations are held_out"):
        fit(recipe(best="held/auc"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=r"'held_out/auc': no evaluation gives it; the evaluations give held_out/error"):
        fit(recipe(best="held_out/auc"), tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoints" / "2").exists()


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_complete_run_says_so_and_stays_as_it_is(tmp_path, capsys):
    fit(recipe(steps=4), tmp_path)
    before = files(tmp_path)
    assert is_complete(recipe(steps=3), tmp_path) and not is_complete(recipe(steps=5), tmp_path)
    equal(fit(recipe(steps=3), tmp_path).params, load_params(tmp_path)[0])
    assert files(tmp_path) == before
    assert "is complete, at step 4 of 3; nothing was changed. Latest checkpoint:" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": 3}, "ended before step 4"),
        ({"accumulate": 3}, "does not divide over"),
        ({"mesh": (3, 5)}, "does not fit 8 devices"),
        ({"batch": 16}, r"'image' is float32 \(8, 4\); the objective expects float32 \(16, 4\)"),
    ],
)
def test_user_errors(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        fit(recipe(**change), tmp_path)


def test_a_checkpoint_of_another_model_is_refused_and_stays_as_it_is(tmp_path):
    fit(recipe(steps=2), tmp_path)
    before = files(tmp_path)

    class Wider(Linear):
        def init(self, rng, batch):
            return {"head": {"kernel": jnp.zeros((5, 1)), "weight": jnp.zeros(3)}}, {"seen": jnp.zeros(())}

    with pytest.raises(UserError, match=r"lacks head/weight; it also has head/bias; .*\(4, 1\) instead of \(5, 1\)"):
        fit(recipe(objective=Wider(), evals={}), tmp_path)
    assert files(tmp_path) == before


def test_randomness_is_a_function_of_seed_and_step():
    run = recipe(evals={})
    batch = next(Rows(8, 0, 1))
    batch.pop("index")

    steps = {seed: train_step(replace(run, seed=seed)) for seed in (0, 1)}

    def loss_at(step, seed):
        params, extra = Linear().init(jax.random.key(0), None)
        state = (jnp.int32(step), params, extra, run.optimizer.init(params))
        return float(steps[seed](TrainState(*state), batch)[1]["loss"])

    assert loss_at(1, 0) == loss_at(1, 0) and len({loss_at(1, 0), loss_at(2, 0), loss_at(1, 1)}) == 3


def test_layout_allocates_nothing_and_follows_the_rules():
    state = abstract_state(recipe(), make_mesh((8, 1)))
    assert {type(x) for x in jax.tree.leaves(state)} == {jax.ShapeDtypeStruct}
    assert state.opt[1][0].mu["head"]["kernel"].shape == (4, 1)
