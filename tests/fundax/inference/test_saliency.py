"""Grad-CAM by hand for a ResNet, of a ViT with stacked layers as without; what each kind of model explains; pointing."""

import dataclasses

import jax
import numpy as np
import pytest

from fundax.encoders.backbone import Backbone
from fundax.encoders.convnext import convnext
from fundax.encoders.efficientnet import EfficientNet
from fundax.encoders.heads import MLPHead
from fundax.encoders.resnet import ResNet
from fundax.encoders.saliency import grad_cam
from fundax.encoders.vit import dino_vit
from fundax.inference.model import Model
from fundax.inference.saliency import answer_of, points_at, saliency_maps
from fundax.objectives.classify import Classify
from fundax.params import stack_blocks
from fundax.types import UserError

CLASSES = ("healthy", "sick")
EYE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def classifier(image):
    return Classify(Backbone(image, feature="pooled"), MLPHead(2, layers=1, norm=False), classes=CLASSES)


def second_logit(objective, params, extra, batch):
    return objective.forward(params, extra, batch)["logits"][:, 1]


def test_the_map_of_a_resnet_with_a_linear_head_is_known():
    """The gradient of a logit by the feature map is the class's column of the head, divided by the number of places."""
    objective = classifier(ResNet(32, 4, (1, 1)))
    params, extra = jax.jit(lambda key: objective.init(key, {}))(jax.random.key(0))
    params["head"]["fc1"]["kernel"] = np.random.default_rng(1).uniform(-0.5, 1, (32, 2)).astype(np.float32)
    batch = {"image": np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)}
    run = jax.jit(lambda p, e: grad_cam(objective, p, e, batch, second_logit))
    found = np.asarray(run(params, extra))
    variables = {"params": params["image"], "batch_stats": extra["image"]}
    features = np.asarray(objective.image.apply(variables, objective.tower.pixels(batch))["map"])
    by_hand = np.maximum(features @ params["head"]["fc1"]["kernel"][:, 1], 0) / (4 * 4)
    assert found.shape == (2, 4, 4) and found.max() > 0
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-7)


def test_a_vit_and_its_stacked_form_have_the_same_map():
    objective = classifier(dino_vit("S/16").clone(image_size=32, patch=8, width=16, depth=2, heads=2))
    params, extra = jax.jit(lambda key: objective.init(key, {}))(jax.random.key(0))
    params["head"]["fc1"]["kernel"] = np.random.default_rng(1).standard_normal((16, 2)).astype(np.float32)
    facts = {"image_size": 32}
    maps = saliency_maps(Model(objective, params, facts, None, 4, extra), EYE, target="sick")
    (plain,) = maps.values()
    assert list(maps) == ["Grad-CAM: sick"] and plain.shape == (4, 4) and plain.min() >= 0 and plain.max() > 0
    tower = dataclasses.replace(objective.tower, image=objective.image.clone(scan=True))
    scanned = dataclasses.replace(objective, tower=tower)
    stacked = params | {"image": stack_blocks(params["image"])}
    again = saliency_maps(Model(scanned, stacked, facts, None, 4, extra), EYE, target="sick")["Grad-CAM: sick"]
    np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-8)
    with pytest.raises(UserError, match="--target 'blind': the model has healthy, sick"):
        answer_of(Model(objective, params, facts, None), "blind")
    with pytest.raises(UserError, match="takes no texts"):
        saliency_maps(Model(objective, params, facts, None), EYE, texts=["exudates"])


@pytest.mark.parametrize(
    "image", [convnext("convnext-smoke", image_size=32), EfficientNet(32, 0.25, 0.3)], ids=["convnext", "lite0"]
)
def test_convolutional_encoders_are_encoded_and_explained(image):
    objective = classifier(image)
    params, extra = jax.jit(lambda key: objective.init(key, {}))(jax.random.key(0))
    model = Model(objective, params, {"image_size": 32}, None, 4, extra)
    features = model.encode_image([EYE])
    assert features.shape == (1, image.width) and np.isfinite(features).all()
    (found,) = saliency_maps(model, EYE, target="sick").values()
    assert found.ndim == 2 and found.min() >= 0 and np.isfinite(found).all()


def test_pointing_by_hand():
    heat, mask = np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)
    heat[1, 2], mask[1, 2:] = 1.0, True
    assert points_at(heat, mask) == (True, 2 / 16) and points_at(-heat, mask)[0] is False
    with pytest.raises(UserError, match="mask is empty"):
        points_at(heat, np.zeros_like(mask))
    with pytest.raises(UserError, match=r"a mask of \(2, 2\) pixels"):
        points_at(heat, mask[:2, :2])
