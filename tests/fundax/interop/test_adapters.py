"""Adapters alone: added to the base of the run, they give the run; another base is refused."""

import jax
import numpy as np
import pytest

from fundax.interop.adapters import read_adapters, write_adapters
from fundax.interop.exchange import import_model
from fundax.interop.read import load
from fundax.objectives.clip import clip
from fundax.params import flatten
from fundax.runtime import serialize
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.workdir import write_json
from fundax.tuning import tuning, with_adapters
from fundax.types import UserError

OBJECTIVE = clip("smoke", vocab=50, context=8, image_size=16)
BATCH = {"image": np.zeros((1, 16, 16, 3), np.uint8), "text": np.ones((1, 8), np.int32)}


def run_of(folder, params, word=""):
    folder.mkdir()
    write_json(folder / "config.json", {"objective": serialize.to_json(OBJECTIVE), "args": {"tune": word}})
    with Checkpoints(folder) as kept:
        kept.save(1, {"params": params, "extra": {}, "opt": {}}, {}, {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and a run of adapters on it whose numbers are random."""
    folder = tmp_path_factory.mktemp("runs")
    base = jax.device_get(jax.jit(OBJECTIVE.init)(jax.random.key(0), BATCH)[0])
    begun, _ = with_adapters(tuning("lora:2"), base, {})
    rng = np.random.default_rng(0)

    def move(path, x):
        return rng.normal(0, 0.1, x.shape) if "lora" in str(path) or "project" in str(path) else x

    trained = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.tree_util.tree_map_with_path(move, begun))
    return run_of(folder / "base", base), run_of(folder / "adapted", trained, "lora:2"), folder


def test_adapters_on_their_base_are_the_run(runs):
    base, adapted, folder = runs
    line = write_adapters(adapted, folder / "alone")
    assert "parameters of" in line and "launch.py import" in line
    size = (folder / "alone" / "adapters.safetensors").stat().st_size
    found, whole = read_adapters(folder / "alone", base), load(adapted)
    ours, theirs = flatten(found.params), flatten(jax.tree.map(np.asarray, whole.params))
    assert size < sum(leaf.nbytes for leaf in theirs.values()) / 3
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=1e-6, err_msg=path)
    assert str(folder / "again") in import_model(found, folder / "alone", folder / "again")
    assert load(folder / "again").objective == OBJECTIVE


def test_another_base_and_a_run_without_adapters_are_refused(runs):
    base, adapted, folder = runs
    write_adapters(adapted, folder / "once")
    other = jax.device_get(jax.jit(OBJECTIVE.init)(jax.random.key(1), BATCH)[0])
    with pytest.raises(
        UserError, match=r"other is not the base of .*once: image/block_0/attention/out/kernel is not that"
    ):
        read_adapters(folder / "once", run_of(folder / "other", other))
    with pytest.raises(UserError, match="expected a run of --tune lora:RANK"):
        write_adapters(base, folder / "none")
    with pytest.raises(UserError, match=r"no adapters\.safetensors"):
        read_adapters(base, base)
    assert not (folder / "none").exists()
