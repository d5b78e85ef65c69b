"""RET-CLIP's objective: missing eyes, negatives by device, identical reports, reconstruction, every kind of batch."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fundax.encoders.autoencoder import MaskedDecoder
from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.vit import ViT
from fundax.interop import keymap
from fundax.objectives.ret_clip import LEVELS, Reconstruction, RetCLIP, ret_clip
from fundax.params import flatten
from fundax.runtime import serialize
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError

SMALL = RetCLIP(
    image=ViT(image_size=16, patch=8, width=32, depth=1, heads=2),
    text=BERT(vocab=40, context=8, width=32, depth=1, heads=2, hidden=32, dropout=0.0),
    embed=16,
    context=6,
)
ZERO = jnp.zeros((), jnp.int32)


def batch_of(n, seed=0, **present):
    rng = np.random.default_rng(seed)
    eyes = {eye: rng.integers(0, 256, (n, 16, 16, 3), np.uint8) for eye in ("left", "right")}
    text = rng.integers(1, 40, (n, 6), np.int32)
    return {**eyes, "text": text, **{key: np.asarray(value) for key, value in present.items()}}


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0), batch_of(1))[0]


@partial(jax.jit, static_argnums=0)
def loss_of(objective, params, batch, step=ZERO):
    value, (_, metrics) = objective.loss(params, {}, batch, jax.random.key(1), step)
    return value, metrics


@pytest.fixture(scope="module")
def features():
    """Unit features of eight patients, six heads, as encode gives them."""
    rng = np.random.default_rng(1)
    names = [*(f"{eye}_features" for eye in ("image", "left", "right"))]
    names += [f"text_features{suffix}" for suffix in ("", "_left", "_right")]
    draw = {name: rng.normal(size=(8, 16)).astype(np.float32) for name in names}
    return {name: jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True)) for name, x in draw.items()}


def test_parameter_tree_and_published_size():
    shapes = keymap.shapes_of(ret_clip("B/16"))
    assert sum(math.prod(shape) for shape in shapes.values()) == 191_871_235
    assert shapes["project/patient/kernel"] == (1024, 512)
    assert shapes["project/text_left/fc1/kernel"] == (768, 768)
    assert {path for path in shapes if path.startswith("log_scale")} == {f"log_scale/{level}" for level in LEVELS}
    assert {path.split("/")[0] for path in shapes} == {"image", "text", "project", "log_scale"}


def test_fresh_scales_and_spec(params):
    for level in LEVELS:
        assert float(jnp.exp(params["log_scale"][level])) == pytest.approx(90, rel=1e-6)
    assert SMALL.batch_spec(4)["left_present"].shape == (4,)
    assert set(replace(SMALL, presence=False).batch_spec(4)) == {"left", "right", "text"}
    assert serialize.from_json(serialize.to_json(SMALL)) == SMALL
    with pytest.raises(UserError, match="negatives is one of global"):
        replace(SMALL, negatives="far")


def test_total_by_hand(features):
    """Two patients, orthogonal texts, scale 2: an image on its text and the other on none of them."""
    params = {"log_scale": {level: jnp.log(2.0) for level in LEVELS}}
    eye, other = jnp.array([[1.0, 0, 0], [0, 0, 1.0]]), jnp.array([[1.0, 0, 0], [0, 1.0, 0]])
    pair = {f"{i}_features": eye for i in ("image", "left", "right")}
    pair |= {f"text_features{s}": other for s in ("", "_left", "_right")}
    loss, metrics = SMALL.compare(params, pair, {"text": np.arange(2)[:, None]})
    # logits [[2, 0], [0, 0]]: rows log(1 + e^-2) and log 2; columns the same
    one = (math.log1p(math.exp(-2)) + math.log(2)) / 2
    assert float(metrics["loss_left"]) == pytest.approx(one, rel=1e-6)
    assert float(loss) == pytest.approx(3 * one, rel=1e-6)
    assert float(replace(SMALL, total="mean").compare(params, pair, {})[0]) == pytest.approx(one, rel=1e-6)
    del features


def test_missing_eyes(params):
    """Every patient lacks a random eye: finite, gradients flow; what is not there has no influence."""
    side = np.random.default_rng(0).random(8) < 0.5
    batch = batch_of(8, left_present=side, right_present=~side)

    def loss(p, b):
        return SMALL.loss(p, {}, b, jax.random.key(0), ZERO)[0]

    step = jax.jit(jax.value_and_grad(loss))
    value, grads = step(params, batch)
    assert np.isfinite(value)
    for path, grad in flatten(grads).items():
        assert np.isfinite(grad).all(), path
    for path in ("image/patch/kernel", "text/word/embedding", *(f"project/{level}/kernel" for level in LEVELS)):
        assert np.abs(flatten(grads)[path]).max() > 0, path
    other = {eye: np.where(batch[f"{eye}_present"][:, None, None, None], batch[eye], 255 - batch[eye])
             for eye in ("left", "right")}  # fmt: skip
    again, grads_again = step(params, batch | other)  # the same program: bit for bit
    np.testing.assert_array_equal(again, value)
    jax.tree.map(np.testing.assert_array_equal, grads_again, grads)


def test_no_eye_of_one_side_at_all_is_finite(params):
    batch = batch_of(4, left_present=np.zeros(4, bool), right_present=np.ones(4, bool))
    value, metrics = loss_of(SMALL, params, batch)
    assert np.isfinite(value)
    assert float(metrics["loss_left"]) == 0


def test_both_eyes_present_is_exactly_the_unmasked_loss(params, features):
    """Bit for bit, operation by operation; under jit XLA may sum the same numbers in another order."""
    batch = batch_of(8)
    everyone = batch | {"left_present": np.ones(8, bool), "right_present": np.ones(8, bool)}
    unmasked, masked = (SMALL.compare(params, features, b) for b in (batch, everyone))
    for name, value in unmasked[1].items():
        np.testing.assert_array_equal(masked[1][name], value, err_msg=name)
    np.testing.assert_array_equal(masked[0], unmasked[0])
    plain, present = loss_of(replace(SMALL, presence=False), params, batch), loss_of(SMALL, params, everyone)
    np.testing.assert_allclose(present[0], plain[0], rtol=3e-7)


def test_the_patient_feature_of_one_eye_is_that_eye_twice(params):
    forward = jax.jit(lambda p, b: SMALL.forward(p, {}, b))
    batch = batch_of(3, left_present=np.array([True, False, True]), right_present=np.array([True, True, False]))
    out = forward(params, batch)
    only_right = forward(params, {"right": batch["right"]})
    only_left = forward(params, {"left": batch["left"]})
    both = forward(params, {"left": batch["left"], "right": batch["right"]})
    for row, same in enumerate((both, only_right, only_left)):
        np.testing.assert_allclose(out["image_features"][row], same["image_features"][row], atol=1e-6)
    assert "left_features" not in only_right
    assert "right_features" not in only_left
    photo = forward(params, {"image": batch["left"]})
    np.testing.assert_allclose(photo["image_features"], only_left["image_features"], atol=1e-6)
    np.testing.assert_allclose(photo["visual"], only_left["visual_left"], atol=1e-6)
    assert {name for name in photo if "scale" not in name} == {"visual", "image_raw", "image_features"}


@pytest.mark.parametrize("size", ["tiny", "Ti/16"])
def test_texts_can_be_read_by_clips_transformer(size):
    objective = ret_clip(size, "clip", vocab=40, context=6)
    assert isinstance(objective.text, TextTransformer) and objective.text.context == objective.context == 6
    batch = objective.batch_spec(2)
    params, extra = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert jax.eval_shape(objective.loss, params, extra, batch, jax.random.key(0), ZERO)[0].shape == ()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_photograph_is_compared_at_the_level_of_one_eye(params, side):
    batch = batch_of(2)
    one = replace(SMALL, single=side)
    found = one.forward(params, {}, {"image": batch["left"], "text": batch["text"]})
    expected = SMALL.forward(params, {}, {side: batch["left"], "text": batch["text"]})
    np.testing.assert_array_equal(found["image_features"], expected[f"{side}_features"])
    np.testing.assert_array_equal(found["text_features"], expected[f"text_features_{side}"])
    assert found["logit_scale"] == expected[f"logit_scale_{side}"]
    np.testing.assert_array_equal(found["visual"], expected[f"visual_{side}"])
    assert set(one.forward(params, {}, {"text": batch["text"]})) >= {"text_features", "logit_scale"}
    with pytest.raises(UserError, match="single is 'both'; expected one of patient, left, right"):
        replace(SMALL, single="both")


def test_text_alone_and_nothing(params):
    out = jax.jit(SMALL.forward)(params, {}, {"text": batch_of(2)["text"]})
    for suffix in ("", "_left", "_right"):
        np.testing.assert_allclose(jnp.linalg.norm(out[f"text_features{suffix}"], axis=1), 1, atol=1e-6)
    assert not [name for name in out if name.startswith(("image", "left", "right"))]
    assert set(SMALL.forward(params, {}, {})) == {"logit_scale", "logit_scale_left", "logit_scale_right"}


def test_a_mesh_gives_the_loss_of_one_device(params):
    batch = batch_of(8, left_present=np.array([1, 0, 1, 1, 1, 1, 0, 1], bool), right_present=np.ones(8, bool))
    expected = loss_of(SMALL, params, batch)[0]
    mesh = make_mesh((4, 2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_allclose(loss_of(SMALL, params, placed)[0], expected, atol=1e-5)


def test_local_negatives_are_each_devices_own(features):
    """On 4 shares of a batch of 8 the local loss is the mean of 4 losses of 2 patients, and is smaller."""
    params = {"log_scale": {level: jnp.log(5.0) for level in LEVELS}}
    local = replace(SMALL, negatives="local")
    compare = jax.jit(SMALL.compare)
    everyone = compare(params, features, {})[0]
    np.testing.assert_allclose(
        jax.jit(local.compare)(params, features, {})[0], everyone, atol=1e-6
    )  # one device: the same
    shares = [{name: x[at : at + 2] for name, x in features.items()} for at in range(0, 8, 2)]
    expected = np.mean([compare(params, share, {})[0] for share in shares])
    with jax.set_mesh(make_mesh((4, 2))):
        on_mesh = jax.jit(lambda f: (local.compare(params, f, {})[0], SMALL.compare(params, f, {})[0]))(features)
    np.testing.assert_allclose(on_mesh[0], expected, atol=1e-5)
    np.testing.assert_allclose(on_mesh[1], everyone, atol=1e-5)
    assert float(everyone) > float(on_mesh[0]) + 0.5  # 7 negatives against 1
    with jax.set_mesh(make_mesh((8, 1))), pytest.raises(UserError, match="batch of 4 does not divide by 8"):
        local.compare(params, {name: x[:4] for name, x in features.items()}, {})


def test_identical_reports_share_the_probability(features):
    soft = replace(SMALL, repeats="share")
    compare = jax.jit(soft.compare)
    params = {"log_scale": {level: jnp.log(5.0) for level in LEVELS}}
    text = np.arange(16).reshape(8, 2)
    distinct, same = {"text": text}, {"text": np.concatenate([text[:4], text[:4]])}
    np.testing.assert_allclose(
        compare(params, features, distinct)[0], jax.jit(SMALL.compare)(params, features, distinct)[0], atol=1e-6
    )
    by_text = compare(params, features, same)[0]
    by_category = compare(params, features, distinct | {"category": np.array([0, 1, 2, 3] * 2)})[0]
    np.testing.assert_allclose(by_text, by_category, atol=1e-6)
    # by hand for one level: half of the probability at the patient's own report, half at the one that is the same
    logits = np.asarray(features["left_features"] @ features["text_features_left"].T) * 5
    both = [z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (logits, logits.T)]
    rows = np.arange(8)
    expected = np.mean([-(p[rows, rows] + p[rows, (rows + 4) % 8]).mean() / 2 for p in both])
    np.testing.assert_allclose(compare(params, features, same)[1]["loss_left"], expected, rtol=1e-5)
    local = replace(soft, negatives="local")
    with jax.set_mesh(make_mesh((4, 2))):  # the same reports are on different devices: nothing to share
        shared = jax.jit(lambda f: local.compare(params, f, same)[0])(features)
        hard = jax.jit(lambda f: replace(SMALL, negatives="local").compare(params, f, same)[0])(features)
    np.testing.assert_allclose(shared, hard, atol=1e-6)


def test_padding_rows_are_left_out(params):
    batch = batch_of(6)
    first = {key: value[:4] for key, value in batch.items()}
    padded = batch | {"valid": np.array([1, 1, 1, 1, 0, 0], bool)}
    np.testing.assert_allclose(loss_of(SMALL, params, padded)[0], loss_of(SMALL, params, first)[0], atol=1e-5)


def test_reconstruction_branch():
    decoder = MaskedDecoder(patch=8, count=4, width=16, depth=1, heads=2)
    branch = replace(SMALL, reconstruction=Reconstruction(decoder, ratio=0.5, weight=10.0, start=3, flow=5))
    assert serialize.from_json(serialize.to_json(branch)) == branch
    batch = batch_of(4)
    params, _ = jax.jit(branch.init)(jax.random.key(0), batch)
    gradient = jax.jit(jax.grad(lambda p, step: branch.loss(p, {}, batch, jax.random.key(1), step)[0]))
    plain = loss_of(SMALL, {k: v for k, v in params.items() if k != "decoder"}, batch)[0]
    contrastive, with_error, flow = (
        loss_of(branch, params, batch, jnp.int32(step))[1] for step in (0, 3, 5)
    )  # stages of the original implementation, by step
    np.testing.assert_allclose(contrastive["loss"], plain, atol=1e-6)
    assert float(contrastive["loss_reconstruction"]) == 0
    np.testing.assert_allclose(with_error["loss"] - with_error["loss_reconstruction"], plain, atol=1e-4)
    assert 5 < float(with_error["loss_reconstruction"]) < 50  # ten times about one: a fresh decoder knows nothing
    assert abs(float(flow["loss_left"] - contrastive["loss_left"])) > 1e-3  # another image is contrasted
    grads = gradient(params, jnp.int32(3))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert float(jnp.abs(grads["decoder"]["predict"]["kernel"]).max()) > 0
    none = gradient(params, jnp.int32(0))
    assert float(jnp.abs(none["decoder"]["predict"]["kernel"]).max()) == 0


def test_flip_masking_draws_each_eye_by_itself(params):
    masked = replace(SMALL, image=SMALL.image.clone(mask_ratio=0.5))
    batch = batch_of(2)
    twins = batch | {"right": batch["left"]}
    encode = jax.jit(lambda p, b, key: masked.encode(p, {}, b, key, ZERO))
    out = [encode(params, twins, jax.random.key(seed)) for seed in range(6)]
    halves = params["project"]["patient"]["kernel"]
    assert halves.shape == (32, 16)
    assert any(np.abs(out[0]["image_features"] - o["image_features"]).max() > 1e-4 for o in out[1:])
