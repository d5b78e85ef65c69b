"""The ViT's flags: shapes by eval_shape, patches and masking by hand, each pooling against its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fundax.encoders import layers
from fundax.encoders.vit import SIZES, ViT, kept_patches, patches, vit
from fundax.params import stack_blocks
from fundax.types import UserError

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32)


def small(**fields) -> ViT:
    return ViT(**{"image_size": 9, "patch": 3, "width": 8, "depth": 1, "heads": 2} | fields)


@partial(jax.jit, static_argnums=0, static_argnames="hidden")
def run(model, params, image, noise=None, **how):
    return model.apply(params, image, noise, **how)


def test_patches_row_by_row():
    image = np.arange(2 * 5 * 4 * 1).reshape(2, 5, 4, 1)
    out = patches(image, 2)  # the fifth row of pixels is left out
    assert out.shape == (2, 4, 4)
    np.testing.assert_array_equal(out[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


def test_kept_patches_by_hand():
    noise = jnp.array([[0.3, 0.1, 0.9, 0.2, 0.5]])
    np.testing.assert_array_equal(kept_patches(noise, 0.5), [[1, 3]])  # int(2.5) smallest, in order of noise


def test_masked_tokens_are_those_kept():
    model = small(mask_ratio=0.5, depth=1)
    params = jax.jit(model.init)(KEY, IMAGE)
    noise = np.random.default_rng(1).random((2, 9)).astype(np.float32)
    full, few = run(model, params, IMAGE, hidden=True), run(model, params, IMAGE, noise, hidden=True)
    kept = np.argsort(noise, 1)[:, :4] + 1
    rows = np.concatenate([np.zeros((2, 1), int), kept], 1)
    expected = np.take_along_axis(np.asarray(full["embedded"]), rows[:, :, None], 1)
    np.testing.assert_allclose(few["embedded"], expected, rtol=1e-5, atol=1e-6)
    drawn = run(model, params, IMAGE, rngs={"mask": KEY})
    assert drawn["tokens"].shape == (2, 5, 8)


@pytest.mark.parametrize("norm_after_pool", [False, True])
def test_mean_pooling(norm_after_pool):
    model = small(pool="mean", norm_after_pool=norm_after_pool)
    params = jax.jit(model.init)(KEY, IMAGE)
    out = run(model, params, IMAGE)
    mean = np.asarray(out["tokens"])[:, 1:].mean(1)
    norm = layers.LayerNorm().apply({"params": params["params"]["norm"]}, mean)
    np.testing.assert_allclose(out["pooled"], norm if norm_after_pool else mean, rtol=1e-5, atol=1e-6)


def test_token_pooling_is_the_class_row():
    model = small(depth=2)
    out = run(model, jax.jit(model.init)(KEY, IMAGE), IMAGE, hidden=True)
    np.testing.assert_allclose(out["pooled"], out["tokens"][:, 0], rtol=1e-5, atol=1e-6)
    assert [x.shape for x in out["hidden"]] == [(2, 10, 8)] * 2


def test_siglip_flags():
    """No class token, no ln_pre, patch bias, and an attention head that does not care for the order of tokens."""
    model = small(class_token=False, pre_norm=False, patch_bias=True, pool="attention", activation=layers.gelu_tanh)
    params = jax.jit(model.init)(KEY, IMAGE)["params"]
    assert set(params) == {"patch", "position", "block_0", "norm", "pool"}
    assert params["position"].shape == (9, 8) and params["patch"]["bias"].shape == (8,)
    assert set(params["pool"]) == {"probe", "attention", "norm", "mlp"}
    flat = params | {"position": jnp.zeros((9, 8))}
    swapped = IMAGE.reshape(2, 3, 3, 3, 3, 3)[:, ::-1].reshape(IMAGE.shape)  # rows of patches, in another order
    a, b = (run(model, {"params": flat}, x)["pooled"] for x in (IMAGE, swapped))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_layer_scale_of_zero_leaves_the_blocks_input():
    model = small(layer_scale=0.0)
    out = run(model, jax.jit(model.init)(KEY, IMAGE), IMAGE, hidden=True)
    np.testing.assert_array_equal(out["hidden"][0], out["embedded"])


def test_bfloat16_computes_in_bfloat16():
    model = small(dtype="bfloat16")
    params = jax.eval_shape(model.init, KEY, IMAGE)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert jax.eval_shape(model.apply, params, IMAGE)["tokens"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "max"}, "pool is 'max'"),
        ({"class_token": False}, "needs class_token=True"),
        ({"heads": 3}, "width 8 is not a multiple of heads 3"),
        ({"image_size": 12}, r"image is \(9, 9, 3\); this ViT takes \(12, 12, 3\)"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(small(**fields).init, KEY, IMAGE)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    model = vit(size, scan=True)
    image = jax.ShapeDtypeStruct((2, model.image_size, model.image_size, 3), jnp.float32)
    out, params = jax.eval_shape(model.init_with_output, KEY, image)
    assert out["pooled"].shape == (2, model.width)
    assert out["tokens"].shape == (2, model.patches + 1, model.width)
    assert params["params"]["blocks"]["attention"]["qkv"]["kernel"].shape[0] == model.depth


def test_vision_tower_of_dfn_has_632_682_240_parameters():
    """The image tower and its projection [1280 1024] (spec of apple/DFN5B-CLIP-ViT-H-14-378)."""
    model = vit("H/14-378", scan=True)
    params = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 378, 378, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 1280 * 1024 == 632_682_240


def test_unknown_size():
    with pytest.raises(UserError, match="size is 'B16'; expected one of smoke, tiny,"):
        vit("B16")


def test_a_masked_patch_is_the_token_at_its_place():
    model = small(mask_token=True)
    params = jax.jit(model.init)(KEY, IMAGE)["params"] | {"mask_token": jnp.arange(8.0)}
    masked = np.zeros((2, 3, 3), bool)
    masked[1, 0, 2] = True
    plain = run(model, {"params": params}, IMAGE, hidden=True)["embedded"]
    other = run(model, {"params": params}, IMAGE, hidden=True, masked=masked)["embedded"]
    same = np.ones((2, 10), bool)
    same[1, 3] = False
    np.testing.assert_array_equal(np.asarray(plain)[same], np.asarray(other)[same])
    bare = run(
        model.clone(pre_norm=False),
        {"params": {k: v for k, v in params.items() if k != "pre_norm"}},
        IMAGE,
        hidden=True,
        masked=masked,
    )
    np.testing.assert_allclose(bare["embedded"][1, 3], params["position"][3] + jnp.arange(8.0), rtol=1e-6)


def test_stochastic_depth_drops_whole_examples_of_a_block():
    """One block at a rate cannot be dropped (the first has rate 0); the second is 0 or doubled at one half."""
    model = small(depth=2, drop_path=0.5, pre_norm=False)
    image = np.tile(IMAGE[:1], (64, 1, 1, 1))
    params = jax.jit(model.init)(KEY, image[:1])
    still = run(model, params, image, hidden=True)["hidden"]
    drawn = run(model, params, image, hidden=True, rngs={"drop_path": KEY})["hidden"]
    np.testing.assert_allclose(drawn[0], still[0], rtol=1e-5, atol=1e-6)
    unchanged = np.isclose(np.asarray(drawn[1]), np.asarray(still[0]), atol=1e-6).all((1, 2))
    assert 6 <= unchanged.sum() <= 28  # both branches dropped: a quarter of 64
    scanned = model.clone(scan=True)
    stacked = {"params": stack_blocks(params["params"])}
    out = run(scanned, stacked, image, rngs={"drop_path": KEY})
    assert not np.allclose(out["tokens"][0], out["tokens"][1]) or not np.allclose(out["tokens"][0], out["tokens"][2])
    np.testing.assert_allclose(run(scanned, stacked, image)["tokens"], run(model, params, image)["tokens"], atol=1e-5)


def test_other_sizes_need_any_size():
    model = small(any_size=True)
    params = jax.jit(model.init)(KEY, IMAGE)
    out = run(model, params, IMAGE[:, :6, :3])
    assert out["tokens"].shape == (2, 3, 8)
    with pytest.raises(UserError, match=r"this ViT takes \(9, 9, 3\)"):
        run(small(), params, IMAGE[:, :6])
