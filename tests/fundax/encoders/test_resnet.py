"""ResNet: shapes of the published sizes, batch statistics by hand, padding as torch's, and the same on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fundax.encoders.convolution import BatchNorm, Conv
from fundax.encoders.resnet import ResNet, resnet
from fundax.runtime.mesh import make_mesh
from fundax.types import UserError


def tiny(**fields):
    return ResNet(**{"image_size": 32, "width_first": 4, "blocks": (1, 1)} | fields)


def test_the_published_size_has_torchvisions_numbers():
    model = resnet("resnet50")
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 23_508_032  # resnet50 without its fc
    assert len(jax.tree.leaves(variables["batch_stats"])) == 3 * 53
    out = jax.eval_shape(model.apply, variables, image)
    assert out["map"].shape == (2, 7, 7, 2048) and out["tokens"].shape == (2, 49, 2048)
    assert out["pooled"].shape == (2, model.width) == (2, 2048)


def test_an_unknown_size_is_named():
    with pytest.raises(UserError, match="resnet19"):
        resnet("resnet19")


def test_batch_norm_by_hand():
    # channel values 1, 2, 3, 6: mean 3, variance 14/4, unbiased 14/3
    x = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1)
    norm = BatchNorm(epsilon=0.0)
    variables = norm.init(jax.random.key(0), x, False)
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 + 0.1 * 14 / 3], rtol=1e-6)
    assert new["batch_stats"]["count"] == 1
    y = norm.apply({"params": variables["params"], **new}, x, False)
    np.testing.assert_allclose(y.ravel()[0], 0.7 / np.sqrt(0.9 + 1.4 / 3), rtol=1e-6)


def test_one_value_per_channel_has_no_variance():
    norm = BatchNorm()
    x = jnp.ones((1, 1, 1, 3))
    variables = norm.init(jax.random.key(0), x, False)
    with pytest.raises(UserError, match="one value per channel"):
        norm.apply(variables, x, True, mutable=["batch_stats"])


def test_a_stride_pads_both_sides():
    # 4 pixels 1 2 3 4, kernel of ones, stride 2, padding 1: windows (0 1 2) and (2 3 4); SAME would give 6 and 7
    x = jnp.broadcast_to(jnp.arange(1.0, 5.0)[None, None, :, None], (1, 1, 4, 1))
    conv = Conv(1, 3, 2, "float32")
    y = conv.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, x)
    assert y.ravel().tolist() == [3.0, 9.0]


def test_statistics_are_those_of_the_global_batch():
    model, image = tiny(), jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image[:1])

    @jax.jit
    def step(variables, image):
        out, new = model.apply(variables, image, True, mutable=["batch_stats"])
        return out["pooled"], new

    alone = step(variables, image)
    with jax.set_mesh(make_mesh((4, 1))):
        spread = step(variables, jax.device_put(image, jax.NamedSharding(jax.sharding.get_mesh(), P("data"))))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_compute_in_bfloat16_keeps_fp32_parameters_and_statistics():
    model = tiny(dtype="bfloat16")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, jnp.ones((1, 32, 32, 3)))
    assert out["map"].dtype == jnp.bfloat16 and out["pooled"].dtype == jnp.float32
