"""EfficientNet-Lite and ConvNeXt: published sizes, pyramids, stochastic depth, and frozen or learned statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.backbone import Backbone
from fundax.encoders.convnext import ConvNeXt, convnext
from fundax.encoders.efficientnet import efficientnet
from fundax.encoders.resnet import ResNet, resnet
from fundax.types import UserError

IMAGE = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
SIZES = {  # parameters of timm's models without a classifier, and widths of the pyramid
    "efficientnet-lite0": (efficientnet, 3_371_008, (24, 40, 112, 320)),
    "efficientnet-lite1": (efficientnet, 4_135_680, (24, 40, 112, 320)),
    "efficientnet-lite2": (efficientnet, 4_811_072, (24, 48, 120, 352)),
    "convnext-tiny": (convnext, 27_820_128, (96, 192, 384, 768)),
    "resnet18": (resnet, 11_176_512, (64, 128, 256, 512)),
    "resnet34": (resnet, 21_284_672, (64, 128, 256, 512)),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    make, count, widths = SIZES[name]
    model = make(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    out = jax.eval_shape(model.apply, variables, IMAGE)
    assert [one.shape for one in out["pyramid"]] == [
        (2, 64 // s, 64 // s, w) for s, w in zip((4, 8, 16, 32), widths, strict=True)
    ]
    assert out["pooled"].shape == (2, model.width) and out["tokens"].shape == (2, 4, model.width)


def test_unknown_sizes_are_named():
    for make in (efficientnet, convnext):
        with pytest.raises(UserError, match="'huge'; expected one of"):
            make("huge")


@pytest.fixture(scope="module")
def small():
    backbone = Backbone(ResNet(32, 4, (1, 1), drop_path=0.9), feature="pooled", frozen=False)
    params, extra = jax.jit(backbone.init)(jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    return backbone, params, extra, {"image": image}


def test_frozen_statistics_stay_and_predict_as_the_initial_weights(small):
    import dataclasses

    backbone, params, extra, batch = small
    learned = dataclasses.replace(backbone, image=backbone.image.clone(drop_path=0.0))
    frozen = dataclasses.replace(learned, statistics="frozen")
    rng = jax.random.key(1)
    seen, same = jax.jit(frozen.features)(params, extra, batch, None, rng)
    still, _ = jax.jit(frozen.features)(params, extra, batch)
    np.testing.assert_allclose(seen, still, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, extra)
    _, moved = jax.jit(learned.features)(params, extra, batch, None, rng)
    assert int(moved["image"]["norm1"]["count"]) == 1 and int(extra["image"]["norm1"]["count"]) == 0


def test_branches_are_dropped_in_training_only(small):
    backbone, params, extra, batch = small
    run = jax.jit(backbone.features)
    one, two = (np.asarray(run(params, extra, batch, None, jax.random.key(k))[0]) for k in (1, 2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(*(np.asarray(run(params, extra, batch)[0]) for _ in range(2)))


def test_tiles_are_pooled():
    whole = Backbone(ConvNeXt(32, (8, 16), (1, 1)), feature="pooled")
    params, extra = jax.jit(whole.init)(jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    parts = np.stack([image[0, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)])
    each = np.asarray(jax.jit(whole.features)(params, extra, {"image": parts})[0])
    for pool, expected in (("mean", each.mean(0)), ("max", each.max(0))):
        tiled = Backbone(whole.image, feature="pooled", tiles=2, tile_pool=pool)
        assert tiled.side == 64
        found = np.asarray(jax.jit(tiled.features)(params, extra, {"image": image})[0])[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="0 tiles"):
        Backbone(whole.image, feature="pooled", tiles=0)
