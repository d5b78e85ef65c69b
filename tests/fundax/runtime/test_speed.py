"""Speed of a step, by hand, and when the profiler runs."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from tiny_objective import Linear, recipe

from fundax.roofline.dry_run import dry_run
from fundax.runtime import speed
from fundax.runtime.mesh import make_mesh
from fundax.runtime.speed import Profile, Speed
from fundax.train.loop import train_step
from fundax.train.state import fresh


@pytest.fixture
def arguments():
    state, _ = fresh(recipe(), make_mesh((1, 1)))
    spec = Linear().batch_spec(8)
    return state, {key: jnp.zeros(one.shape, one.dtype) for key, one in spec.items()}


def test_a_row_of_the_log_by_hand(arguments, monkeypatch):
    step = train_step(recipe())
    row = Speed(step, arguments, Linear(), jax.devices()[:1]).row(0.5)
    # [8 4] x [4 1] forward, and its gradient of the kernel; none of the images
    assert row["tflops"] == pytest.approx((2 * 8 * 4 + 2 * 8 * 4) / 0.5 / 1e12) and row["step_seconds"] == 0.5
    assert "mfu" not in row and 0.01 < row["memory_gib"] < 1000
    chip = [SimpleNamespace(device_kind="TPU v5e")] * 2
    monkeypatch.setattr(speed, "memory_gib", lambda: 3.0)
    row = Speed(step, arguments, Linear(), chip).row(0.5)
    assert row["mfu"] == pytest.approx(3 * 64 / 0.5 / 2 / 197e12) and row["memory_gib"] == 3.0


@pytest.mark.parametrize(
    ("steps", "first", "last", "traced"),
    [(2, 0, 10, (4, 5)), (0, 0, 10, ()), (2, 4, 100, (8, 9)), (2, 0, 3, (2, 3)), (9, 0, 3, (1, 3))],
)
def test_the_profiler_runs_after_the_first_steps_and_always_ends(steps, first, last, traced, monkeypatch, tmp_path):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop", None)))
    profile, found = Profile(tmp_path, steps, first, last), []
    for step in range(first + 1, last + 1):
        profile.before(step)
        found += [step] if len(events) == 1 else []
        profile.after(step, {})
    assert found == (list(range(traced[0], traced[1] + 1)) if traced else [])
    assert [name for name, _ in events] == (["start", "stop"] if traced else [])
    assert not traced or events[0][1] == tmp_path / "profile"


def test_a_dry_run_reads_no_data_and_gives_the_rows_of_training(capsys):
    def unread(shard, shards):
        raise AssertionError("a dry run reads no data")

    rows = dry_run(dataclasses.replace(recipe(), train=unread), 2)
    assert len(rows) == 2
    assert rows[0].keys() == {"images_per_second", "step_seconds", "tflops", "memory_gib", "data_wait"}
    printed = capsys.readouterr().err
    assert "step 2/2" in printed and "images/s" in printed and "memory" in printed
