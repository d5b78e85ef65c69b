import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax import optim
from fundax.optim import (
    adamw,
    clip_leaves,
    clip_params,
    constant,
    cooldown,
    cosine,
    cosine_schedule,
    decay_mask,
    decay_matrices,
    decay_open_clip,
    decay_ret_clip,
    decay_visionfm,
    freeze,
    rate_of,
    scale_by_rate,
)
from fundax.types import UserError

QKV = {"kernel": jnp.ones((4, 3, 4)), "bias": jnp.ones((3, 4))}
PARAMS = {
    "image": {
        "class_token": jnp.ones(4),
        "position": jnp.ones((5, 4)),
        "block_0": {"norm1": {"scale": jnp.ones(4)}, "attention": {"qkv": QKV}},
    },
    "text": {"token": {"embedding": jnp.ones((7, 4))}, "block_0": {"norm1": {"scale": jnp.ones(4), "bias": jnp.ones(4)}}},
    "log_scale": jnp.asarray(4.0),
}  # fmt: skip


def decayed(rule, params=None):
    mask = decay_mask(rule)(PARAMS if params is None else params)
    paths = [
        (jax.tree_util.keystr(p, simple=True, separator="/"), yes)
        for p, yes in jax.tree_util.tree_leaves_with_path(mask)
    ]
    return {path for path, yes in paths if yes}


