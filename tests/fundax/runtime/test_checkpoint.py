import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.runtime import process
from fundax.runtime.best import measured
from fundax.runtime.checkpoint import Checkpoints, best_step, load_params, partial, resolve
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError


def items(value, width=40):
    params = {"image": {"mlp": {"kernel": jnp.full((width, 6), value)}}, "log_scale": jnp.asarray(value)}
    return {"params": params, "extra": {}, "opt": (jax.tree.map(jnp.zeros_like, params), jnp.int32(3))}


def abstract(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.fixture
def run(tmp_path):
    """Steps 1 to 4 with the scores 0.2, 0.9, 0.3, NaN; two latest and the best are kept."""
    with Checkpoints(tmp_path, keep=2, best="e/auc") as kept:
        for step, score in enumerate((0.2, 0.9, 0.3, float("nan")), start=1):
            kept.save(step, items(float(step)), {"step": step}, {"e/auc": score})
            kept.wait()
    return tmp_path


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_latest_and_best_are_kept_and_found_again(run):
    with Checkpoints(run, keep=2, best="e/auc") as kept:
        assert kept.steps() == [2, 3, 4]
        found, meta = kept.restore(3, abstract(items(0.0)))
    assert meta["data"] == {"step": 3} and found["extra"] == {}
    jax.tree.map(np.testing.assert_array_equal, found, items(3.0))
    assert resolve(run, "latest") == 4 and resolve(run, "best") == resolve(run) == 2 and resolve(run, "3") == 3
    assert best_step(run) == (2, 0.9)


def test_a_reopened_run_still_keeps_its_best(run):
    with Checkpoints(run, keep=1, best="e/auc") as kept:
        kept.save(5, items(5.0), {"step": 5}, {"e/auc": 0.8})
        kept.wait()
        assert kept.steps() == [2, 5]


def test_load_params_is_numpy_without_a_mesh(run):
    params, extra = load_params(run, "best")
    assert extra == {} and type(params["image"]["mlp"]["kernel"]) is np.ndarray
    np.testing.assert_array_equal(params["image"]["mlp"]["kernel"], np.full((40, 6), 2.0))


def test_restore_onto_another_mesh(run):
    place = NamedSharding(make_mesh((2, 4)), P("data"))
    whole = NamedSharding(make_mesh((2, 4)), P())
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place if x.ndim else whole), items(0.0)
    )
    with Checkpoints(run) as kept:
        found, _ = kept.restore(4, target)
    assert found["params"]["image"]["mlp"]["kernel"].addressable_shards[0].data.shape == (20, 6)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(items(4.0)))


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_names_its_step_and_an_intact_one(tmp_path, harm):
    rng = np.random.default_rng(0)
    with Checkpoints(tmp_path) as kept:
        for step in (1, 2):
            given = items(float(step))
            given["params"]["image"]["mlp"]["kernel"] = jnp.asarray(rng.normal(size=(400, 60)).astype("f4"))
            kept.save(step, given, {"step": step}, {})
    file = largest_file(tmp_path / "checkpoints" / "2" / "params")
    raw = bytearray(file.read_bytes())
    if harm == "remove":
        file.unlink()
    else:
        raw[len(raw) // 2] ^= 0x10
        file.write_bytes(raw[: len(raw) // 2] if harm == "truncate" else raw)
    with (
        Checkpoints(tmp_path) as kept,
        pytest.raises(UserError, match=r"step 2 .* damaged .*; step 1 is intact: remove"),
    ):
        kept.restore(2, abstract(given))
    with pytest.raises(UserError, match="load another step"):
        load_params(tmp_path)
    assert load_params(tmp_path, 1)[0]["log_scale"] == 1.0


def test_an_old_step_goes_whole_or_not_at_all(run):
    half = run / "checkpoints" / ".old" / "1" / "params"  # as a kill leaves it
    half.mkdir(parents=True)
    with Checkpoints(run, keep=1) as kept:
        assert kept.steps() == [2, 3, 4] and not list((run / "checkpoints" / ".old").iterdir())
        kept.save(5, items(5.0), {"step": 5}, {})
        kept.wait()
        assert {p.name for p in (run / "checkpoints" / ".old").iterdir()} == {"2", "3", "4"}
    assert not list((run / "checkpoints" / ".old").iterdir()) and resolve(run) == 5


def test_a_step_without_its_parameters_is_damaged(run):
    shutil.rmtree(run / "checkpoints" / "4" / "params")
    with pytest.raises(UserError, match=r"4 is damaged .* load another step"):
        load_params(run, "latest")


def test_only_orbaxs_abandoned_reads_are_kept_quiet(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", reported.append)
    process.ignore_abandoned_reads.__wrapped__()

    async def ours():
        pass

    async def theirs():
        pass

    theirs.__code__ = theirs.__code__.replace(
        co_filename=f"{Path(ocp.__file__).parent}/_src/serialization/serialization.py"
    )
    mine, left = ours(), theirs()
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("other")
    for error, thing in ((closed, None), (other, None), (other, mine), (other, left)):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=thing))
    mine.close(), left.close()
    assert [(r.exc_value, r.object) for r in reported] == [(other, None), (other, mine)]


def test_a_save_cut_short_leaves_the_latest_readable(run):
    torn = run / "checkpoints" / "5.orbax-checkpoint-tmp"
    (torn / "params").mkdir(parents=True)
    (torn / "params" / "manifest.ocdbt").write_bytes(b"half")
    assert resolve(run, "latest") == 4
    with Checkpoints(run) as kept:
        assert kept.steps()[-1] == 4
        kept.restore(4, abstract(items(0.0)))


def test_partial_takes_a_subtree(run):
    fresh = {"image": {"mlp": {"kernel": np.zeros((40, 6), np.float32)}}, "log_scale": np.float32(7)}
    taken = partial(f"{run}:image", 3)(fresh)
    assert taken["log_scale"] == 7 and np.all(taken["image"]["mlp"]["kernel"] == 3)
    assert np.all(fresh["image"]["mlp"]["kernel"] == 0)
    assert partial(str(run))(fresh)["log_scale"] == 2 and partial(str(run), "latest")(fresh)["log_scale"] == 4
    with pytest.raises(UserError, match=r"no parameters 'text'; instead of 'text' it has \['image', 'log_scale'\]"):
        partial(f"{run}:text")(fresh)
    with pytest.raises(UserError, match=r"mlp/kernel \(40, 6\) instead of \(41, 6\)"):
        partial(f"{run}:image")({"image": {"mlp": {"kernel": np.zeros((41, 6))}}})


@pytest.mark.parametrize(
    ("checkpoint", "message"), [("best", "no checkpoint was ranked"), (7, "expected best, latest or one of")]
)
def test_what_is_not_there(tmp_path, checkpoint, message):
    with pytest.raises(UserError, match="holds no checkpoints"):
        resolve(tmp_path)
    with Checkpoints(tmp_path) as kept:
        kept.save(1, items(1.0), {}, {})
    with pytest.raises(UserError, match=message):
        load_params(tmp_path, checkpoint)


def test_a_run_that_selected_nothing_opens_at_its_latest_step(tmp_path):
    with Checkpoints(tmp_path) as kept:
        for step in (1, 2):
            kept.save(step, items(float(step)), {}, {})
    assert resolve(tmp_path) == 2 and best_step(tmp_path) is None


def test_the_best_of_several_sources_is_the_best_mean(tmp_path):
    scores = [(0.9, 0.1), (0.6, 0.8), (0.3, float("nan"))]  # the first source alone would take the first step
    with Checkpoints(tmp_path, keep=1, best="zero_shot*/auc") as kept:
        for step, (a, b) in enumerate(scores, start=1):
            kept.save(step, items(float(step)), {}, {"zero_shot_a/auc": a, "zero_shot_b/auc": b, "other/auc": 1.0})
            kept.wait()
    assert best_step(tmp_path) == (2, pytest.approx(0.7))
    assert measured("zero_shot*/auc", {"zero_shot_a/auc": 0.5, "zero_shot_b/auc": 0.7}) == pytest.approx(0.6)
    assert measured("probe/auc", {"zero_shot/auc": 0.5}) is None


def test_the_lowest_value_can_be_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=1, best=("e/error", "min")) as kept:
        for step, error in enumerate((0.4, 0.2, 0.3), start=1):
            kept.save(step, items(float(step)), {"step": step}, {"e/error": error})
            kept.wait()
        assert kept.steps() == [2, 3]
    assert resolve(tmp_path) == 2 and best_step(tmp_path) == (2, -0.2)
    with pytest.raises(UserError, match=r'expected a metric, \(metric, "min"\) or \(metric, "max"\)'):
        Checkpoints(tmp_path, best=("e/error", "lowest"))


def test_only_the_loop_asks_the_preemption_service(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point",
        lambda count: asked.append(count) or count == 7,
    )
    with Checkpoints(tmp_path) as kept:
        assert not kept.reached_preemption(6)
        kept.save(3, {"params": {"a": jnp.ones(2)}, "extra": {}, "opt": {}}, {}, {})  # Orbax would ask with 3
        kept.wait()
        assert kept.reached_preemption(7)
    assert asked == [6, 7]
