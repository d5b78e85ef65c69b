"""The CLIP objective: its parameter tree, outputs by the keys of the batch, metrics, and the largest model by shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import open_clip
from fundax.interop.keymap import shapes_of
from fundax.losses import contrastive
from fundax.objectives.clip import CLIP, clip
from fundax.runtime.serialize import from_json, to_json
from fundax.types import Contrastive

KEY, STEP = jax.random.key(0), jnp.int32(0)


def tiny(image=None, text=None, **fields) -> CLIP:
    towers = ViT(8, 4, 8, 1, 2, **(image or {})), TextTransformer(11, 5, 8, 1, 2, **(text or {}))
    return CLIP(*towers, embed=6, **fields)


SIGLIP = {
    "contrast": contrastive.sigmoid_contrastive,
    "text_bias": True,
    "init_logit_scale": 2.0,
    "init_logit_bias": -9.0,
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (4, 8, 8, 3), np.uint8),
        "text": rng.integers(0, 11, (4, 5)).astype(np.int32),
    }


def test_parameter_tree(batch):
    params, extra = jax.eval_shape(tiny(**SIGLIP).init, KEY, batch)
    assert extra == {}
    assert set(params) == {"image", "text", "project", "log_scale", "logit_bias"}
    assert set(params["image"]) == {"patch", "class_token", "position", "pre_norm", "block_0", "norm"}
    assert set(params["text"]) == {"token", "position", "block_0", "norm"}
    assert set(params["text"]["block_0"]) == {"norm1", "attention", "norm2", "mlp"}
    assert params["image"]["block_0"]["attention"]["qkv"]["kernel"].shape == (8, 3, 8)
    assert params["project"]["text"]["kernel"].shape == (8, 6) and params["project"]["text"]["bias"].shape == (6,)
    assert "logit_bias" not in jax.eval_shape(tiny().init, KEY, batch)[0]


def test_spec_is_what_init_and_loss_take():
    model = tiny()
    params, extra = jax.eval_shape(model.init, KEY, model.batch_spec(2))
    loss, _ = jax.eval_shape(model.loss, params, extra, model.batch_spec(2), KEY, STEP)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_fresh_scales():
    params, _ = jax.jit(tiny(**SIGLIP).init)(
        KEY, {"image": np.zeros((1, 8, 8, 3), np.uint8), "text": np.zeros((1, 5), np.int32)}
    )
    assert (float(params["log_scale"]), float(params["logit_bias"])) == (2.0, -9.0)


@pytest.fixture(scope="module")
def started(batch):
    model = tiny()
    return model, jax.jit(model.init)(KEY, batch)[0]


def test_forward_gives_what_the_batch_allows(started, batch):
    model, params = started
    image = jax.jit(model.forward)(params, {}, {"image": batch["image"]})
    assert set(image) == {"image_features", "image_raw", "logit_scale"}
    np.testing.assert_allclose(np.linalg.norm(image["image_features"], axis=1), 1, rtol=1e-6)
    text = jax.jit(model.forward)(params, {}, {"text": batch["text"]})
    assert set(text) == {"text_features", "text_raw", "logit_scale"}
    assert text["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-6)


def test_loss_is_compare_of_encode_and_its_metrics(started, batch):
    model, params = started
    assert isinstance(model, Contrastive)
    loss, (extra, metrics) = jax.jit(model.loss)(params, {}, batch, KEY, STEP)
    out = jax.jit(model.forward)(params, {}, batch)
    logits = np.asarray(out["logit_scale"] * out["image_features"] @ out["text_features"].T, np.float64)
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    assert extra == {}
    assert loss == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-5)
    assert metrics["loss"] == loss
    assert metrics["image_to_text"] == (logits.argmax(1) == np.arange(4)).mean()
    assert metrics["text_to_image"] == (logits.argmax(0) == np.arange(4)).mean()
    assert set(metrics) == {"loss", "image_to_text", "text_to_image", "logit_scale", "same_text"}


def test_padding_rows_do_not_count(started, batch):
    model, params = started
    compare = jax.jit(model.compare)
    features = jax.jit(model.encode)(params, {}, batch, KEY, STEP)
    valid = {"valid": np.array([True, True, True, False])}
    first = {name: x[:3] for name, x in features.items()}
    assert compare(params, features, valid)[0] == pytest.approx(float(compare(params, first, {})[0]), rel=1e-6)


def test_flip_masking_follows_the_rng_of_the_loss_only(started, batch):
    _, params = started
    model = tiny(image={"mask_ratio": 0.5})
    encode = jax.jit(model.encode)
    a, b = (encode(params, {}, batch, jax.random.key(i), STEP)["image_features"] for i in range(2))
    assert not np.allclose(a, b)
    full = jax.jit(model.forward)(params, {}, batch)["image_features"]
    np.testing.assert_allclose(full, jax.jit(tiny().forward)(params, {}, batch)["image_features"], rtol=1e-6)


def test_objective_is_hashable_and_survives_json():
    model = tiny(text={"pool": "last"}, **SIGLIP)
    assert hash(model) == hash(tiny(text={"pool": "last"}, **SIGLIP))
    assert from_json(to_json(model)) == model


def test_fields_of_both_towers():
    model = clip("Ti/16", scan=True, remat="dots", dtype="bfloat16", vocab=100, context=9)
    assert (model.image.scan, model.text.remat, model.image.dtype) == (True, "dots", "bfloat16")
    assert (model.text.vocab, model.text.context, model.embed) == (100, 9, 192)


def test_dfn_h14_378_has_986_714_881_parameters_in_686_tensors():
    model = clip("H/14-378")
    shapes = shapes_of(model)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_714_881
    theirs = {key for row in open_clip.rows(model, custom_text=False) for key in row.keys}
    assert len(theirs) == 686
