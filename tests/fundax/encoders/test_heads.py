"""The prototype layer by hand, and which parameters each kind of iBOT head has."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders.heads import IBOTHead, PrototypeLayer

TOKENS = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


def test_prototypes_are_unit_directions_times_their_scale():
    params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "scale": jnp.array([1.0, 5.0])}
    out = PrototypeLayer(2).apply({"params": params}, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(out, [[(3 + 8) / 5, 5 * 2]], rtol=1e-6)


def test_a_frozen_scale_gets_no_gradient():
    for frozen in (True, False):
        layer = PrototypeLayer(3, frozen)
        params = jax.jit(layer.init)(jax.random.key(0), TOKENS)
        grads = jax.jit(jax.grad(lambda p, layer=layer: layer.apply(p, TOKENS).sum()))(params)["params"]
        assert bool(jnp.any(grads["scale"] != 0)) is not frozen


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, {"mlp", "last_layer"}),
        ({"shared": False, "patch_prototypes": 4}, {"mlp", "last_layer", "last_layer2"}),
        ({"split": True}, {"mlp", "mlp2", "last_layer", "last_layer2"}),
    ],
)
def test_parts_and_shapes(fields, parts):
    head = IBOTHead(6, hidden=8, bottleneck=4, **fields)
    out, params = jax.jit(head.init_with_output)(jax.random.key(0), TOKENS)
    assert set(params["params"]) == parts
    assert out["token"].shape == (2, 6) and out["patch"].shape == (2, 4, fields.get("patch_prototypes", 6))
    np.testing.assert_allclose(
        jax.jit(partial(head.apply, method="token"))(params, TOKENS[:, 0]), out["token"], rtol=1e-5, atol=1e-6
    )
