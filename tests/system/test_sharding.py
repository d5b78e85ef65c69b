"""The same five steps on every mesh: sharding changes where the arithmetic happens, not what it gives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.objectives.clip import CLIP
from fundax.optim import adamw, clip_params, constant, decay_open_clip
from fundax.params import path_string
from fundax.recipe import Recipe
from fundax.roofline.compile import compile_step
from fundax.runtime.mesh import RULES, device_put, make_mesh, shard_batch, shardings
from fundax.train.loop import train_step
from fundax.train.state import TrainState, abstract_state

BATCH, STEPS = 16, 5


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    """Programs of this file are not kept: read back from the cache, jaxlib 0.10.2's wait for each other for ever on a CPU."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


class NoData:
    def __call__(self, shard, shards):
        raise AssertionError("the batches of this test are its own")


def tiny(**fields):
    image = ViT(image_size=16, patch=8, width=32, depth=1, heads=2, **fields)
    text = TextTransformer(vocab=64, context=6, width=32, depth=1, heads=2, **fields)
    return Recipe(
        objective=CLIP(image, text, embed=8),
        train=NoData(),
        # a large eps, so that a wrong gradient scale shows: Adam divides it away otherwise
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            adamw(constant(1e-3, 2), (0.9, 0.98), 1e-3, 0.2, decay_open_clip),
            clip_params({"log_scale": (0.0, 4.6052)}),
        ),
        steps=STEPS,
        batch=BATCH,
    )


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        image = rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
        yield {"image": image, "text": rng.integers(1, 64, (BATCH, 6), dtype=np.int32)}


def start(recipe):
    params, extra = jax.jit(recipe.objective.init)(jax.random.key(0), next(batches()))
    return jax.device_get(TrainState(jnp.int32(0), params, extra, jax.jit(recipe.optimizer.init)(params)))


def run(shape, recipe, fresh):
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda x: x.sharding, abstract_state(recipe, mesh))
        state = device_put(fresh, placed)
        step, losses = train_step(recipe), []
        for batch in batches():
            state, metrics = step(state, shard_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def fresh():
    return start(tiny())


@pytest.fixture(scope="module")
def alone(fresh):
    losses, state = run((1, 1), tiny(), fresh)
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8, 1), (2, 2, 2)])
def test_sharded_equals_unsharded(fresh, alone, shape):
    losses, state = run(shape, tiny(), fresh)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    assert len(set(losses)) == STEPS
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)), jax.tree.leaves(alone[1]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=path_string(path))
    wanted = shardings(state, make_mesh(shape), RULES)  # what was split stays so over the steps
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)))


def test_fsdp_sends_weights_and_not_activations():
    """What the devices send does not grow with the batch, but for the features and the loss."""
    sent = {}
    for batch in (16, 64):
        compiled = compile_step(replace(tiny(), batch=batch, mesh=(1, 8, 1)))
        sent[batch] = sum(one.moved for one in compiled.communication)
    one_activation = 48 * (4 + 6) * 32 * 4  # bytes of the tokens of both encoders of 48 more examples, at one place
    assert sent[64] - sent[16] < one_activation / 4
    weights = sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(tiny().objective.init, jax.random.key(0), next(batches()))[0])
    )
    assert sent[64] < 2 * 3 * 4 * weights  # twice the ideal: weights gathered twice, gradients scattered once
