"""What trains: adapters by hand, which parameters each choice trains, and that only those have gradients and moments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fundax.encoders.layers import Dense, PackedProjection
from fundax.objectives.clip import clip, optimizer
from fundax.optim import adamw, constant, layer_decay
from fundax.params import flatten
from fundax.recipe import Recipe
from fundax.runtime.mesh import make_mesh
from fundax.train.loop import train_step
from fundax.train.state import fresh
from fundax.tuning import ALPHA, check, count_trained, join, merged, split, tuning, with_adapters
from fundax.types import UserError

SMALL = clip("smoke", vocab=50, context=8, image_size=16)
STACKED = dataclasses.replace(
    SMALL, image=SMALL.image.clone(depth=3, scan=True), text=SMALL.text.clone(depth=2, scan=True)
)
BATCH = {
    "image": np.arange(8 * 16 * 16 * 3, dtype=np.int64).reshape(8, 16, 16, 3).astype(np.uint8),
    "text": np.random.default_rng(0).integers(1, 50, (8, 8)).astype(np.int32),
}


@functools.cache
def params_of(objective):
    return jax.jit(objective.init)(jax.random.key(0), jax.tree.map(lambda x: x[:1], BATCH))[0]


def recipe(word, objective=SMALL, **fields):
    return Recipe(
        objective=objective, train=None, optimizer=optimizer(constant(1e-2), 0.1), steps=2, batch=8, tune=tuning(word),
        **fields,
    )  # fmt: skip


def filled(params):
    """The tree with adapters whose second matrix is not 0, so that they change what the model computes."""
    rng = np.random.default_rng(1)
    new = lambda path, x: jnp.asarray(rng.normal(0, 0.02, x.shape), jnp.float32) if "lora_b" in str(path) else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(new, params)


def test_a_dense_layer_with_rank_one_by_hand():
    tree = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    tree |= {"lora_a": jnp.array([[1.0], [2.0]]), "lora_b": jnp.array([[3.0, 0.0]])}
    x = jnp.array([[1.0, 10.0]])
    found = Dense(2, jax.nn.initializers.zeros).apply({"params": tree}, x)
    # x W = [11 11]; x A = 21; times B = [63 0]; times ALPHA / 1
    np.testing.assert_allclose(found, [[11 + ALPHA * 63, 11]])
    np.testing.assert_allclose(merged(tree)["kernel"], [[1 + ALPHA * 3, 1], [1 + ALPHA * 6, 1]])
    assert set(merged(tree)) == {"kernel", "bias"}


def test_a_packed_projection_takes_the_columns_it_computes():
    tree = {"kernel": jnp.zeros((2, 3, 2)), "lora_a": jnp.eye(2), "lora_b": jnp.arange(12.0).reshape(2, 3, 2)}
    found = PackedProjection(2, False, jax.nn.initializers.zeros).apply({"params": tree}, jnp.ones((1, 1, 2)), 1, 3)
    # rows of B are [0 1 | 2 3 | 4 5] and [6 7 | 8 9 | 10 11]; keys and values of their sum, times ALPHA / 2
    np.testing.assert_allclose(found[0, 0], ALPHA / 2 * np.array([[10, 12], [14, 16]]))


def test_merged_kernels_compute_the_same_as_adapters():
    plain, forward = params_of(STACKED), jax.jit(STACKED.forward)
    begun, _ = with_adapters(tuning("lora:2"), plain, {})
    for start, tree in (("new", begun), ("trained", filled(begun))):
        apart, into = forward(tree, {}, BATCH), forward(jax.tree.map(jnp.asarray, merged(tree)), {}, BATCH)
        for name in ("image_features", "text_features"):
            np.testing.assert_allclose(apart[name], into[name], atol=1e-5, err_msg=start)
    assert jax.tree.structure(merged(begun)) == jax.tree.structure(plain)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), merged(begun), plain)
    assert all(jax.tree.leaves(same)), "new adapters change nothing"


@pytest.mark.parametrize(
    ("word", "trains", "fixed"),
    [
        ("head", ["project/image/kernel", "log_scale"], ["image/blocks/", "text/norm"]),
        ("text", ["text/blocks/", "text/token", "project/image/kernel"], ["image/"]),
        ("layers:2", ["image/norm/scale", "text/blocks/", "image/blocks/", "log_scale"], ["image/patch", "image/pre_norm"]),
        ("lora:2", ["image/blocks/attention/qkv/lora_a", "project/text/kernel"], ["image/norm", "text/token"]),
    ],
)  # fmt: skip
def test_each_choice_trains_its_part_and_keeps_moments_of_that_alone(word, trains, fixed):
    chosen = tuning(word)
    params, _ = with_adapters(chosen, params_of(STACKED), {})
    part, rest = split(chosen, params)
    some = {path for path, leaf in flatten(part).items() if not isinstance(leaf, optax.MaskedNode)}
    assert all(any(path.startswith(one) for path in some) for one in trains)
    assert not any(path.startswith(one) for path in some for one in fixed)
    whole = join(part, rest)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, params)))
    size = sum(x.size for x in jax.tree.leaves(part))
    assert count_trained(chosen, params) == size
    state = jax.eval_shape(adamw(constant(1.0)).init, part)
    assert 2 * size <= sum(x.size for x in jax.tree.leaves(state)) <= 2 * size + 8


def test_the_last_of_three_stacked_blocks_are_rows_of_a_leaf():
    params = params_of(STACKED)
    part, rest = split(tuning("layers:2"), params)
    assert part["image"]["blocks"]["mlp"]["fc1"]["kernel"].shape[0] == 2
    assert rest["image"]["blocks"]["mlp"]["fc1"]["kernel"].shape[0] == 1
    assert not jax.tree.leaves(rest["text"]["blocks"]), "all of the two blocks of the text encoder train"
    factors = layer_decay(0.5, 3).update(jax.tree.map(jnp.ones_like, part), (), part)[0]["image"]["blocks"]
    np.testing.assert_array_equal(factors["norm1"]["bias"][:, 0], [0.25, 0.5])  # 2 and 1 layers above


def test_a_step_moves_the_adapters_alone_and_a_mesh_gives_the_same():
    one = recipe("lora:2")
    found = []
    for shape in ((1, 1), (2, 2, 2)):
        mesh = make_mesh(shape)
        with jax.set_mesh(mesh):
            state, _ = fresh(one, mesh)
            start = jax.device_get(state.params)
            step, batch = train_step(one), {name: jnp.asarray(value) for name, value in BATCH.items()}
            for _ in range(2):  # the first step moves the second matrix alone, which is 0 before
                state, metrics = step(state, batch)
            found.append((start, jax.device_get(state.params), float(metrics["loss"])))
    (start, ours, loss), (_, theirs, sharded_loss) = found
    moved = {path for path, leaf in flatten(ours).items() if not np.array_equal(leaf, flatten(start)[path])}
    assert moved == {path for path in flatten(ours) if "lora_" in path or not path.startswith(("image/", "text/"))}
    assert abs(loss - sharded_loss) < 1e-5
    for path, leaf in flatten(ours).items():
        np.testing.assert_allclose(leaf, flatten(theirs)[path], atol=2e-5, err_msg=path)


def test_stored_adapters_continue_bit_for_bit(tmp_path):
    from fundax.runtime.checkpoint import load_params, load_saved
    from fundax.train.loop import fit

    class Same:
        def __init__(self, *_):
            self.step = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.step += 1
            return BATCH

        def get_state(self):
            return {"step": self.step}

        def set_state(self, state):
            self.step = state["step"]

    one = dataclasses.replace(recipe("lora:1", mesh=(1, 1)), train=Same)
    fit(dataclasses.replace(one, steps=1), tmp_path / "stopped")
    fit(one, tmp_path / "stopped")
    state = fit(one, tmp_path / "whole")
    stopped, whole = (load_saved(tmp_path / name, "latest")[0] for name in ("stopped", "whole"))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, stopped, whole)))
    assert any("lora_a" in path for path in flatten(whole))
    ours, _ = load_params(tmp_path / "whole")
    assert jax.tree.structure(ours) == jax.tree.structure(params_of(SMALL)), "readers get a model without adapters"
    forward = jax.jit(SMALL.forward)
    apart = forward(state.params, {}, BATCH)["image_features"]
    np.testing.assert_allclose(forward(ours, {}, BATCH)["image_features"], apart, atol=1e-5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("half", "expected full, head, text, layers:K or lora:RANK"),
        ("lora", "with a number"),
        ("layers:0", "with a number"),
        ("layers:4", "image has 3, text has 2"),
        ("lora:32", "has no larger rank"),
    ],
)
def test_a_choice_without_a_meaning_is_refused_with_the_reason(word, message):
    with pytest.raises(UserError, match=message):
        check(tuning(word), jax.eval_shape(lambda: params_of(STACKED)), {})


def test_a_model_without_an_encoder_or_without_texts_refuses():
    with pytest.raises(UserError, match="no image or text encoder, only unet"):
        check(tuning("head"), {"unet": {"kernel": jnp.ones((2, 2))}}, {})
    with pytest.raises(UserError, match="does not have both"):
        check(tuning("text"), {"image": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}, {})
    with pytest.raises(UserError, match="makes its own targets"):
        check(tuning("head"), {"image": {"kernel": jnp.ones((2, 2))}, "head": {"k": jnp.ones(2)}}, {"teacher": {}})
    with pytest.raises(UserError, match="no encoder has the kernels"):
        check(tuning("lora:2"), {"image": {"conv1": {"kernel": jnp.ones((9, 9))}}}, {})


def test_configs_take_the_argument_and_heads_of_frozen_encoders_need_none():
    from fundax.config import load

    assert load("configs/quickstart.py", ["--smoke", "--tune", "lora:2"])[0].tune.rank == 2
    fixed = load("configs/segmentation.py", ["--smoke", "--tune", "head"])[0]
    assert fixed.objective.frozen and fixed.tune.word == "head"
    assert load("configs/linear_probe.py", ["--smoke"])[0].tune.word == "head"
    with pytest.raises(UserError, match="features of a frozen encoder; leave it out"):
        load("configs/linear_probe.py", ["--smoke", "--tune", "full"])
