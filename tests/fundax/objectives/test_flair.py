"""FLAIR as an objective: shapes, statistics carried in extra, a ViT in place of the ResNet, what other programs write."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.bert import BERT
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.interop.flair import from_fundax, to_fundax, write_checkpoint
from fundax.interop.initial import warm_start
from fundax.interop.weights import read_state, write_safetensors
from fundax.objectives.flair import FLAIR
from fundax.runtime import serialize
from fundax.types import Contrastive, UserError


def tiny(**fields):
    text = BERT(vocab=11, context=6, width=8, depth=2, heads=2, hidden=16, pool="mean", pool_layers=(1, 2, -1))
    image = ResNet(image_size=32, width_first=4, blocks=(1, 1))
    return FLAIR(**{"image": image, "text": text, "embed": 5, "context": 4} | fields)


def batch_of(objective, rows=4):
    rng = np.random.default_rng(0)
    size = objective.image.image_size
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), np.uint8),
        "text": rng.integers(1, objective.text.vocab, (rows, objective.context)).astype(np.int32),
        "category": np.arange(rows, dtype=np.int32) % 2,
    }


@pytest.fixture(scope="module")
def started():
    objective = tiny()
    batch = batch_of(objective)
    return objective, batch, *jax.jit(objective.init)(jax.random.key(0), batch)


def test_a_step_moves_the_statistics_and_evaluation_uses_them(started):
    objective, batch, params, extra = started
    assert {k: (v.shape, v.dtype) for k, v in objective.batch_spec(4).items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
    (loss, (after, metrics)), grads = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, extra, batch, jax.random.key(1), jnp.zeros((), jnp.int32)
    )
    assert np.isfinite(loss) and metrics["loss"] == loss
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["project"]))
    assert after["image"]["norm1"]["count"] == 1 and extra["image"]["norm1"]["count"] == 0
    forward = jax.jit(objective.forward)
    before, now = (forward(params, e, {"image": batch["image"]})["visual"] for e in (extra, after))
    assert before.shape == (4, objective.image.width) and not np.allclose(before, now)


def test_loss_is_compare_of_encode(started):
    objective, batch, params, extra = started
    assert isinstance(objective, Contrastive)
    args = (params, extra, batch, jax.random.key(1), jnp.zeros((), jnp.int32))
    features = jax.jit(objective.encode)(*args)
    compared = jax.jit(objective.compare)(params, features, batch)[0]
    np.testing.assert_allclose(compared, jax.jit(objective.loss)(*args)[0], rtol=1e-5)


def test_a_vit_has_no_statistics():
    objective = tiny(image=ViT(32, 16, 8, 1, 2))
    batch = batch_of(objective)
    params, extra = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert extra == {}
    out = jax.eval_shape(objective.forward, params, extra, batch)
    assert out["image_features"].shape == out["text_features"].shape == (4, 5)


def test_it_is_kept_as_json(started):
    assert serialize.from_json(serialize.to_json(started[0])) == started[0]


def test_unknown_negatives_are_named():
    with pytest.raises(UserError, match="'some'"):
        tiny(negatives="some")


def test_a_pth_file_and_back(started, tmp_path):
    objective, _, params, extra = started
    write_checkpoint(objective, params, extra, tmp_path / "flair.pth")
    state = read_state(tmp_path / "flair.pth")
    assert state["vision_model.model.bn1.num_batches_tracked"].dtype == np.int64
    again = to_fundax(state, image_size=32, text_heads=2, context=4)
    assert again[0].image == objective.image and again[0].text.pool == "unmasked_mean"
    for ours, theirs in zip(jax.tree.leaves((params, extra)), jax.tree.leaves(again[1:]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_to_start_from(started, tmp_path):
    objective, _, params, extra = started
    write_safetensors(from_fundax(objective, params, extra), tmp_path / "flair.safetensors")
    start = warm_start(tmp_path / "flair.safetensors", objective)
    fresh = jax.tree.map(jnp.zeros_like, params) | {"reference": {"out": {"kernel": jnp.ones((5, 5))}}}
    filled = start.init_from[0](fresh)
    kernels = (tree["text"]["block_1"]["mlp"]["fc1"]["kernel"] for tree in (filled, params))
    np.testing.assert_array_equal(*kernels)
    np.testing.assert_array_equal(filled["reference"]["out"]["kernel"], 1)
    statistics = start.init_extra[0](jax.tree.map(jnp.zeros_like, extra))
    np.testing.assert_array_equal(statistics["image"]["norm1"]["var"], extra["image"]["norm1"]["var"])
    with pytest.raises(UserError, match=r"vision_model.projection_head_vision.* has the shape .* expected \(6, 32\)"):
        warm_start(tmp_path / "flair.safetensors", replace(objective, embed=6)).init_from[0](fresh)


def test_retixfer_names_and_unknown_keys(started):
    objective, _, params, extra = started
    state = from_fundax(objective, params, extra)
    theirs = {k.replace("projection_head_vision", "projection_head").replace("projection_head_text", "projection_head"): v
              for k, v in state.items()}  # fmt: skip
    read = to_fundax(theirs, text_heads=2)[1]
    np.testing.assert_array_equal(read["project"]["image"]["kernel"], params["project"]["image"]["kernel"])
    with pytest.raises(UserError, match=r"unknown fancy\.weight"):
        to_fundax(state | {"fancy.weight": np.zeros(1)}, text_heads=2)
    with pytest.raises(UserError, match=r"missing vision_model\.model\.bn1\.running_var"):
        to_fundax({k: v for k, v in state.items() if k != "vision_model.model.bn1.running_var"}, text_heads=2)
    with pytest.raises(UserError, match="lacks vision_model"):
        to_fundax({})
