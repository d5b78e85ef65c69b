"""iBOT's state from step to step; its numbers are held by the golden tests of VisionFM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import ViT
from fundax.objectives.ibot import IBOT, Temperature, teacher_part
from fundax.optim import ema_update
from fundax.types import UserError

TOWER = ViT(8, 4, 8, 1, 2, mask_token=True, any_size=True, pre_norm=False, patch_bias=True)
HEAD = IBOTHead(6, hidden=8, bottleneck=4)
PLAIN = IBOT(TOWER, HEAD, steps=10, epoch_steps=5, local_crops=1, local_size=4, mask_start=1)
RNG = np.random.default_rng(0)
BATCH = {
    "global": RNG.integers(0, 256, (2, 2, 8, 8, 3), np.uint8),
    "local": RNG.integers(0, 256, (2, 1, 4, 4, 3), np.uint8),
    "masked": np.array([[[[True, False], [False, True]]] * 2, [[[False] * 2] * 2] * 2]),
}


@pytest.fixture(scope="module")
def state():
    return jax.jit(PLAIN.init)(jax.random.key(0), BATCH)


@pytest.fixture(scope="module")
def run():
    return jax.jit(PLAIN.loss)


def test_temperatures_by_epoch():
    rising = Temperature(0.04, 0.07, 4, wait=2)
    np.testing.assert_allclose([rising.at(e) for e in (0, 2, 3, 5, 99)], [0.04, 0.04, 0.05, 0.07, 0.07], rtol=1e-6)
    np.testing.assert_allclose(Temperature(0.04, 0.07, 1).at(0), 0.07, rtol=1e-6)


def test_the_teacher_begins_as_a_copy_and_then_follows(state, run):
    params, extra = state
    moved = jax.tree.map(lambda x: x + 1.0, params)
    first = run(moved, extra, BATCH, jax.random.key(0), jnp.int32(0))[1][0]["teacher"]
    assert "mask_token" not in first["image"]
    np.testing.assert_array_equal(first["image"]["position"], moved["image"]["position"])
    loss, (later, metrics) = run(moved, extra, BATCH, jax.random.key(0), jnp.int32(1))
    expected = extra["teacher"]["image"]["position"] + 0.004  # momentum 0.996 of the step before
    np.testing.assert_allclose(later["teacher"]["image"]["position"], expected, atol=1e-6)
    assert 0 < float(metrics["teacher_entropy"]) <= np.log(6) + 1e-6
    assert float(metrics["loss"]) == float(loss)


def test_follow_leaves_what_is_equal(state):
    params, extra = state
    for old, new in zip(
        jax.tree.leaves(extra["teacher"]),
        jax.tree.leaves(ema_update(extra["teacher"], teacher_part(params), 0.996)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_masks_wait_for_their_epoch(state, run):
    params, extra = state
    patch = [run(params, extra, BATCH, jax.random.key(0), jnp.int32(s))[1][1]["loss_patch"] for s in (4, 5)]
    assert float(patch[0]) == 0 and float(patch[1]) > 0


def test_dinov2s_options_are_finite_and_have_gradients(state):
    head = IBOTHead(6, hidden=8, bottleneck=4, split=True, dtype="bfloat16")
    tower = TOWER.clone(dtype="bfloat16")
    objective = dataclasses.replace(PLAIN, image=tower, head=head, centering="sinkhorn", koleo=0.1)
    params, extra = jax.jit(objective.init)(jax.random.key(0), BATCH)
    run = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, (_, metrics)), grads = run(params, extra, BATCH, jax.random.key(1), jnp.int32(5))
    assert np.isfinite(loss) and np.isfinite(metrics["koleo"]) and loss.dtype == jnp.float32
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert float(jnp.abs(grads["head"]["mlp2"]["fc1"]["kernel"]).max()) > 0


def test_each_modality_by_its_own_mean(state):
    two = dataclasses.replace(PLAIN, mean=((0.5,) * 3, (0.25,) * 3), std=((1.0,) * 3, (0.5,) * 3))
    image = np.full((2, 1, 1, 3), 255, np.uint8)
    np.testing.assert_allclose(two._normalized(image, jnp.array([0, 1]))[:, 0, 0, 0], [0.5, 1.5], rtol=1e-6)
    assert set(two.batch_spec(4)) == {"global", "local", "masked", "modality"}
    params, extra = state
    with pytest.raises(UserError, match="no 'modality'"):
        two.forward(params, extra, {"image": BATCH["global"][:, 0]})
    out = jax.jit(PLAIN.forward)(params, extra, {"image": BATCH["global"][:, 0]})
    assert out["image_raw"].shape == (2, 8) and out["tokens"].shape == (2, 5, 8)
    np.testing.assert_allclose(out["features"][:, 8:], out["tokens"][:, 1:].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": TOWER.clone(mask_token=False)}, "mask_token=True"),
        ({"image": TOWER.clone(any_size=False)}, "any_size=True"),
        ({"centering": "softmax"}, "centering is 'mean' or 'sinkhorn'"),
        ({"global_crops": 1}, "at least two global crops"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PLAIN, **fields)
