"""Segmentation and landmarks as objectives: what is trained, what stays frozen, what a sharded batch gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fundax.encoders.unetr import UNETR, ConvNorm, Linear
from fundax.interop.backbones import backbone
from fundax.objectives.dense import Landmark, Segment, outputs
from fundax.runtime import serialize
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError

BLOCKS = (0, 1, 2, 3)
TOWER = backbone("smoke", image_size=16).image
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8),
    "mask": (np.arange(2 * 256).reshape(2, 16, 16) % 3 == 0).astype(np.int32),
    "points": np.array([[[3, 4], [5, 6.5]], [[np.nan, 1], [15, 0]]], np.float32),
}
KEY, STEP = jax.random.key(0), jnp.zeros((), jnp.int32)


def zeros(objective):
    params, extra = jax.eval_shape(lambda: objective.init(KEY, {}))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params), extra


def test_outputs_of_classes():
    assert [outputs(*case) for case in ((("a",), False), (("a", "b"), False), (("a", "b"), True))] == [1, 3, 2]


def test_the_loss_of_a_model_that_knows_nothing():
    """Logits of 0: Dice 1 - (2 * 86 / 2 + s) / (128 + 86 + s) by image of 86 or 85 pixels of 256, focal log 2 / 4."""
    objective = Segment(TOWER, Linear(1, 8), BLOCKS, ("disc",), frozen=True)
    (params, extra), count = zeros(objective), BATCH["mask"].sum((1, 2))
    value, (extra, metrics) = jax.jit(objective.loss)(params, extra, BATCH, KEY, STEP)
    dice = (1 - (count + 1e-5) / (128 + count + 1e-5)).mean()
    assert float(metrics["dice_loss"]) == pytest.approx(dice, rel=1e-5) and extra == {}
    assert float(value) == pytest.approx(dice + np.log(2) / 4, rel=1e-5)


def test_landmarks_of_a_model_that_knows_nothing():
    """All 256 pixels alike, so log 256; the mean place is (7.5, 7.5), and a point without a place does not count."""
    objective = Landmark(TOWER, Linear(2, 8), BLOCKS, ("fovea", "disc"), frozen=True)
    value, (_, metrics) = jax.jit(objective.loss)(*zeros(objective), BATCH, KEY, STEP)
    away = np.linalg.norm(np.array([[3, 4], [5, 6.5], [15, 0]]) - 7.5, axis=-1).mean()
    assert float(value) == pytest.approx(np.log(256), rel=1e-6)
    assert float(metrics["distance"]) == pytest.approx(away, rel=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_one():
    objective = Segment(TOWER, Linear(1, 8), BLOCKS, ("disc",), frozen=True)
    params, extra = zeros(objective)
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, extra, BATCH, KEY, STEP)[0]))(params)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads["image"]))
    assert float(jnp.abs(grads["decoder"]["out"]["bias"]).max()) > 0


def test_statistics_move_on_in_extra():
    """Batch statistics of maps that are 0 everywhere: mean 0, variance 0.9 * 1 + 0.1 * 0, after one batch."""
    objective = Segment(TOWER, UNETR(1, 8, 4), BLOCKS, ("disc",), frozen=True)
    params, shapes = zeros(objective)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    moved = jax.jit(lambda p, e: objective.loss(p, e, BATCH, KEY, STEP)[1][0])(params, ones)
    norm = moved["batch_stats"]["s4_conv0"]["norm"]
    assert int(norm["count"]) == 2 and norm["mean"] == pytest.approx(0.9) and norm["var"] == pytest.approx(0.9)
    assert jax.tree.structure(moved) == jax.tree.structure(shapes)
    assert serialize.from_json(serialize.to_json(objective)) == objective


def test_statistics_of_a_sharded_batch_are_those_of_the_whole():
    """In training and after it, to 1e-5; two devices hold a row each."""
    module, x = ConvNorm(3), np.random.default_rng(1).standard_normal((2, 4, 4, 2), np.float32)
    variables = jax.jit(lambda x: module.init(KEY, x, False))(x)
    run = jax.jit(lambda v, x: module.apply(v, x, True, mutable=["batch_stats"]))
    mesh = make_mesh((2, 1))
    whole, split = run(variables, x), run(variables, jax.device_put(x, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, split)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="the encoder has patches of 8, the decoder of 16"):
        Segment(TOWER, Linear(1, 16), BLOCKS, ("disc",)).init(KEY, {})
    with pytest.raises(UserError, match="reads block 4, but the encoder has 0 to 3"):
        Segment(TOWER, Linear(1, 8), (0, 1, 2, 4), ("disc",)).init(KEY, {})
