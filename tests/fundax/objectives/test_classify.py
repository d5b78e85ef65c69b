"""Classification from features: parts that learn, gaps in labels, encoders by modality, a batch of one, save and open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.backbone import Backbone
from fundax.encoders.heads import ForecastHead, MLPHead, interval_encoding
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import dino_vit
from fundax.objectives.classify import Classify
from fundax.objectives.forecast import Forecast
from fundax.objectives.regress import Regress, standardize
from fundax.runtime import serialize
from fundax.runtime.mesh import make_mesh, shard_batch
from fundax.types import UserError

VIT = dino_vit("S/16").clone(image_size=16, patch=8, width=8, depth=1, heads=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
NOW = jnp.zeros((), jnp.int32)


def built(objective, seed: int = 0):
    return jax.jit(lambda rng: objective.init(rng, {}))(jax.random.key(seed))


def gradients(objective, params, extra, batch):
    run = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    return run(params, extra, batch, jax.random.key(1), NOW)


def test_a_frozen_encoder_gets_no_gradient_and_a_trained_one_does():
    batch = {"image": IMAGES, "label": np.array([0, 1, 2, -1], np.int32)}
    params, extra = built(Classify(Backbone(VIT, blocks=1), MLPHead(3)))
    for frozen in (True, False):
        objective = Classify(Backbone(VIT, blocks=1, frozen=frozen), MLPHead(3))
        (loss, (new, metrics)), grads = gradients(objective, params, extra, batch)
        assert np.isfinite(loss) and new["head"]["norm"]["count"] == 1 and 0 <= metrics["accuracy"] <= 1
        moved = any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["image"]))
        assert moved is not frozen
        assert serialize.from_json(serialize.to_json(objective)) == objective


def test_features_in_the_batch_are_those_of_its_images():
    objective = Classify(Backbone(VIT, blocks=1), MLPHead(1, layers=1, norm=False), classes=("no", "yes"))
    params, extra = built(objective)
    run = jax.jit(objective.forward)
    out = run(params, extra, {"image": IMAGES})
    assert out["feature"].shape == (4, 8) == (4, objective.tower.width)
    again = run(params, extra, {"feature": out["feature"]})
    np.testing.assert_array_equal(out["logits"], again["logits"])
    several = Classify(objective.tower, MLPHead(2, layers=1, norm=False), kind="several", given="feature")
    params, extra = built(several)
    batch = {"feature": out["feature"], "label": np.array([[0, np.nan]] * 4, np.float32)}
    _, grads = gradients(several, params, extra, batch)
    assert np.asarray(grads["head"]["fc1"]["bias"])[0] != 0 and np.asarray(grads["head"]["fc1"]["bias"])[1] == 0


def test_an_encoder_for_each_modality():
    objective = Classify(Backbone(VIT, feature="mean", modalities=(0, 2)), MLPHead(2))
    params, extra = built(objective)
    run = jax.jit(objective.forward)
    both = run(params, extra, {"image": IMAGES, "modality": np.array([0, 2, 2, 0], np.int32)})["feature"]
    plain = Classify(Backbone(VIT, feature="mean"), MLPHead(2))
    for name, rows in (("m0", [0, 3]), ("m2", [1, 2])):
        alone = jax.jit(plain.forward)(params | {"image": params["image"][name]}, extra, {"image": IMAGES})["feature"]
        np.testing.assert_allclose(both[np.array(rows)], alone[np.array(rows)], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="no 'modality'"):
        jax.eval_shape(lambda p: objective.forward(p, extra, {"image": IMAGES}), params)


def test_a_resnet_learns_with_its_batch_statistics():
    tower = Backbone(ResNet(16, 4, (1, 1)), feature="pooled", frozen=False)
    objective = Regress(tower, MLPHead(2, layers=1))
    params, extra = built(objective)
    params = standardize(lambda: np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0]]))(params)
    np.testing.assert_allclose(params["target"]["mean"], [2, 5])
    np.testing.assert_allclose(params["target"]["std"], [1, 1])
    batch = {"image": IMAGES, "value": np.array([[1, 5], [3, np.nan], [2, 5], [2, 5]], np.float32)}
    (loss, (new, _)), grads = gradients(objective, params, extra, batch)
    assert new["image"]["norm1"]["count"] == 1 and np.isfinite(loss)
    assert not np.asarray(grads["target"]["mean"]).any()
    out = jax.jit(objective.forward)(params, extra, {"image": IMAGES})["value"]
    np.testing.assert_allclose(out.mean(0), [2, 5], atol=0.2)
    with pytest.raises(UserError, match="target 0 is known in no"):
        standardize(lambda: np.full((2, 1), np.nan))(params)


def test_a_batch_of_one_has_no_batch_statistics():
    objective = Classify(Backbone(VIT, blocks=1), MLPHead(2))
    params, extra = jax.eval_shape(lambda rng: objective.init(rng, {}), jax.random.key(0))
    batch = {"image": IMAGES[:1], "label": np.zeros(1, np.int32)}
    with pytest.raises(UserError, match="batch of one"):
        jax.eval_shape(lambda p, extra: objective.loss(p, extra, batch, jax.random.key(0), NOW), params, extra)


def test_visits_are_averaged_and_absent_ones_ignored():
    objective = Forecast(Backbone(VIT, feature="mean"), ForecastHead(), visits=2)
    params, extra = built(objective)
    days = np.array([[100, 400]] * 4, np.float32)
    pair = np.stack([IMAGES, IMAGES[::-1]], axis=1)
    present = np.array([[True, False]] * 4)
    out = jax.jit(objective.forward)(params, extra, {"image": pair, "days": days, "present": present})
    x = np.asarray(out["feature"][:, 0] + interval_encoding(jnp.asarray(days[:, 0]), 8))
    kernel, bias = (np.asarray(params["head"]["fc1"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(out["logits"][:, 0], (x @ kernel + bias)[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["probabilities"].sum(1), 1, rtol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="last 3 blocks"):
        Backbone(VIT, blocks=3)
    with pytest.raises(UserError, match="ResNet has the features"):
        Backbone(ResNet(16, 4, (1,)), feature="token")
    with pytest.raises(UserError, match="2 class weights for 3"):
        Classify(Backbone(VIT, blocks=1), MLPHead(3), weights=(1.0, 2.0))
    with pytest.raises(UserError, match="even width"):
        interval_encoding(jnp.zeros(1), 3)


def test_sharded_equals_unsharded():
    objective = Classify(Backbone(VIT, blocks=1, frozen=False), MLPHead(3), mixup=0.8)
    params, extra = built(objective)
    batch = {"image": IMAGES, "label": np.array([0, 1, 2, -1], np.int32)}
    found = []
    for devices in (1, 2):
        mesh = make_mesh((devices, 1))
        with jax.set_mesh(mesh):
            (loss, (new, _)), grads = gradients(objective, params, extra, shard_batch(batch, mesh))
        found.append(jax.device_get((loss, new["head"]["norm"]["var"], grads["image"]["patch"]["kernel"])))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
