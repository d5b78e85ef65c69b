import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.objectives.clip import CLIP
from fundax.params import path_string
from fundax.runtime.mesh import (
    FSDP,
    FSDP_TENSOR,
    REPLICATED,
    TENSOR,
    device_put,
    gather,
    make_mesh,
    shard_batch,
    shard_full_batch,
    shardings,
    spec_of,
)
from fundax.types import UserError


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((-1, 1), (8, 1, 1)),
        ((-1, 2), (4, 1, 2)),
        ((2, -1), (2, 1, 4)),
        ((1, 1), (1, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, -1, 1), (1, 8, 1)),
    ],
)
def test_make_mesh(shape, sizes):
    mesh = make_mesh(shape)
    assert mesh.axis_names == ("data", "fsdp", "model") and mesh.devices.shape == sizes


@pytest.mark.parametrize("shape", [(16, 1), (-1, 3), (-1, -1), (0, 1), (8,), (2, 2, 4)])
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(shape)


def specs(tree, mesh):
    placed = shardings(tree, mesh)
    return {path_string(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(placed)}


def clip_shapes(scan=False):
    image = ViT(image_size=16, patch=8, width=32, depth=2, heads=2, scan=scan)
    objective = CLIP(image, TextTransformer(vocab=64, context=6, width=32, depth=2, heads=2, scan=scan), embed=8)
    return jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec(1))[0]


def test_the_rules_split_what_they_name_and_replicate_the_rest():
    found = specs(clip_shapes(), make_mesh((4, 2)))
    block = "image/block_1/"
    assert found[f"{block}attention/qkv/kernel"] == P(None, None, "model")
    assert found[f"{block}attention/qkv/bias"] == P(None, "model")
    assert found[f"{block}attention/out/kernel"] == P("model", None) == found[f"{block}mlp/fc2/kernel"]
    assert found[f"{block}mlp/fc1/kernel"] == P(None, "model") and found[f"{block}mlp/fc1/bias"] == P("model")
    assert found["text/token/embedding"] == P("model", None)
    rest = ("image/position", "image/patch/kernel", "project/text/kernel", "log_scale", f"{block}norm1/scale")
    assert all(found[name] == P() for name in (*rest, f"{block}mlp/fc2/bias"))


def test_stacked_blocks_keep_their_layer_axis_whole():
    found = specs(clip_shapes(scan=True), make_mesh((4, 2)))
    assert found["text/blocks/attention/qkv/kernel"] == P(None, None, None, "model")
    assert found["text/blocks/mlp/fc2/kernel"] == P(None, "model", None)


def test_moments_lie_where_their_parameter_lies():
    params = clip_shapes()
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    found = specs(state, make_mesh((4, 2)))
    assert found["0/mu/image/block_0/attention/qkv/kernel"] == P(None, None, "model")
    assert found["0/count"] == P()


def test_fsdp_splits_every_matrix_and_with_tensor_both_of_its_axes():
    found = specs(clip_shapes(), make_mesh((2, 2, 2)))
    block = "text/block_0/"
    assert found[f"{block}attention/qkv/kernel"] == P("fsdp", None, "model")
    assert found[f"{block}mlp/fc2/kernel"] == P("model", "fsdp") == found["text/token/embedding"]
    assert found["image/patch/kernel"] == P(None, None, None, "fsdp")  # [8 8 3 32]: the largest axis
    assert found[f"{block}norm1/scale"] == P() == found["log_scale"]
    alone = specs(clip_shapes(scan=True), make_mesh((1, 8, 1)))
    assert alone["image/blocks/mlp/fc1/kernel"] == P(None, "fsdp", None)  # never the layer axis
    assert all("model" not in spec for spec in alone.values())


def test_tables_say_what_their_names_say():
    kernel = {"mlp": {"fc1": {"kernel": jnp.zeros((16, 32))}}}
    mesh = make_mesh((2, 2, 2))
    wanted = {
        "replicated": (REPLICATED, P()),
        "tensor": (TENSOR, P(None, "model")),
        "fsdp": (FSDP, P(None, "fsdp")),
        "both": (FSDP_TENSOR, P("fsdp", "model")),
    }
    for rules, spec in wanted.values():
        assert shardings(kernel, mesh, rules)["mlp"]["fc1"]["kernel"].spec == spec


def test_a_teacher_lies_where_its_student_lies_and_statistics_are_copies():
    student = clip_shapes()["image"]
    tree = {"params": student, "extra": {"teacher": student, "image": {"bn1": {"mean": jnp.zeros(64)}}}}
    placed = shardings(tree, make_mesh((2, 2, 2)))
    assert placed["extra"]["teacher"] == placed["params"]
    assert placed["extra"]["image"]["bn1"]["mean"].spec == P()


def test_what_does_not_divide_is_replicated_with_one_line(caplog):
    tree = {"token": {"embedding": jnp.zeros((63, 4))}, "word": {"embedding": jnp.zeros((65, 4))}}
    with caplog.at_level(logging.WARNING, "fundax"):
        assert set(specs(tree, make_mesh((4, 2))).values()) == {P()}
    assert len(caplog.records) == 1 and "token/embedding (63, 4), word/embedding (65, 4)" in caplog.text


def test_a_factored_moment_with_fewer_axes_is_replicated():
    assert spec_of("v_row/block_0/attention/qkv/kernel", 2) == P()


def test_place_splits_the_batch_and_place_whole_what_it_can():
    mesh = make_mesh((4, 2))
    placed = shard_batch({"image": np.arange(8)}, mesh)["image"]
    assert placed.sharding.spec == P(("data", "fsdp")) and placed.addressable_shards[0].data.shape == (2,)
    whole = shard_full_batch({"text": np.zeros((6, 3), np.int64), "name": np.array(["a"] * 6)}, mesh)
    assert set(whole) == {"text"} and whole["text"].sharding.spec == P() and whole["text"].dtype == jnp.int32


def test_put_and_gather_are_inverse():
    mesh = make_mesh((4, 2))
    tree = {"mlp": {"fc1": {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4)}}}
    placed = device_put(tree, shardings(tree, mesh))
    assert placed["mlp"]["fc1"]["kernel"].addressable_shards[0].data.shape == (3, 2)
    np.testing.assert_array_equal(gather(placed)["mlp"]["fc1"]["kernel"], tree["mlp"]["fc1"]["kernel"])