def test_adamw_against_the_formula_in_numpy():
    rate, b1, b2, eps, decay = 0.1, 0.9, 0.95, 1e-6, 0.2
    tx = adamw(constant(rate), (b1, b2), eps, decay)
    p = {"head": {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([3.0])}}
    state, m, v = tx.init(p), 0.0, 0.0
    ours, kernel = p, np.asarray([[1.0, -2.0]])
    for t, gradient in enumerate((np.asarray([[0.5, 0.1]]), np.asarray([[-0.2, 0.4]])), start=1):
        grads = {"head": {"kernel": jnp.asarray(gradient), "bias": jnp.zeros(1)}}
        updates, state = tx.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        # torch's form: the decay multiplies the parameter first
        kernel = kernel * (1 - rate * decay) - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    np.testing.assert_allclose(ours["head"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_array_equal(ours["head"]["bias"], [3.0])  # no gradient and no decay
    assert float(rate_of(state)) == pytest.approx(rate)


def test_schedules_at_their_corners():
    assert float(constant(1.0, 4)(0)) == 0.25 and float(constant(1.0, 4)(3)) == 1.0
    assert float(cosine(1.0, 20, 10)(15)) == pytest.approx(0.5) and float(cosine(1.0, 20)(20)) == pytest.approx(0)
    assert float(cooldown(1.0, 10, cool=4, end=0.2)(8)) == pytest.approx(0.6)
    assert float(cooldown(1.0, 10, cool=4, end=0.2)(25)) == pytest.approx(0.2)
    with pytest.raises(UserError, match="cosine: expected more steps than the 10 of warm-up"):
        cosine(1.0, 10, 10)


def test_decay_rules_on_our_paths():
    qkv = "image/block_0/attention/qkv/kernel"
    assert decayed(decay_matrices) == {qkv}
    assert decayed(decay_open_clip) == {qkv, "image/position", "text/token/embedding"}
    assert decayed(decay_ret_clip) == decayed(decay_open_clip) | {"image/class_token", "text/block_0/norm1/scale"}


def test_stacked_blocks_decay_as_the_single_ones_do():
    stacked = {"image": {"blocks": jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS["image"]["block_0"])}}
    assert decayed(decay_open_clip, stacked) == {"image/blocks/attention/qkv/kernel"}


def test_clamped_holds_after_the_step_and_touches_nothing_else():
    tx = optax.chain(scale_by_rate(constant(1.0)), clip_params({"^log_scale": (0.0, 4.6052)}))
    grads = jax.tree.map(lambda x: jnp.full_like(x, -3.0), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    assert float(after["log_scale"]) == pytest.approx(4.6052) and float(after["image"]["class_token"][0]) == 4.0


def test_frozen_leaves_do_not_move_and_keep_no_moments():
    tx = freeze(adamw(constant(0.1), weight_decay=0.5, decay=decay_open_clip), "^image/")
    state = tx.init(PARAMS)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    jax.tree.map(np.testing.assert_array_equal, after["image"], PARAMS["image"])
    assert np.all(after["text"]["token"]["embedding"] != 1)
    assert not any("image" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))


@pytest.mark.parametrize(
    "make", [lambda: clip_params({"logscale": (0, 1)}), lambda: freeze(optax.sgd(1.0), "logscale")]
)
def test_a_pattern_that_matches_nothing_is_an_error(make):
    with pytest.raises(UserError, match="no parameter path matches 'logscale'"):
        make().init(PARAMS)


def test_a_chain_without_a_remembered_rate():
    assert rate_of(optax.sgd(0.1).init(PARAMS)) is None


def test_cosine_schedule_at_its_ends():
    schedule = cosine_schedule(1.0, 0.2, 14, warmup=4)
    np.testing.assert_allclose([schedule(i) for i in (0, 3, 4, 9, 14)], [0, 1, 1, 0.6, 0.2], rtol=1e-6, atol=1e-7)


def test_visionfms_groups_decay_tables_and_tokens_too():
    params = {"image": PARAMS["image"] | {"mask_token": jnp.ones(4)}, "head": {"last_layer": {"scale": jnp.ones(3)}}}
    expected = {"image/block_0/attention/qkv/kernel", "image/position", "image/class_token", "image/mask_token"}
    assert decayed(decay_visionfm, params) == expected | {"head/last_layer/scale"}


def test_each_leaf_is_clipped_by_itself():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3]), "blocks": {"w": jnp.array([[6.0, 8.0], [0.0, 0.5]])}}
    clipped, _ = clip_leaves(1.0).update(grads, clip_leaves(1.0).init(grads))
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(clipped["b"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(clipped["blocks"]["w"], [[0.6, 0.8], [0.0, 0.5]], rtol=1e-5)


def test_late_parameters_begin_as_if_new_and_decay_follows_its_schedule():
    """Adam's first step is the sign of the gradient; a parameter that begins at step 2 takes its first step there."""
    params = {"body": jnp.ones((1, 1)), "last": {"kernel": jnp.ones((1, 1))}}
    tx = adamw(constant(0.1), weight_decay=lambda step: 0.5 * step, decay=lambda *_: True, late=("^last", 2))
    state = tx.init(params)
    seen = []
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        seen.append((float(updates["body"][0, 0]), float(updates["last"]["kernel"][0, 0])))
    np.testing.assert_allclose(seen, [(-0.1, 0), (-0.15, 0), (-0.2, -0.2)], rtol=1e-5)
    assert float(rate_of(state)) == pytest.approx(0.1)
    with pytest.raises(UserError, match="late: no parameter path matches 'first'"):
        adamw(constant(0.1), late=("first", 2)).init(params)


def test_layer_decay_and_groups():
    tree = {
        "image": {
            "patch": {"kernel": jnp.ones(2)}, "block_0": {"w": jnp.ones(2)}, "block_1": {"w": jnp.ones(2)},
            "blocks": {"w": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(2)},
        },
        "head": {"kernel": jnp.ones(2)},
    }  # fmt: skip
    found = optim.layer_decay(0.5, 2).update(tree, optax.EmptyState(), tree)[0]
    assert found["image"]["patch"]["kernel"][0] == 0.125 and found["head"]["kernel"][0] == 1
    assert found["image"]["block_0"]["w"][0] == 0.25 and found["image"]["block_1"]["w"][0] == 0.5
    np.testing.assert_allclose(found["image"]["blocks"]["w"][:, 0], [0.25, 0.5])
    assert found["image"]["norm"]["scale"][0] == 1
    chain = optim.grouped({"^image/": optax.sgd(0.1), "": optax.sgd(2.0)})
    update = chain.update(tree, chain.init(tree), tree)[0]
    np.testing.assert_allclose([update["image"]["norm"]["scale"][0], update["head"]["kernel"][0]], [-0.1, -2.0])
    with pytest.raises(UserError, match="no parameter path matches"):
        optim.grouped({"^text/": optax.sgd(0.1), "": optax.sgd(2.0)}).init(tree)
    with pytest.raises(UserError, match="no group for the parameter head/kernel"):
        optim.grouped({"^image/": optax.sgd(0.1)}).init(tree)
