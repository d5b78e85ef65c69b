"""iBOT by the trainer: three steps are the same on every mesh, teacher and centers too; a killed run ends with the same bits."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import dino_vit
from fundax.objectives.ibot import IBOT
from fundax.optim import adamw, clip_leaves, cosine_schedule, decay_visionfm, freeze
from fundax.params import path_string
from fundax.recipe import Intervals, Recipe
from fundax.runtime.checkpoint import load_params
from fundax.runtime.mesh import device_put, make_mesh, shard_batch
from fundax.train.loop import fit, train_step
from fundax.train.state import TrainState, abstract_state

BATCH, STEPS = 8, 3
TOWER = dino_vit("B/16", mask_token=True).clone(image_size=8, patch=4, width=8, depth=1, heads=2)
METHOD = IBOT(
    TOWER, IBOTHead(8, None, 8, 4), steps=STEPS, epoch_steps=1, momentum=(0.5, 1.0), mean=((0.5,) * 3, (0.2,) * 3),
    std=((0.25,) * 3, (0.2,) * 3),
)  # fmt: skip


class Rows:
    """Batch g is a function of g; `kill` raises before that batch, as a machine that stops."""

    def __init__(self, kill=None):
        self.step, self.kill = 0, kill

    def __iter__(self):
        return self

    def __next__(self):
        if self.step == self.kill:
            raise KilledError
        rng = np.random.default_rng(self.step)
        self.step += 1
        masked = rng.random((BATCH, 2, 2, 2)) < 0.4
        masked[0] = False
        modality = rng.integers(0, 2, BATCH, np.int32)
        return {
            "global": rng.integers(0, 256, (BATCH, 2, 8, 8, 3), np.uint8),
            "masked": masked,
            "modality": modality,
        }

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


class KilledError(Exception):
    pass


def recipe(kill=None, **fields):
    # eps is large, so that a wrong scale of gradients shows: Adam divides it away otherwise
    decay = cosine_schedule(0.04, 0.4, STEPS)
    rule = adamw(
        cosine_schedule(1e-2, 1e-4, STEPS, 1),
        eps=1e-3,
        weight_decay=decay,
        decay=decay_visionfm,
        late=("head/last_layer", 1),
    )
    given = {
        "objective": METHOD,
        "train": lambda shard, shards: Rows(kill),
        "optimizer": freeze(optax.chain(clip_leaves(3.0), rule), "head/last_layer/scale"),
        "steps": STEPS,
        "batch": BATCH,
        "mesh": (1, 1),
        "intervals": Intervals(log=1, save=1, eval=0),
    }
    return Recipe(**(given | fields))


@pytest.fixture(scope="module")
def fresh():
    one = recipe()
    params, extra = jax.jit(METHOD.init)(jax.random.key(0), {k: v[:1] for k, v in next(Rows()).items()})
    return jax.device_get(TrainState(jnp.int32(0), params, extra, jax.jit(one.optimizer.init)(params)))


def run(shape, fresh):
    mesh, one, data, losses = make_mesh(shape), recipe(), Rows(), []
    with jax.set_mesh(mesh):
        state = device_put(fresh, jax.tree.map(lambda x: x.sharding, abstract_state(one, mesh)))
        step = train_step(one)
        for _ in range(STEPS):
            state, metrics = step(state, shard_batch(next(data), mesh))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get((state.params, state.extra))


@pytest.fixture(scope="module")
def alone(fresh):
    return run((1, 1), fresh)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_sharded_equals_unsharded(fresh, alone, shape):
    losses, state = run(shape, fresh)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=path_string(path))
    center, teacher = state[1]["center"]["token"], state[1]["teacher"]["image"]["position"]
    assert np.abs(center).max() > 0 and np.abs(teacher - fresh.extra["teacher"]["image"]["position"]).max() > 1e-4


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole = fit(recipe(), tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(recipe(kill=2), tmp_path / "parts")
    fit(recipe(), tmp_path / "parts")
    params, extra = load_params(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(whole.params))
    jax.tree.map(np.testing.assert_array_equal, extra, jax.device_get(whole.extra))
    shutil.rmtree(tmp_path)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_step(tmp_path):
    from fundax.types import UserError

    broken = dataclasses.replace(METHOD, student_temperature=1e-45)
    with pytest.raises(UserError, match="not finite, so training stopped"):
        fit(recipe(objective=broken), tmp_path)
