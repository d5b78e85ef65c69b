"""Attention maps and rollout against hand-made numbers; the last layers against the tower's own tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.saliency import attention_maps, rollout
from fundax.encoders.vit import ViT, intermediate_layers
from fundax.params import stack_blocks
from fundax.types import UserError

IMAGE = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
TOWER = ViT(image_size=4, patch=2, width=8, depth=2, heads=2, pre_norm=False)

maps_of = jax.jit(attention_maps, static_argnums=0, static_argnames="last")


@pytest.fixture(scope="module")
def params():
    return jax.jit(TOWER.init)(jax.random.key(0), IMAGE)["params"]


def test_attention_of_equal_keys_is_even(params):
    qkv = params["block_1"]["attention"]["qkv"]
    silent = params | {
        "block_1": params["block_1"]
        | {"attention": params["block_1"]["attention"] | {"qkv": qkv | {"kernel": qkv["kernel"] * 0}}}
    }
    (maps,) = maps_of(TOWER, silent, IMAGE)
    np.testing.assert_allclose(maps, np.full((2, 2, 5, 5), 0.2), rtol=1e-6)


def test_maps_of_scanned_blocks_are_the_same(params):
    maps = maps_of(TOWER, params, IMAGE, last=2)
    scanned = maps_of(TOWER.clone(scan=True), stack_blocks(params), IMAGE, last=2)
    for ours, theirs in zip(maps, scanned, strict=True):
        np.testing.assert_allclose(ours.sum(-1), np.ones((2, 2, 5)), rtol=1e-5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_last_layer_is_the_towers_output(params):
    tokens = jax.jit(TOWER.apply)({"params": params}, IMAGE)["tokens"]
    layers = jax.jit(partial(intermediate_layers, TOWER, last=2))(params, IMAGE)
    np.testing.assert_allclose(layers[1], tokens, rtol=1e-5, atol=1e-6)


def test_rollout_by_hand():
    swap, stay = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.eye(2)
    # half of each token stays: swap becomes all 1/2, stay the identity
    np.testing.assert_allclose(rollout((swap[None, None], stay[None, None]))[0], np.full((2, 2), 0.5))
    skew = jnp.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    np.testing.assert_allclose(rollout((skew, skew))[0], [[1, 0], [0.75, 0.25]])


def test_more_blocks_than_there_are(params):
    with pytest.raises(UserError, match="last 3 blocks of a ViT that has 2"):
        intermediate_layers(TOWER, params, IMAGE, 3)
    with pytest.raises(UserError, match="last 0 blocks"):
        attention_maps(TOWER, params, IMAGE, 0)
    with pytest.raises(UserError, match="at least one block"):
        rollout(())
